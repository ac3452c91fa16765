"""MAST against VICReg and SimCLR on `shapes`: linear probes of every factor over seeds.

    python benchmarks/train/mast/table.py --report benchmarks/results/mast-shapes.md

trains every variant with every seed through the program (`mast_ext.train`), with as many image
forwards each, and writes a table of mean ± standard deviation. Runs that are there already (in
``--runs``) are not repeated, so an interrupted call goes on where it stopped.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

FACTORS = ("shape", "hue", "size", "position", "rotation", "texture")
LINEAR = "linear probe"

VARIANTS: dict[str, list[str]] = {
    "VICReg": ["--method=vicreg"],
    "SimCLR": ["--method=simclr"],
    "MAST": ["--method=mast"],
    "MAST without masks": ["--method=mast", "--mast.masks=ones"],
}
"""What is trained, by its name in the table; the last ones are MAST with something taken away."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=float, default=16)
    parser.add_argument("--jobs", type=int, default=1, help="Runs at the same time.")
    parser.add_argument("--threads", type=int, help="Threads of each; by default torch decides.")
    parser.add_argument("--runs", type=Path, default=Path("runs/mast-table"))
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    values = parser.parse_args()

    todo = [(variant, seed) for seed in values.seeds for variant in values.variants]
    with ThreadPoolExecutor(values.jobs) as pool:
        runs = dict(zip(todo, pool.map(lambda each: train(*each, values), todo), strict=True))
    text = table(runs, values)
    print(text)
    if values.report is not None:
        values.report.write_text(text + "\n")


def train(variant: str, seed: int, values: argparse.Namespace) -> dict:
    """The ``results.json`` of a run, which is started unless it is done."""
    name = f"{variant}-{seed}-{values.epochs:g}".replace(" ", "_").replace(",", "")
    run = values.runs / name
    if not (run / "report" / "results.json").exists():
        started = run.exists()
        command = [sys.executable, "-m", "mast_ext.cli.main", "pretrain"]
        command += ["--resume", str(run)] if started else options(variant, seed, values, run)
        threads = {} if values.threads is None else {"OMP_NUM_THREADS": str(values.threads)}
        values.runs.mkdir(parents=True, exist_ok=True)
        with (values.runs / f"{name}.log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | threads)
        print(f"{variant}, seed {seed}: done", file=sys.stderr, flush=True)
    return json.loads((run / "report" / "results.json").read_text())


def options(variant: str, seed: int, values: argparse.Namespace, run: Path) -> list[str]:
    return [
        *VARIANTS[variant],
        f"--seed={seed}",
        f"--train.epochs={values.epochs:g}",
        "--baseline=none",
        "--train.tensorboard=false",
        f"--out={run}",
    ]


def table(runs: dict[tuple[str, int], dict], values: argparse.Namespace) -> str:
    """Markdown: a row for every variant's backbone, embedding and subspaces."""
    lines = [
        "# MAST, VICReg and SimCLR on `shapes`",
        "",
        f"Linear probes (accuracy in %), mean ± standard deviation over seeds {values.seeds}.",
        f"Every run: {values.epochs:g} epochs of two views of 8,192 images: equal image forwards.",
        "",
        f"* torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"* command: `python {' '.join(sys.argv)}`",
        "",
        "| | | " + " | ".join(FACTORS) + " |",
        "|---" * (2 + len(FACTORS)) + "|",
    ]
    for variant in values.variants:
        found = [runs[variant, seed]["rows"] for seed in values.seeds]
        lines += [
            line(variant, rows, len(found))
            for rows in zip(*found, strict=True)
            if rows[0]["model"] not in ("untrained", "chance")
        ]
    reference = [runs[values.variants[0], seed]["rows"] for seed in values.seeds]
    lines += [
        line(rows[0]["model"], rows, len(reference))
        for rows in zip(*reference, strict=True)
        if rows[0]["model"] in ("untrained", "chance")
    ]
    return "\n".join(lines)


def line(name: str, rows: tuple[dict, ...], seeds: int) -> str:
    cells = []
    for factor in FACTORS:
        scores = [100 * row["accuracy"][LINEAR][factor] for row in rows]
        spread = f" ± {statistics.stdev(scores):.1f}" if seeds > 1 else ""
        cells.append(f"{statistics.mean(scores):.1f}{spread}")
    return f"| {name} | {rows[0]['part']} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
