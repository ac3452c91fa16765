"""How many image forwards a step of the program has.

Imported where it is called: after this, no method can be registered any more.
"""

from collections.abc import Sequence

from mast_ext.cli.parser import build, canonical
from mast_ext.cli.pretrain import make_parser, parse_training
from mast_ext.data import open_source
from mast_ext.train.config import PretrainConfig
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks


def forwards_per_step(options: Sequence[str]) -> float:
    """Of every image of a batch, in a run of these options of ``mast-ext pretrain``."""
    config = config_of(options)
    networks = build_networks(config)
    images = open_source("shapes", "train", max_images=config.train.batch_size)  # any will do
    return networks.forwards(training_loader(config, networks, images), 1)


def config_of(options: Sequence[str]) -> PretrainConfig:
    """The settings that options of ``mast-ext pretrain`` are."""
    parser = make_parser()
    values = parse_training(parser, canonical(options))
    return build(parser, values, PretrainConfig, "resume", "recipe")
