"""``mast-ext evaluate``: k-NN and linear probes of a run, a checkpoint or a backbone file."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mast_ext.cli.help import Overview, shows_help
from mast_ext.cli.parser import (
    Parser,
    build,
    canonical,
    output_console,
    parse,
    parse_for_defaults,
    settings_parser,
)
from mast_ext.cli.pretrain import load_config
from mast_ext.train.config import EvaluateConfig, PretrainConfig
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.evaluate import chance, evaluate
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.inputs import as_trained, counted, require_channels
from mast_ext.train.launch import resolve_device
from mast_ext.train.report.tables import results, tables
from mast_ext.train.state.restore import Restored, restore_backbone, restore_checkpoint
from mast_ext.train.state.run_directory import RunDirectory, write_text

OVERVIEW = Overview(
    examples="""\
mast-ext evaluate runs/simclr-folder-1
mast-ext evaluate runs/simclr-folder-1 --data.name folder --data.path DIR
mast-ext evaluate backbone.safetensors --data.name cifar10 --data.path DIR""",
    first={
        "what is evaluated": ("path",),
        "images (by default those of the run)": (
            *("data.name", "data.path", "data.max_images", "data.max_test_images"),
            "augment.size",
        ),
        "measurement": ("evaluation.neighbors", "evaluation.batch_size", "accelerator"),
        "settings and results": ("json", "config", "print_config"),
    },
    more="""\
more: --help GROUP  one group: data, augment, evaluation
      --help all    everything""",
)


def main(arguments: Sequence[str]) -> int:
    """Probes frozen features, and prints tables. Returns the exit status."""
    parser, arguments = make_parser(), canonical(arguments)
    if shows_help(parser, OVERVIEW, arguments):
        return 0
    path = Path(parse_for_defaults(parser, arguments).path)
    run_config = None if path.suffix == ".safetensors" else load_config(path)
    if run_config is not None:
        parser.set_defaults(_defaults(run_config))
    values = parse(parser, arguments)
    config: EvaluateConfig = build(parser, values, EvaluateConfig, "path", "json")

    restored = _restore(path, run_config)
    channels = config.augment.channels
    if restored.channels != channels:
        raise RunError(
            f"{path} takes images of {counted(restored.channels, 'channel')}, and augment.mean and"
            f" augment.std have {counted(channels, 'number')}: they need one for each channel"
        )
    opened = open_images(as_trained(config.data, config.augment), Console(stderr=True))
    require_channels(config.augment, opened.train)
    images = opened.labeled
    if images is None:
        raise RunError(f"nothing to evaluate by: {opened.why_not}")
    device = resolve_device(config.accelerator)
    rows = []
    for name, backbone, method in (
        (restored.name, restored.backbone, restored.method),
        (restored.start, restored.untrained, None),
    ):
        rows += evaluate(
            name, backbone, images, config.augment, config.evaluation, method=method, device=device
        )
    rows.append(chance(images))
    console = output_console()
    for note in opened.notes:
        console.print(note, highlight=False, markup=False)
    for table in tables(rows):
        console.print(table)
    if values.json is not None:
        subspaces = restored.method.subspaces() if restored.method else None
        write_text(Path(values.json), json.dumps(results(rows, subspaces), indent=2) + "\n")
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = settings_parser(
        "evaluate",
        "k-NN and linear probes of frozen features, beside the network before training.",
        EvaluateConfig,
    )
    parser.usage = "mast-ext evaluate PATH [options]"
    parser.add_argument(
        "path",
        help="A run directory, a checkpoint in one, or a backbone.safetensors.",
    )
    parser.add_argument(
        "--json", type=str | None, default=None, help="Write the numbers to this file, too."
    )
    return parser


def _restore(path: Path, config: PretrainConfig | None) -> Restored:
    if config is None:
        return restore_backbone(path)
    checkpoint = RunDirectory.open(path).last if path.is_dir() else path
    return restore_checkpoint(checkpoint, config)


def _defaults(config: PretrainConfig) -> dict[str, object]:
    """The sections that an evaluation shares with the run, as dotted names."""
    sections = {name: config.to_dict()[name] for name in ("data", "augment", "evaluation")}
    return {
        f"{s}.{name}": value for s, values in sections.items() for name, value in values.items()
    }
