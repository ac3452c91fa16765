"""``mast-ext pretrain``: settings to a run directory and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mast_ext.cli.errors import UsageError
from mast_ext.cli.parser import (
    Parser,
    build,
    canonical,
    options_in,
    output_console,
    parse,
    parse_for_defaults,
    settings_parser,
)
from mast_ext.train.config import RECIPES, PretrainConfig
from mast_ext.train.evaluation.evaluate import LINEAR
from mast_ext.train.launch import launch, launched_rank, require_devices
from mast_ext.train.pretrain import pretrain, run_of_checkpoint
from mast_ext.train.report.tables import tables
from mast_ext.train.state.run_directory import RunDirectory


def main(arguments: Sequence[str]) -> int:
    """Trains, or goes on with a run, and prints tables. Returns the exit status."""
    parser, arguments = make_parser(), canonical(arguments)
    # The kind of data decides what is done to it unless options say otherwise.
    recipe = RECIPES[parse_for_defaults(parser, arguments).data.name]
    parser.set_defaults({"augment": asdict(recipe)})
    values = parse(parser, arguments)
    resume = None if values.resume is None else Path(values.resume)
    if resume is None:
        config = build(parser, values, PretrainConfig, "resume")
    else:
        extra = options_in(arguments, but=["--resume"])
        if extra:
            raise UsageError(f"--resume takes the settings of the run: leave out {extra[0]}")
        config = load_config(resume)

    wanted = config.train.devices
    if wanted > 1 and launched_rank() is None:
        require_devices(config.train)
        return launch("mast_ext.cli.main", ["pretrain", *arguments], wanted)
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
    parser = settings_parser(
        "pretrain",
        "Trains a backbone without labels, probes it, and writes a report.",
        PretrainConfig,
    )
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        metavar="PATH",
        help="Go on with an interrupted run: its directory, or a checkpoint in it.",
    )
    return parser


def load_config(resume: Path) -> PretrainConfig:
    """The settings of the run that a path belongs to."""
    folder = resume if resume.is_dir() else run_of_checkpoint(resume)
    run = RunDirectory.open(folder)
    return parse_settings(run.load_config(), run.config)


def parse_settings(settings: Mapping[str, Any], source: Path) -> PretrainConfig:
    """Settings that were read from a file, which errors name."""
    parser = settings_parser("pretrain", "", PretrainConfig)
    try:
        parser.check_names(settings)
        values = parser.parse_object(settings)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    return build(parser, values, PretrainConfig)
