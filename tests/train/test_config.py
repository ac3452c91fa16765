"""Settings that follow from others."""

from dataclasses import replace

import pytest
import torch

from mast_ext.data import open_source
from mast_ext.methods.mast import MASTOptions
from mast_ext.train.config import DataConfig, PretrainConfig, TrainConfig
from mast_ext.train.loop import loader
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks


@pytest.mark.parametrize(("epochs", "expected"), [(16, 5), (0.5, 0), (100, 33)])
def test_geometry_is_shared_after_a_third_of_the_epochs(epochs, expected):
    config = PretrainConfig(train=TrainConfig(epochs=epochs))
    policy = build_networks(config).method.policy(config.augment)
    assert {name: sharing.start for name, sharing in policy.sharing.items()} == {
        "hue": 0,
        "geometry": expected,
    }


def test_epochs_that_are_given_stay():
    config = PretrainConfig(mast=MASTOptions(epochs=9), train=TrainConfig(epochs=30))
    shorter = replace(config, train=TrainConfig(epochs=3))
    for each in (config, shorter):
        assert build_networks(each).method.policy(each.augment).sharing["geometry"].start == 3


@pytest.mark.parametrize(("workers", "cpu", "cuda"), [(None, 0, 1), (0, 0, 0), (3, 3, 3)])
def test_data_workers_leave_a_training_cpu_its_cores(tiny, workers, cpu, cuda, monkeypatch):
    config = replace(tiny, data=replace(tiny.data, workers=workers))
    networks = build_networks(config)
    source = open_source("shapes", "train", size=16, max_images=24)
    given = []
    monkeypatch.setattr(loader, "build_loader", lambda *_, workers, **__: given.append(workers))
    training_loader(config, networks, source)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = replace(config, train=replace(config.train, accelerator="cuda"))
    training_loader(config, networks, source)
    assert given == [cpu, cuda]


@pytest.mark.parametrize("path", ["/data/images", "/data/*.tar", "s3://bucket/{0..9}.tar", None])
def test_paths_that_are_the_same_from_everywhere_stay(path):
    data = DataConfig() if path is None else DataConfig("shards", path)
    assert PretrainConfig(data=data).to_dict()["data"]["path"] == path


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    """A folder whose name has brackets is no pattern; a pattern does not take them for one."""
    place = tmp_path / "[2]"
    (place / "a[1]").mkdir(parents=True)
    monkeypatch.chdir(place)
    for path, absolute in (
        ("a[1]", f"{place}/a[1]"),
        ("../x", f"{place}/../x"),
        ("*.tar", f"{tmp_path}/[[]2]/*.tar"),
    ):
        config = PretrainConfig(data=DataConfig("shards", path))
        assert config.to_dict()["data"]["path"] == absolute
