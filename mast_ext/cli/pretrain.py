"""``mast-ext pretrain``: settings to a run directory and a table."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import Overview, shows_help, value_of
from mast_ext.cli.parser import (
    Parser,
    build,
    canonical,
    options_in,
    output_console,
    parse,
    parse_for_defaults,
    set_defaults_of_data,
    settings_parser,
)
from mast_ext.cli.unused import refuse_unused, unused_in_training
from mast_ext.methods import METHODS
from mast_ext.train.config import PretrainConfig, TrainConfig
from mast_ext.train.evaluation.evaluate import LINEAR
from mast_ext.train.launch import launch, launched_rank, require_devices
from mast_ext.train.pretrain import baseline_of, pretrain, run_of_checkpoint
from mast_ext.train.recipes import recipe_file
from mast_ext.train.report.tables import tables
from mast_ext.train.state.run_directory import RunDirectory

OVERVIEW = Overview(
    examples="""\
mast-ext pretrain                        MAST on made-up images
mast-ext pretrain --data.name folder --data.path DIR --method simclr
mast-ext pretrain --recipe cifar10-resnet18 --method byol --data.path DIR
mast-ext pretrain --config FILE --train.epochs 100
mast-ext pretrain --resume runs/simclr-folder-1""",
    first={
        "data": (
            *("data.name", "data.path", "data.max_images", "data.workers"),
            *("augment.size", "augment.hue", "augment.blur"),
        ),
        "method and backbone": (
            *("method", "hard_views.views", "equimod.weight"),
            *("model.name", "model.weights"),
        ),
        "training": (
            *("train.epochs", "train.batch_size", "train.devices", "train.precision"),
            *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.warmup"),
            "seed",
        ),
        "settings and results": ("recipe", "config", "print_config", "out", "resume"),
    },
    apart=(*METHODS, "equimod", "hard_views"),
    more="""\
more: --method NAME --help      options of a method, and those that all have
      --data.name NAME --help   defaults of augment, which depend on the images
      --help GROUP, --help all  one group (augment, hard_views, ...), everything""",
)


def main(arguments: Sequence[str]) -> int:
    """Trains, or goes on with a run, and prints tables. Returns the exit status."""
    parser, arguments = make_parser(), canonical(arguments)
    parser.method = value_of("--method", arguments)
    set_defaults_of_data(parser, value_of("--data.name", arguments) or PretrainConfig().data.name)
    if shows_help(parser, OVERVIEW, arguments, parser.method):
        return 0
    values = parse_training(parser, arguments)
    resume = None if values.resume is None else Path(values.resume)
    if resume is None:
        config = build(parser, values, PretrainConfig, "resume", "recipe")
        methods = [config.method, *(each.method for each in baseline_of(config))]
        refuse_unused(arguments, unused_in_training(config, methods))
    else:
        extra = options_in(arguments, but=["--resume"])
        if extra:
            raise UsageError(
                f"--resume takes the settings of the run: leave out {extra[0]}; a new run with"
                f" --model.weights {resume} begins with its backbone, without heads and teacher"
            )
        config = load_config(resume)

    wanted = config.train.devices
    launched = launched_rank()
    if launched is not None and launched.rank == 0 and 1 < wanted != launched.world_size:
        print(
            f"mast-ext: {launched.world_size} processes, as torchrun or SLURM started them, not"
            f" train.devices {wanted}",
            file=sys.stderr,
        )
    status = run_on_devices(["pretrain", *arguments], config.train)
    if status is not None:
        return status
    outcome = pretrain(config, resume=resume)
    if outcome is None:  # the first process speaks
        return 0
    console = output_console()
    for note in outcome.notes:
        console.print(note, highlight=False, markup=False)
    which = [LINEAR] if config.data.name == "shapes" else None
    for table in tables(outcome.rows, which):
        console.print(table)
    for label, path in (("report", outcome.report), ("run directory", outcome.run.path)):
        console.print(f"{label}: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = training_parser(
        "pretrain", "Trains a backbone without labels, probes it, and writes a report."
    )
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        metavar="PATH",
        help="Go on with an interrupted run: its directory, or a checkpoint in it.",
    )
    return parser


def training_parser(command: str, description: str) -> Parser:
    """A parser of all settings of a run, and of the name of a recipe."""
    parser = settings_parser(command, description, PretrainConfig)
    for action in parser._actions:
        if action.dest == "method":  # any that is registered: no type says which
            action.metavar = "{" + ",".join(sorted(METHODS)) + "}"
    parser.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        metavar="NAME",
        help="Settings from papers, which others override; mast-ext recipes lists them.",
    )
    return parser


def parse_training(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Values of a command line of `training_parser`, with the defaults that depend on others."""
    arguments = list(arguments)
    values = parse_for_defaults(parser, arguments)
    if values.recipe is not None:  # as the first of all files of settings: the others override it
        arguments = [f"--config={found_recipe(values.recipe, values.method)}", *arguments]
        values = parse_for_defaults(parser, arguments)
    set_defaults_of_data(parser, values.data.name)
    return parse(parser, arguments)


def run_on_devices(command: Sequence[str], train: TrainConfig) -> int | None:
    """Runs a command in as many processes as ``train.devices`` says, which train together.

    Returns:
        Their exit status; None where this process is to train: alone, or as one of those.
    """
    if train.devices == 1 or launched_rank() is not None:
        return None
    if remark := require_devices(train):
        print(remark, file=sys.stderr)
    return launch("mast_ext.cli.main", list(command), train.devices)


def found_recipe(name: str, method: str) -> Path:
    """The file of a recipe; a UsageError if there is none."""
    try:
        return recipe_file(name, method)
    except ValueError as error:
        raise UsageError(str(error)) from error


def load_config(resume: Path) -> PretrainConfig:
    """The settings of the run that a path belongs to."""
    folder = resume if resume.is_dir() else run_of_checkpoint(resume)
    run = RunDirectory.open(folder)
    return parse_settings(run.load_config(), run.config)


def parse_settings(settings: Mapping[str, Any], source: Path) -> PretrainConfig:
    """Settings that were read from a file, which errors name."""
    parser = settings_parser("pretrain", "", PretrainConfig)
    data = settings.get("data")
    given = data if isinstance(data, Mapping) else {}
    set_defaults_of_data(parser, str(given.get("name", PretrainConfig().data.name)))
    try:
        parser.check_names(settings)
        values = parser.parse_object(settings)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    return build(parser, values, PretrainConfig)
