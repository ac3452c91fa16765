"""``mast-ext export``: the backbone of a run for other programs."""

from collections.abc import Sequence
from pathlib import Path

from mast_ext.cli.parser import Parser, output_console
from mast_ext.cli.pretrain import load_config
from mast_ext.models.export import FORMATS, export_backbone
from mast_ext.train.networks import backbone_spec, image_format
from mast_ext.train.pretrain import run_of_checkpoint
from mast_ext.train.state.restore import restore_checkpoint
from mast_ext.train.state.run_directory import RunDirectory

SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx"}


def main(arguments: Sequence[str]) -> int:
    """Writes the file, and says how it is read. Returns the exit status."""
    values = make_parser().parse_args(list(arguments))
    run, kind = Path(values.run), values.format
    config = load_config(run)
    checkpoint = RunDirectory.open(run).last if run.is_dir() else run
    restored = restore_checkpoint(checkpoint, config)
    images = image_format(config.augment)
    folder = run if run.is_dir() else run_of_checkpoint(run)
    path = Path(values.out or folder / f"backbone-{kind}{SUFFIXES.get(kind, '')}").absolute()
    reading = export_backbone(restored.backbone, backbone_spec(config), images, path, kind)
    console = output_console()
    for line in (
        f"backbone: {path}",
        f"read it by {reading}",
        f"images are {images.size} pixels wide, (value / 255 - mean) / std of mean"
        f" {list(images.mean)} and std {list(images.std)} (of 16 bits, value / 65535)",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = Parser(
        prog="mast-ext export",
        description="Writes the backbone of a run for other programs, reads it back, and compares"
        " its features with the run's.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="A run directory, or a checkpoint in one.")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="timm, hf: a folder that timm and transformers load. torchscript: a file for"
        " torch.jit.load. onnx: a file for ONNX runtimes (needs mast-ext[onnx]).",
    )
    parser.add_argument("--out", help="What to write; by default backbone-FORMAT in the run.")
    return parser
