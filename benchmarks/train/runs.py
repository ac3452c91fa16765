"""Runs of the program, of several variants with several seeds each; what is there stays."""

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Variant:
    """What is trained, of several that are compared.

    Attributes:
        options: Of ``mast-ext pretrain``.
        length: Epochs of a run, relative to those that were asked for: below 1 where more views of
            an image go through the network, so that all have as many image forwards.
    """

    options: tuple[str, ...]
    length: float = 1.0


def add_arguments(parser: argparse.ArgumentParser, *, epochs: float, runs: str) -> None:
    """What `train_all` reads, with these defaults."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--jobs", type=int, default=1, help="Runs at the same time.")
    parser.add_argument("--threads", type=int, help="Threads of each; by default torch decides.")
    parser.add_argument("--width", type=int, default=1, help="Of the network, times resnet_small.")
    parser.add_argument("--runs", type=Path, default=Path(runs), help="Where the runs are.")
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")


def network(width: int) -> list[str]:
    """Options for a `resnet_small` that is so many times as wide."""
    if width == 1:
        return []
    channels = [width * channels for channels in (16, 32, 64, 128)]
    return [f"--model.timm_args={{channels: {channels}, stem_width: {8 * width}}}"]


def train_all(
    variants: Mapping[str, Variant], values: argparse.Namespace, options: Sequence[str] = ()
) -> dict[tuple[str, int], Path]:
    """The run directory of every variant and seed; an interrupted run goes on where it stopped."""
    todo = [(name, seed) for seed in values.seeds for name in variants]

    def train(each: tuple[str, int]) -> Path:
        name, seed = each
        return _train(name, variants[name], seed, values, options)

    with ThreadPoolExecutor(values.jobs) as pool:
        return dict(zip(todo, pool.map(train, todo), strict=True))


def _train(
    variant: str, what: Variant, seed: int, values: argparse.Namespace, options: Sequence[str]
) -> Path:
    name = f"{variant}-{seed}-{values.epochs:g}".replace(" ", "_").replace(",", "")
    name += "" if values.width == 1 else f"-width{values.width}"
    run = values.runs / name
    if (run / "report" / "results.json").exists():
        return run
    command = [sys.executable, str(Path(__file__).with_name("rivals.py")), "pretrain"]
    if run.exists():
        command += ["--resume", str(run)]
    else:
        command += [f"--seed={seed}", f"--train.epochs={values.epochs * what.length:g}"]
        command += ["--baseline=none", "--train.logger=csv", f"--out={run}"]
        command += [*options, *what.options]
    threads = {} if values.threads is None else {"OMP_NUM_THREADS": str(values.threads)}
    values.runs.mkdir(parents=True, exist_ok=True)
    path = values.runs / f"{name}.log"
    with path.open("a") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, env=os.environ | threads)
    if ended.returncode:
        last = "\n".join(path.read_text().splitlines()[-5:])
        sys.exit(f"{shlex.join(command)} failed; {path} ends with\n{last}")
    print(f"{variant}, seed {seed}: done", file=sys.stderr, flush=True)
    return run


def write_table(
    title: str,
    notes: Sequence[str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    values: argparse.Namespace,
    *,
    append: bool = False,
) -> None:
    """Prints a table in Markdown, and writes it where the arguments say, or appends it there."""
    lines = [
        f"# {title}",
        "",
        *notes,
        "",
        *([] if append else _circumstances()),
        *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)),
    ]
    text = "\n".join(lines)
    print(text)
    if values.report is not None:
        with values.report.open("a" if append else "w") as file:
            file.write(f"\n{text}\n" if append else f"{text}\n")


def _circumstances() -> list[str]:
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return [
        f"* {versions}, {platform.machine()}",
        f"* command: `python {shlex.join(sys.argv)}`",
        "",
    ]


def mean_and_spread(accuracies: Sequence[float]) -> str:
    """In %, of several seeds."""
    scores = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"
