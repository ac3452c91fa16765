"""How many image forwards a step of the program has.

Import it after all methods are registered: the program's settings, which it imports, have a group
for each method that there is by then.
"""

from collections.abc import Sequence

from mast_ext.cli.parser import build, canonical
from mast_ext.cli.pretrain import make_parser, parse_training
from mast_ext.data import open_source
from mast_ext.train.config import PretrainConfig
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.networks import build_networks


def forwards_per_step(options: Sequence[str]) -> float:
    """How often each image of a batch goes through a network in the first step of a run.

    Args:
        options: Of ``mast-ext pretrain``.
    """
    config = config_of(options)
    networks = build_networks(config)
    images = open_source("shapes", "train", max_images=config.train.batch_size)  # any will do
    return networks.forwards(training_loader(config, networks, images), 1)


def config_of(options: Sequence[str]) -> PretrainConfig:
    """The settings that options of ``mast-ext pretrain`` are."""
    parser = make_parser()
    values = parse_training(parser, canonical(options))
    return build(parser, values, PretrainConfig, "resume", "recipe")
