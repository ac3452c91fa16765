"""Settings that follow from others."""

from dataclasses import replace

import pytest
import torch

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.methods.mast import MASTOptions
from mast_ext.train.config import (
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from mast_ext.train.loop import loader
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks
from mast_ext.train.pretrain import shortened_warmup


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


@pytest.mark.parametrize("settings", [PretrainConfig, EvaluateConfig])
def test_augmentation_follows_the_images(settings):
    """In Python as on the command line; what is given stays, were it another kind's default."""
    folder = DataConfig("folder", "photos")
    shapes, photos = settings(), settings(data=folder)
    assert (shapes.augment.hue, shapes.augment.crop_scale) == (0.5, (0.5, 1.0))
    assert (photos.augment.hue, photos.augment.crop_scale) == (0.1, (0.2, 1.0))
    assert settings(augment=AugmentationRecipe()).augment == AugmentationRecipe()
    assert settings(data=folder, augment=shapes.augment).augment.hue == 0.5
    assert replace(photos, data=DataConfig()).augment.hue == 0.1


@pytest.mark.parametrize(
    ("neighbors", "counts"),
    [(1000, (1000,)), ("20,200", (20, 200)), ([5, 5], (5,)), ((20, 200), (20, 200))],
)
def test_neighbors_are_one_number_or_several(neighbors, counts):
    assert EvaluationConfig(neighbors=neighbors).counts == counts


@pytest.mark.parametrize(("warmup", "epochs", "told"), [(1, 16, 0), (2, 2, 0), (10, 1, 1)])
def test_a_warmup_that_is_cut_is_told(warmup, epochs, told):
    config = PretrainConfig(
        optimizer=OptimizerConfig(warmup=warmup), train=TrainConfig(epochs=epochs)
    )
    notes = shortened_warmup(config)
    assert len(notes) == told
    if told:
        assert "optimizer.warmup is 10 epochs, train.epochs 1" in notes[0]


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
