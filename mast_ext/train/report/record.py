"""What a run has left in its directory, as a report reads it: finished or not, old or new."""

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from mast_ext.methods import Subspaces
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.evaluate import Row
from mast_ext.train.evaluation.views import HardViewExamples, PairUncertainty
from mast_ext.train.report.tables import results
from mast_ext.train.state.run_directory import (
    RunDirectory,
    make_folder,
    read_rows,
    replacing,
    write_text,
)

Columns = dict[str, NDArray[np.float64]]
"""Columns of ``metrics.csv``, each ``[N]``, NaN where a row has no number."""

RESULTS, EXAMPLES = "results.json", "hard_views.npz"
"""Files in the folder of a run's report."""

USED = (("train", "epochs"), ("equimod", "weight"), ("hard_views", "views"))
"""Settings that say what is shown, beside the method and the data: section and name, numbers."""

NOT_TRAINED = ("untrained", "starting weights", "chance")
"""What rows of results are called that are of no training."""


@dataclass(frozen=True)
class Measurements:
    """What is measured when training has ended.

    Attributes:
        rows: Accuracies and ranks; empty without labels.
        notes: Sentences on what was trained, and on what was left out.
        subspaces: The method's masks, if it has any.
        uncertainty: Of pairs of views, if the method learns it.
        examples: What hard view selection chooses, if the run selects.
    """

    rows: Sequence[Row] = ()
    notes: Sequence[str] = ()
    subspaces: Subspaces | None = None
    uncertainty: PairUncertainty | None = None
    examples: HardViewExamples | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """One training of a run: the method's own, or its baseline's.

    Attributes:
        label: What figures and tables call it.
        method: The method's name, with what goes around it.
        columns: Its metrics.
        epochs: How many it was to take.
    """

    label: str
    method: str
    columns: Columns
    epochs: float

    @property
    def done(self) -> float:
        """Epochs of which there are metrics."""
        return float(self.columns["epoch"][-1]) if self.columns else 0.0


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        path: Its directory.
        label: What figures and tables call it.
        settings: As in its ``config.yaml``.
        trainings: The method's, and the baseline's where it has begun.
        measured: What was measured at its end; None before.
        missing: Sentences on what it does not have, or not yet.
    """

    path: Path
    label: str
    settings: Mapping[str, Any]
    trainings: Sequence[TrainingRecord]
    measured: Measurements | None
    missing: Sequence[str] = field(default=())


def save_measurements(folder: Path, found: Measurements) -> None:
    """Writes what `read_runs` reads into a folder, which is made if missing, in one that exists.

    Raises:
        RunError: A file cannot be written.
    """
    make_folder(folder)
    values = {"notes": list(found.notes), **results(found.rows, found.subspaces)}
    if found.uncertainty is not None:
        values["uncertainty"] = {
            name: [round(x, 4) for x in numbers.tolist()]
            for name, numbers in vars(found.uncertainty).items()
        }
    if found.examples is not None:
        with replacing(folder / EXAMPLES) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **vars(found.examples))
    write_text(folder / RESULTS, json.dumps(values, indent=2) + "\n")


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Runs to compare, each with a label of its own: of one run the names of its methods.

    Raises:
        RunError: A path is not a run directory, is given twice, or has a damaged file.
    """
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise RunError(f"the run {paths[i]} is given twice")
    runs = [_read_run(path) for path in paths]
    if len(runs) == 1:
        return runs
    return [
        _relabeled(run, label) for run, label in zip(runs, _unique_labels(resolved), strict=True)
    ]


def _read_run(path: Path) -> RunRecord:
    run = RunDirectory.open(path)
    settings = _settings(run)
    trainings = [_training(run, settings)]
    if run.baseline().config.is_file():
        trainings.append(_training(run.baseline(), _settings(run.baseline())))
    measured, lacking = _read_measurements(run.report, settings)
    missing: list[str] = []
    if measured is None:
        missing = _not_finished(run, trainings[0])
    elif lacking:
        missing = [
            f"An earlier version of mast_ext measured this run and did not store its {lacking};"
            f" mast-ext pretrain --resume {path} measures again."
        ]
    return RunRecord(path, trainings[0].label, settings, trainings, measured, missing)


def _settings(run: RunDirectory) -> dict[str, Any]:
    settings = run.load_config()
    sections = (settings.get("data"), settings.get("train"))
    if not (isinstance(settings.get("method"), str) and all(isinstance(s, dict) for s in sections)):
        raise RunError(f"{run.path} is not a run directory: its config.yaml is of something else")
    for section, name in USED:
        values = settings.get(section, {})
        if not isinstance(values, dict):
            raise RunError(f"{run.config}: {section} must be a mapping of settings, got {values!r}")
        if not isinstance(value := values.get(name, 0), (int, float)):
            raise RunError(f"{run.config}: {section}.{name} must be a number, got {value!r}")
    return settings


def _training(run: RunDirectory, settings: Mapping[str, Any]) -> TrainingRecord:
    """Named as `Networks.name` has it, by the settings alone."""
    name = str(settings["method"])
    if settings.get("equimod", {}).get("weight", 0) > 0:
        name += "+equimod"
    if settings.get("hard_views", {}).get("views"):
        name += "+hard"
    epochs = float(settings["train"].get("epochs", math.nan))
    return TrainingRecord(name, name, read_metrics(run.metrics), epochs)


