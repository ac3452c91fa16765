"""What was measured of trainings, and the file that keeps it when their run directories are gone.

So a table can have seeds that were trained on several machines, each paired with the plain run of
its own, and anyone can compute other statistics of the same trainings.
"""

import csv
import json
import math
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from runs import Planned, refuse_other_options

from mast_ext.benchmarks.environment import cpu_name

PROBES = {"linear": "linear probe", "20-NN": "k-NN 20", "200-NN": "k-NN 200"}
AUGMENTATIONS = "augmentations.json"  # of a training: what its features know of augmentations
DIGITS = 6  # that are kept of a number


@dataclass(frozen=True)
class Scores:
    """What was measured of one training.

    Attributes:
        accuracy: By protocol, see `PROBES`.
        explained: R² of every augmentation parameter's difference; empty where it was not measured.
        logged: Means over the run's rows of ``metrics.csv``.
    """

    accuracy: dict[str, float]
    explained: dict[str, float]
    logged: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What was measured of a run.

    Attributes:
        run: Its name.
        options: Of ``mast-ext pretrain``.
        machine: Where it was measured.
        scores: What was measured.
    """

    run: str
    options: list[str]
    machine: str
    scores: Scores


class ScoreFile:
    """Runs that were measured, by name; of a file they are its lines, one JSON object each.

    Processes may add to the same file: a line is written at once, at the end.

    Args:
        path: The file, new or not; None keeps everything in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._found: dict[str, Measured] = {}
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                sys.exit(
                    f"{path}: line {number} is cut off: remove it, and its run is measured again"
                )
            values["scores"] = Scores(**values["scores"])
            self._found[values["run"]] = Measured(**values)

    def __contains__(self, planned: Planned) -> bool:
        """Whether it has a run; ends the script if it has one with this name and other options."""
        found = self._found.get(planned.name)
        if found is not None:
            refuse_other_options(f"{planned.name} of {self.path}", found.options, planned.options)
        return found is not None

    def __getitem__(self, planned: Planned) -> Measured:
        return self._found[planned.name]

    def add(self, planned: Planned, run: Path) -> None:
        """Adds what was measured of a run in its directory."""
        measured = Measured(planned.name, list(planned.options), machine(), scores_of(run))
        self._found[planned.name] = measured
        if self.path is None:
            return
        line = json.dumps(asdict(measured)) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def machine() -> str:
    """The GPU or processor, and torch's version."""
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else cpu_name()
    return f"{name}, torch {torch.__version__}"


def scores_of(run: Path) -> Scores:
    """What was measured of a run, from the files in its directory."""
    # Not at the top: methods must be registered before the program's settings are imported.
    from mast_ext.cli.pretrain import load_config
    from mast_ext.train.networks import build_networks

    rows = json.loads((run / "report" / "results.json").read_text())["rows"]
    # The first is of what was trained: a later one is of the untrained network.
    accuracy = next(row["accuracy"] for row in rows if row["part"] == "backbone")
    explained: dict[str, float] = {}
    if (run / AUGMENTATIONS).exists():
        rows = json.loads((run / AUGMENTATIONS).read_text())["rows"]
        (measured,) = (row for row in rows if row["part"] == "backbone")
        explained = measured["augmentation_r2"]
    logged: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for line in csv.DictReader(file):
            for key, text in line.items():
                if text and math.isfinite(value := float(text)):
                    logged.setdefault(key, []).append(value)
    means = {key: statistics.mean(column) for key, column in logged.items()}
    config = load_config(run)
    views = build_networks(config).policy(config.augment).num_views()
    means["seconds"] = (
        config.train.batch_size * views / statistics.median(logged["views_per_second"])
    )
    return Scores(
        {
            # Few images have no k-NN of many neighbors.
            name: accuracy[protocol]["class"] if protocol in accuracy else math.nan
            for name, protocol in PROBES.items()
        },
        _rounded(explained),
        _rounded(means),
    )


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
