"""Settings that follow from others."""

from dataclasses import replace

import pytest
import torch

from mast_ext.data import open_source
from mast_ext.methods.mast import MASTOptions
from mast_ext.train.config import PretrainConfig, TrainConfig
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