def read_metrics(path: Path) -> Columns:
    """The columns of a ``metrics.csv``; empty before there is a row.

    A row that another process is writing is left out.

    Raises:
        RunError: There is something else than numbers in it.
    """
    if not path.exists():
        return {}
    heads, rows = read_rows(path)
    try:
        values = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    columns = dict(zip(heads, values.T, strict=True)) if rows else {}
    if columns and not {"step", "epoch"} <= columns.keys():
        raise RunError(f"{path} is damaged: it has no columns step and epoch")
    return columns


def _read_measurements(
    folder: Path, settings: Mapping[str, Any]
) -> tuple[Measurements | None, str]:
    """What was measured, and what an earlier version has not stored of it, in words."""
    path, examples = folder / RESULTS, folder / EXAMPLES
    if not path.exists():
        return None, ""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            Row(
                *(r["model"], r["part"], r["accuracy"]),
                *(r.get("rankme"), r.get("dimensions")),
                r.get("mean_class_accuracy", {}),
            )
            for r in values["rows"]
        ]
        found = Measurements(rows, values.get("notes", ()))
        lacking = []
        if subspaces := values.get("subspaces"):
            if "masks" in subspaces:
                masks, overlap = (torch.tensor(subspaces[name]) for name in ("masks", "overlap"))
                names = tuple(subspaces["names"])
                found = replace(found, subspaces=Subspaces(names, masks, overlap))
            else:
                lacking.append("masks")
        if numbers := values.get("uncertainty"):
            uncertainty = PairUncertainty(**{k: np.float32(v) for k, v in numbers.items()})
            found = replace(found, uncertainty=uncertainty)
        if examples.exists():
            path = examples
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                found = replace(found, examples=HardViewExamples(**file))
        elif settings.get("hard_views", {}).get("views"):
            lacking.append("examples of hard views")
    except (
        *(ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}); mast-ext pretrain --resume measures again"
        ) from error
    return found, " and ".join(lacking)


def _not_finished(run: RunDirectory, training: TrainingRecord) -> list[str]:
    """Sentences on a run of which nothing has been measured yet."""
    stands = "It has no rows of metrics yet, so there are no curves."
    if training.columns:
        written = datetime.fromtimestamp(run.metrics.stat().st_mtime, timezone.utc)
        stands = (
            f"It stands at epoch {training.done:.4g} of {training.epochs:.4g}; its metrics were"
            f" last written at {written:%Y-%m-%d %H:%M} UTC."
        )
    return [
        "This run is not finished.",
        stands,
        "Accuracy, masks, uncertainty and examples of hard views are measured when training ends,"
        " so they are not there yet.",
    ]


def _unique_labels(paths: Sequence[Path]) -> list[str]:
    """Names of directories, each with as many of the names above as tell it from the others.

    And from rows of no training.
    """
    labels = []
    for path in paths:
        depth = 2 if path.name in NOT_TRAINED else 1
        while sum(each.parts[-depth:] == path.parts[-depth:] for each in paths) > 1:
            depth += 1
        labels.append("/".join(path.parts[-depth:]))
    return labels


def _relabeled(run: RunRecord, label: str) -> RunRecord:
    """A run whose trainings and rows are named by its label instead of its method."""
    labels = [label, *(f"{label}, baseline {each.label}" for each in run.trainings[1:])]
    names = dict(zip([each.label for each in run.trainings], labels, strict=True))
    trainings = [
        replace(each, label=name) for each, name in zip(run.trainings, labels, strict=True)
    ]
    measured = run.measured
    if measured is not None:
        rows = [replace(row, model=names.get(row.model, row.model)) for row in measured.rows]
        measured = replace(measured, rows=rows)
    return replace(run, label=label, trainings=trainings, measured=measured)


def compared_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """The rows of all runs. Those of no training stand last, each once for all runs that have it.

    Where not all of the runs have it, its name says which ones do.
    """
    measured = [run for run in runs if run.measured is not None]
    trained: list[Row] = []
    others: list[tuple[Row, list[str]]] = []
    for run in measured:
        for row in run.measured.rows if run.measured else ():
            if row.model not in NOT_TRAINED:
                trained.append(row)
                continue
            labels = next((labels for known, labels in others if known == row), None)
            if labels is None:
                others.append((row, [run.label]))
            else:
                labels.append(run.label)
    others.sort(key=lambda other: NOT_TRAINED.index(other[0].model))
    return trained + [
        row
        if len(labels) == len(measured)
        else replace(row, model=f"{row.model} ({', '.join(labels)})")
        for row, labels in others
    ]


def differing_settings(runs: Sequence[RunRecord]) -> list[tuple[str, list[str | None]]]:
    """The settings in which runs differ: dotted name, and each run's value as YAML.

    A value is None where the run does not use it, as the options of another method. Where the
    directory is (``out``) does not count.
    """
    flat = [_flattened(run.settings) for run in runs]
    found = []
    for name in dict.fromkeys(name for values in flat for name in values):
        cells = [_yaml(values[name]) if name in values else None for values in flat]
        used = [_uses(run, name) for run in runs]
        if name != "out" and len(set(cells)) > 1 and any(used):
            cells = [cell if uses else None for cell, uses in zip(cells, used, strict=True)]
            found.append((name, cells))
    return found


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            found |= _flattened(value, f"{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _uses(run: RunRecord, name: str) -> bool:
    section, _, rest = name.partition(".")
    settings = run.settings
    if not rest or section in ("data", "augment", "model", "optimizer", "train", "evaluation"):
        return True
    if section == "equimod":
        return rest == "weight" or settings.get(section, {}).get("weight", 0) > 0
    if section == "hard_views":
        return rest == "views" or bool(settings.get(section, {}).get("views"))
    return section in {each.method.split("+")[0] for each in run.trainings}


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
