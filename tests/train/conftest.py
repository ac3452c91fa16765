from dataclasses import fields, replace

import pytest
from rich.console import Console

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.methods import METHODS, EquiModOptions, HardViewOptions
from mast_ext.train.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks
from mast_ext.train.state.run_directory import RunDirectory

SMALL = {
    "projector": (16, 16),
    "predictor": 8,
    "queue": 20,
    "prototypes": 12,
    "head": (16,),
    "bottleneck": 8,
    "local_views": 2,
    "local_size": 8,
}


def small_options(method):
    """Options with which a method is small, as far as it has them."""
    known = {field.name for field in fields(method.Options)}
    return method.Options(**{name: value for name, value in SMALL.items() if name in known})


TINY = PretrainConfig(
    data=DataConfig(size=16, max_images=24, max_test_images=12, workers=1),
    augment=AugmentationRecipe(size=16, crop_scale=(0.5, 1.0)),
    model=ModelConfig(timm_args={"channels": [8, 8, 8, 16], "stem_width": 4}),
    **{name: small_options(method) for name, method in METHODS.items()},
    optimizer=OptimizerConfig(warmup=0.5),
    train=TrainConfig(
        epochs=8 / 3,
        batch_size=8,
        accelerator="cpu",
        checkpoint_every=2,
        log_every=1,
        rank_every=2,
    ),
    evaluation=EvaluationConfig(neighbors=(5,)),
)
"""Eight steps, three to an epoch, of a network of a few thousand weights."""


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture
def train_tiny(tmp_path):
    """Trains the tiny run in a directory and gives the trained module."""

    def train(name="run", resume=None, config=TINY, method="mast"):
        base, *around = method.split("+")
        weight = EquiModOptions(1.0 if "equimod" in around else 0.0, (16, 16), 8)
        config = replace(config, method=base, equimod=weight)
        if "hard" in around and not config.hard_views.views:
            config = replace(config, hard_views=HardViewOptions(4))
        networks = build_networks(config)
        data = config.data
        source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
        loader = training_loader(config, networks, source)
        run = RunDirectory(tmp_path / name)
        run.path.mkdir(parents=True, exist_ok=True)
        training = Training(config, networks, loader, round(config.train.epochs * len(loader)))
        return fit(training, run, resume=resume, console=Console(quiet=True))

    return train
