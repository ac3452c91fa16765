from dataclasses import replace

import pytest
from rich.console import Console

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.methods import EquiModOptions, HardViewOptions
from mast_ext.methods.barlow_twins import BarlowTwinsOptions
from mast_ext.methods.byol import BYOLOptions
from mast_ext.methods.dino import DINOOptions
from mast_ext.methods.ibot import IBOTOptions
from mast_ext.methods.mast import MASTOptions
from mast_ext.methods.moco import MoCoOptions
from mast_ext.methods.simclr import SimCLROptions
from mast_ext.methods.simsiam import SimSiamOptions
from mast_ext.methods.vicreg import VICRegOptions
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

TINY = PretrainConfig(
    data=DataConfig(size=16, max_images=24, max_test_images=12, workers=1),
    augment=AugmentationRecipe(size=16, crop_scale=(0.5, 1.0)),
    model=ModelConfig(timm_args={"channels": [8, 8, 8, 16], "stem_width": 4}),
    mast=MASTOptions(projector=(16, 16)),
    vicreg=VICRegOptions(projector=(16, 16)),
    simclr=SimCLROptions(projector=(16, 16)),
    moco=MoCoOptions(projector=(16, 16), queue=20),
    barlow_twins=BarlowTwinsOptions(projector=(16, 16)),
    byol=BYOLOptions(projector=(16, 16), predictor=8),
    simsiam=SimSiamOptions(projector=(16, 16), predictor=8),
    dino=DINOOptions(12, (16,), 8, local_views=2, local_size=8),
    ibot=IBOTOptions(12, (16,), 8, local_views=2, local_size=8),
    optimizer=OptimizerConfig(warmup=0.5),
    train=TrainConfig(
        epochs=8 / 3, batch_size=8, accelerator="cpu", checkpoint_every=2, log_every=1
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
        run.path.mkdir(exist_ok=True)
        training = Training(config, networks, loader, round(config.train.epochs * len(loader)))
        return fit(training, run, resume=resume, console=Console(quiet=True))

    return train
