"""``mast-ext evaluate``: what a trained backbone has learned, on these or on other images."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import Overview, shows_help
from mast_ext.cli.parser import (
    Parser,
    build,
    canonical,
    output_console,
    parse,
    parse_for_defaults,
    set_defaults_of_data,
    settings_parser,
)
from mast_ext.cli.pretrain import load_config
from mast_ext.cli.unused import refuse_unused, unused_in_evaluation
from mast_ext.models import ImageFormat
from mast_ext.models.weights import is_torchscript
from mast_ext.train.config import EvaluateConfig, PretrainConfig, WeightsConfig
from mast_ext.train.errors import CheckpointError, RunError
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.evaluation.measure import measure
from mast_ext.train.inputs import as_trained, counted, fitted_recipe
from mast_ext.train.launch import resolve_device
from mast_ext.train.report.tables import results, tables
from mast_ext.train.state.restore import (
    Restored,
    restore_backbone,
    restore_checkpoint,
    restore_timm,
    restore_weights,
)
from mast_ext.train.state.run_directory import RunDirectory, require_writable, write_text

OVERVIEW = Overview(
    examples="""\
mast-ext evaluate runs/simclr-folder-1
mast-ext evaluate runs/simclr-folder-1 --measure probes,finetune
mast-ext evaluate runs/simclr-folder-1 --data.name folder --data.path DIR
mast-ext evaluate resnet50.pth --model.name resnet50 --data.name folder ...""",
    first={
        "what is evaluated": ("path", "model.name"),
        "images (by default those of the run)": (
            *("data.name", "data.path", "data.max_images", "data.max_test_images"),
            "augment.size",
        ),
        "measurement": (
            *("measure", "finetune.labels", "finetune.epochs", "evaluation.neighbors"),
            *("reference", "accelerator"),
        ),
        "settings and results": ("json", "config", "print_config"),
    },
    given_elsewhere=("data", "augment", "evaluation"),  # by the run
    more="""\
more: --help GROUP  one group: data, augment, evaluation, finetune, model
      --help all    everything""",
)


def main(arguments: Sequence[str]) -> int:
    """Measures, and prints tables. Returns the exit status."""
    parser, arguments = make_parser(), canonical(arguments)
    if shows_help(parser, OVERVIEW, arguments):
        return 0
    values = parse_for_defaults(parser, arguments)
    path, weights = Path(values.path), WeightsConfig(**values.model)
    run_config, restored = _open(path, weights)
    if run_config is not None:
        parser.set_defaults(_defaults_of_run(parser, arguments, run_config))
    else:
        set_defaults_of_data(parser, values.data.name)
        parser.set_defaults(_defaults_of_images(restored.images if restored else None))
    values = parse(parser, arguments)
    config: EvaluateConfig = build(parser, values, EvaluateConfig, "path", "json")
    refuse_unused(arguments, unused_in_evaluation(config))
    require_writable(values.json)

    if run_config is not None:
        checkpoint = RunDirectory.open(path).last if path.is_dir() else path
        restored = restore_checkpoint(checkpoint, run_config)
    assert restored is not None
    _require_channels(path, restored.spec.channels, config.augment.channels)
    images = open_images(
        as_trained(config.data, config.augment),
        Console(stderr=True),
        unlabeled_test="augmentations" in config.measured,
    )
    recipe, left_out = fitted_recipe(config.augment, images.train)
    config = replace(config, augment=recipe)
    with _Progress() as progress:
        device = resolve_device(config.accelerator)
        rows, notes = measure(restored, images, config, device, progress.update)
    console = output_console()
    if left_out and "augmentations" in config.measured:  # nothing else changes colors
        notes = [left_out, *notes]
    notes = [*images.notes, *notes]
    for note in notes:
        console.print(note, highlight=False, markup=False)
    unbalanced = images.labeled.unbalanced() if images.labeled else []
    for table in tables(rows, unbalanced=unbalanced):
        console.print(table)
    if values.json is not None:
        subspaces = restored.method.subspaces() if restored.method else None
        found = {
            "path": values.path,
            "settings": config.to_dict(),
            "notes": notes,
            **results(rows, subspaces),
        }
        write_text(Path(values.json), json.dumps(found, indent=2) + "\n")
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = settings_parser(
        "evaluate",
        "Probes, fine-tuning, and what features know of how views were made.",
        EvaluateConfig,
    )
    parser.usage = "mast-ext evaluate PATH [options]"
    parser.add_argument(
        "path",
        help="A run directory, a checkpoint in one, a backbone.safetensors, a folder as timm or"
        " mast-ext export write them, or, with --model.name, a file of a timm model's weights.",
    )
    parser.add_argument(
        "--json", type=str | None, default=None, help="Write the numbers to this file, too."
    )
    return parser


def _open(path: Path, weights: WeightsConfig) -> tuple[PretrainConfig | None, Restored | None]:
    """The settings of a run, or the networks in anything else that a path may name."""
    if weights.name is not None:
        if path.is_dir():
            raise UsageError(
                f"--model.name says of which network a file of weights is, and {path} is a folder,"
                " which says so itself: leave it out"
            )
        return None, restore_weights(path, weights)
    if (
        path.is_dir()
        and (path / "config.json").is_file()
        and not RunDirectory(path).config.exists()
    ):
        return None, restore_timm(path)
    hint = "; if it holds the weights of a timm model, --model.name says of which"
    if path.suffix == ".safetensors":
        try:
            return None, restore_backbone(path)
        except ValueError as error:
            raise ValueError(f"{error}{hint}") from error
    try:
        return load_config(path), None
    except CheckpointError as error:
        may_be_weights = path.is_file() and not is_torchscript(path)
        raise CheckpointError(f"{error}{hint if may_be_weights else ''}") from error


def _require_channels(path: Path, wanted: int, given: int) -> None:
    """Raises a RunError unless augment.mean and augment.std fit the channels of a network."""
    if wanted != given:
        raise RunError(
            f"{path} takes images of {counted(wanted, 'channel')}, and augment.mean and augment.std"
            f" have {counted(given, 'number')}: they need one for each channel"
        )


def _defaults_of_run(
    parser: Parser, arguments: Sequence[str], config: PretrainConfig
) -> dict[str, object]:
    """The sections that an evaluation shares with the run, as dotted names.

    If the images are not the run's, the options that say where they are, how they are stored and
    how many are used keep the program's defaults.
    """
    values = config.to_dict()
    sections = {name: values[name] for name in ("data", "augment", "evaluation")}
    defaults = {
        f"{section}.{name}": value
        for section, settings in sections.items()
        for name, value in settings.items()
    }
    names = ("path", "image_column", "label_column", "bits", "max_images", "max_test_images")
    own = {f"data.{name}": parser.get_default(f"data.{name}") for name in names}
    parser.set_defaults(defaults)
    data = parse_for_defaults(parser, arguments).data
    same = data.name == config.data.name and _place(data.path) == _place(values["data"]["path"])
    return defaults if same else defaults | own


def _place(path: str | None) -> str | None:
    return None if path is None else os.path.realpath(path)


def _defaults_of_images(images: ImageFormat | None) -> dict[str, Any]:
    return {} if images is None else {f"augment.{k}": v for k, v in asdict(images).items()}


class _Progress:
    """A bar for every training, on standard error if that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", visible=False)

    def update(self, what: str, done: int, steps: int) -> None:
        self.bar.update(self.task, description=what, completed=done, total=steps, visible=True)

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
