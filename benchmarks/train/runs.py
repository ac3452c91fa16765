"""Trains variants of a run through the program, with several seeds each.

Runs that are finished are not repeated, and an interrupted one goes on where it stopped.
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Variant:
    """One of the trainings that are compared.

    Attributes:
        options: Of ``mast-ext pretrain``.
        length: Epochs of a run as a multiple of ``--epochs``. Variants whose steps differ in image
            forwards can so have equally many.
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
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        help="Of every run besides, as --option=--data.workers=1; any number of times.",
    )


def network(width: int) -> list[str]:
    """Options for a `resnet_small` that is so many times as wide."""
    if width == 1:
        return []
    channels = [width * channels for channels in (16, 32, 64, 128)]
    return [f"--model.timm_args={{channels: {channels}, stem_width: {8 * width}}}"]


@dataclass(frozen=True)
class Planned:
    """A run of a variant with a seed.

    Attributes:
        variant: Its name.
        seed: Its seed.
        name: Of the run, and of its directory.
        options: Of ``mast-ext pretrain``.
    """

    variant: str
    seed: int
    name: str
    options: tuple[str, ...]


def plan(
    variants: Mapping[str, Variant], values: argparse.Namespace, options: Sequence[str] = ()
) -> list[Planned]:
    """A run of every variant and seed, those of a seed one after the other."""
    planned = []
    for seed in values.seeds:
        for variant, what in variants.items():
            name = f"{variant}-{seed}-{values.epochs:g}".replace(" ", "_").replace(",", "")
            name += "" if values.width == 1 else f"-width{values.width}"
            chosen = [f"--seed={seed}", f"--train.epochs={values.epochs * what.length:g}"]
            chosen += ["--baseline=none", "--train.logger=csv"]
            chosen += [*values.option, *options, *what.options]
            planned.append(Planned(variant, seed, name, tuple(chosen)))
    return planned


def train_all(
    planned: Sequence[Planned],
    values: argparse.Namespace,
    then: Callable[[Planned, Path], None] = lambda planned, run: None,
) -> dict[tuple[str, int], Path]:
    """The run directory of every variant and seed; an interrupted run goes on where it stopped.

    `then` is called for every run at its end, as many at the same time as train.
    """

    def train(each: Planned) -> Path:
        run = _train(each, values)
        then(each, run)
        return run

    with ThreadPoolExecutor(values.jobs) as pool:
        runs = pool.map(train, planned)
        return {(each.variant, each.seed): run for each, run in zip(planned, runs, strict=True)}


def _train(planned: Planned, values: argparse.Namespace) -> Path:
    run: Path = values.runs / planned.name
    values.runs.mkdir(parents=True, exist_ok=True)
    _refuse_others(run, planned.options)
    if (run / "report" / "results.json").exists():
        return run
    new = [*planned.options, f"--out={run}"]
    program(
        ["pretrain", *(["--resume", str(run)] if run.exists() else new)],
        values.threads,
        values.runs / f"{planned.name}.log",
    )
    print(f"{planned.variant}, seed {planned.seed}: done", file=sys.stderr, flush=True)
    return run


def _refuse_others(run: Path, options: Sequence[str]) -> None:
    """Ends the script if a run is of other options than these; else keeps them beside it."""
    file = run.with_name(f"{run.name}.options.json")
    if not run.exists():
        file.write_text(json.dumps(options, indent=1) + "\n")
        return
    if not file.exists():
        sys.exit(f"{run} is there without {file.name}: it is not known with which options")
    refuse_other_options(str(run), json.loads(file.read_text()), options)


def refuse_other_options(what: str, before: Sequence[str], options: Sequence[str]) -> None:
    """Ends the script unless ``what`` was trained with these options."""
    if list(before) != list(options):
        others = ", ".join(sorted(set(before) ^ set(options))) or "in another order"
        sys.exit(f"{what} was trained with other options ({others}): choose another file or --runs")


def program(arguments: Sequence[str], threads: int | None, log: Path) -> None:
    """Runs `mast-ext` with the methods of `rivals`; ends the script if that fails."""
    command = [sys.executable, str(Path(__file__).with_name("rivals.py")), *arguments]
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with log.open("a") as file:
        ended = subprocess.run(command, stdout=file, stderr=file, env=os.environ | limit)
    if ended.returncode:
        last = "\n".join(log.read_text().splitlines()[-5:])
        sys.exit(f"{shlex.join(command)} failed; {log} ends with\n{last}")


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
    """In %, of several seeds; – where one of them is NaN, not measured."""
    if any(map(math.isnan, accuracies)):
        return "–"
    scores = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"
