"""Runs of the program, of several variants with several seeds each; what is there stays."""

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

UNMASKED = "{hue: {}, geometry: {start: 0.3333333333333333}}"  # the same views, nothing freed

VARIANTS: dict[str, list[str]] = {
    "VICReg": ["--method=vicreg"],
    "SimCLR": ["--method=simclr"],
    "MAST": ["--method=mast"],
    "MAST, fixed masks": ["--method=mast", "--mast.masks=blocks"],
    "MAST without masks": ["--method=mast", f"--mast.shared={UNMASKED}"],
    "MAST with uncertainty": ["--method=mast", "--mast.uncertainty=true"],
    "separate heads (LooC)": ["--method=looc"],
    "VICReg + AugSelf": ["--method=augself"],
    "VICReg + EquiMod": ["--method=vicreg", "--equimod.weight=1"],
}
"""What is trained, by its name in the tables: MAST's changes, and other ways to the same end."""

# Views of an image that go through the network, where they are not two: EquiMod's plain one is the
# third. Such runs are shorter by as much, so that all have as many image forwards.
VIEWS = {"VICReg + EquiMod": 3}


def add_arguments(parser: argparse.ArgumentParser, *, epochs: float, runs: str) -> None:
    """What `train_all` reads, with these defaults."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--jobs", type=int, default=1, help="Runs at the same time.")
    parser.add_argument("--threads", type=int, help="Threads of each; by default torch decides.")
    parser.add_argument("--runs", type=Path, default=Path(runs), help="Where the runs are.")
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")


def train_all(
    values: argparse.Namespace, options: Sequence[str] = ()
) -> dict[tuple[str, int], Path]:
    """The run directory of every variant and seed; an interrupted run goes on where it stopped."""
    todo = [(variant, seed) for seed in values.seeds for variant in values.variants]
    with ThreadPoolExecutor(values.jobs) as pool:
        runs = pool.map(lambda each: _train(each[0], each[1], values, options), todo)
        return dict(zip(todo, runs, strict=True))


def _train(variant: str, seed: int, values: argparse.Namespace, options: Sequence[str]) -> Path:
    name = f"{variant}-{seed}-{values.epochs:g}".replace(" ", "_").replace(",", "")
    run = values.runs / name
    if (run / "report" / "results.json").exists():
        return run
    command = [sys.executable, str(Path(__file__).with_name("rivals.py")), "pretrain"]
    if run.exists():
        command += ["--resume", str(run)]
    else:
        command += [*VARIANTS[variant], *options, f"--seed={seed}", "--baseline=none"]
        command += [
            f"--train.epochs={values.epochs * 2 / VIEWS.get(variant, 2):g}",
            "--train.logger=csv",
        ]
        command += [f"--out={run}"]
    threads = {} if values.threads is None else {"OMP_NUM_THREADS": str(values.threads)}
    values.runs.mkdir(parents=True, exist_ok=True)
    with (values.runs / f"{name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | threads)
    print(f"{variant}, seed {seed}: done", file=sys.stderr, flush=True)
    return run


def write_table(
    title: str,
    notes: Sequence[str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    values: argparse.Namespace,
) -> None:
    """Prints a table in Markdown, and writes it where the arguments say."""
    lines = [
        f"# {title}",
        "",
        *notes,
        "",
        f"* torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"* command: `python {shlex.join(sys.argv)}`",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)),
    ]
    text = "\n".join(lines)
    print(text)
    if values.report is not None:
        values.report.write_text(text + "\n")


def mean_and_spread(accuracies: Sequence[float]) -> str:
    """In %, of several seeds."""
    scores = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"
