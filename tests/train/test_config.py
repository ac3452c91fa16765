"""Settings that follow from others."""

from dataclasses import replace

import pytest
import torch

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.methods import DINO, IBOT
from mast_ext.methods.mast import MASTOptions
from mast_ext.train.config import (
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from mast_ext.train.errors import SettingsError
from mast_ext.train.loop import loader
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks
from mast_ext.train.pretrain import beyond_the_end


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


def in_epochs(epochs, warmup, **options):
    train = TrainConfig(epochs=epochs)
    return PretrainConfig(optimizer=OptimizerConfig(warmup=warmup), train=train, **options)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (in_epochs(16, 1), []),
        (in_epochs(2, 2), []),
        (
            in_epochs(1, 10),
            [
                "the learning rate rises to the end: optimizer.warmup is 10 epochs, train.epochs 1",
            ],
        ),
        (
            in_epochs(4, 1, method="ibot", ibot=IBOT.Options(temperature_warmup=30)),
            [
                "the teacher's temperature changes to the end: ibot.temperature_warmup is 30"
                " epochs, train.epochs 4"
            ],
        ),
        (
            in_epochs(0.5, 0, method="dino", dino=DINO.Options(freeze_last_layer=1)),
            [
                "the prototypes never change: dino.freeze_last_layer is 1 epochs, train.epochs 0.5",
            ],
        ),
        (
            in_epochs(1, 0, method="dino", dino=DINO.Options(freeze_last_layer=1)),
            ["the prototypes never change: dino.freeze_last_layer is 1 epochs, train.epochs 1"],
        ),
        (in_epochs(4, 1, dino=DINO.Options(temperature_warmup=30)), []),  # mast is trained
    ],
)
def test_what_is_longer_than_the_training_is_told(config, told):
    assert beyond_the_end(config) == told


def test_lasting_longer_moves_what_follows_from_the_epochs():
    config = PretrainConfig(train=TrainConfig(epochs=3))
    assert config.lasting(9).mast.epochs == config.lasting(9).train.epochs == 9
    given = replace(config, mast=MASTOptions(epochs=5))
    assert given.lasting(9).mast.epochs == 5


def test_arguments_of_timm_are_as_a_file_gives_them_back():
    """A run that was started from Python with tuples resumes from its file."""
    assert ModelConfig(timm_args={"channels": (8, 16)}).timm_args == {"channels": [8, 16]}


@pytest.mark.parametrize("path", ["/data/images", "/data/*.tar", "s3://bucket/{0..9}.tar", None])
def test_paths_that_are_the_same_from_everywhere_stay(path):
    data = DataConfig() if path is None else DataConfig("shards", path)
    assert PretrainConfig(data=data).to_dict()["data"]["path"] == path


def test_a_process_with_one_image_needs_synchronized_batch_norm():
    assert TrainConfig(batch_size=2).share_of_batch(2) == 1
    with pytest.raises(SettingsError, match="batch_size 2 leaves one image for each of 2 parts"):
        TrainConfig(batch_size=2, sync_batchnorm=False).share_of_batch(2)


def test_paths_may_be_of_pathlib(tmp_path):
    config = PretrainConfig(data=DataConfig(name="folder", path=tmp_path), out=tmp_path / "run")
    assert config.data.path == str(tmp_path) and config.to_dict()["out"] == str(tmp_path / "run")


def test_what_follows_from_the_epochs_does_so_in_another_run_of_these_settings():
    config = PretrainConfig(train=TrainConfig(epochs=3))
    assert config.mast.epochs == 3 and config.to_dict()["mast"]["epochs"] is None
    given = replace(config, mast=replace(config.mast, epochs=7.0))
    assert given.to_dict()["mast"]["epochs"] == 7


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
