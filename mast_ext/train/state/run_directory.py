"""The run directory: the files that a run leaves, each of which is written as a whole or not."""

import csv
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from mast_ext.train.errors import RunError
from mast_ext.train.state.text import READABLE

RENAMED_SETTINGS = {"evaluation": {"neighbours": "neighbors"}}
"""New names of settings, by section and the name that older runs wrote."""


class RunDirectory:
    """Paths of a run's files.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._was_there = path.is_dir()
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.backbone = path / "backbone.safetensors"
        self.start = path / "start.safetensors"
        self.report = path / "report"
        self.nonfinite_batch = path / "nonfinite_batch.json"

    @classmethod
    def create(cls, out: str | None, stem: str) -> "RunDirectory":
        """Makes a new run directory: ``out``, or ``runs/<stem>-<number>`` when it is None.

        What `remove` has left in it of an earlier run does not count, and goes.

        Raises:
            RunError: The directory holds something already, or cannot be made or written to.
        """
        path = Path(out) if out is not None else Path("runs", stem)
        try:
            path = path if out is not None else _make_numbered(path)
            run = cls(path)
            run._was_there &= out is not None
            if path.is_dir() and not run._left_by_remove().issuperset(path.iterdir()):
                hint = f"continue it with --resume {path}, or " if run.config.exists() else ""
                raise RunError(f"{path} exists and is not empty: {hint}choose another --out")
            run.checkpoints.mkdir(parents=True)
            for entry in run._left_by_remove():
                entry.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run directory {path}: {error.strerror}") from error
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run directory.

        Raises:
            RunError: There is no run in it.
        """
        run = cls(path)
        if not run.config.is_file():
            raise RunError(f"{path} is not a run directory: it has no config.yaml")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the directory.

        Two that wrote the same checkpoint at a time would leave a mixture of both. Where the file
        system knows no locks, nobody is kept from it.

        Raises:
            RunError: Another process trains in it, or it cannot be written to.
        """
        path = self.path / ".lock"
        with named_failure(path):
            file = path.open("w")
        with file:
            try:
                # Of this process alone: a lock of flock would live on in its children.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise RunError(f"another process trains in {self.path}") from error
            yield

    def baseline(self) -> "RunDirectory":
        """The directory of the run's baseline, inside this one."""
        return RunDirectory(self.path / "baseline")

    def make_missing(self) -> None:
        """Makes the folders that a training writes to, but not what the directory lies in.

        Raises:
            RunError: They cannot be made: the run that a baseline belongs to may have vanished.
        """
        for folder in (self.path, self.checkpoints):
            make_folder(folder)

    def save_config(self, values: dict[str, Any]) -> None:
        write_text(self.config, yaml.safe_dump(values, sort_keys=False))

    def load_config(self) -> dict[str, Any]:
        """The settings in ``config.yaml``; weights to start from are those that the run keeps.

        Raises:
            RunError: The file is not a YAML mapping, or repeats a key.
        """
        return self.with_own_start(with_new_names(read_settings(self.config)))

    def with_own_start(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the run whose weights to start from are those that it keeps, if it does.

        Raises:
            RunError: The settings of the model are no mapping.
        """
        if not self.start.exists():
            return dict(settings)
        model = settings.get("model", {})
        if not isinstance(model, Mapping):
            raise RunError(f"{self.path}: model must be a mapping of settings, got {model!r}")
        arguments = model.get("timm_args", {})
        if not isinstance(arguments, Mapping):
            raise RunError(f"{self.path}: model.timm_args must be a mapping, got {arguments!r}")
        # Where older runs name the file they began with.
        arguments = {name: each for name, each in arguments.items() if name != "checkpoint_path"}
        own = {**model, "weights": str(self.start), "timm_args": arguments}
        return {**settings, "model": own}

    def remove(self) -> None:
        """Removes what `create` made, after a run that failed before its first checkpoint.

        What is said of a batch that made the loss NaN stays, for `mast-ext replay`, and with it the
        weights that training began with.
        """
        stays = self._left_by_remove()
        for entry in list(self.path.glob("*")):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry not in stays:
                with suppress(OSError):  # the run ends because of another error
                    entry.unlink(missing_ok=True)
        if not (self._was_there or self.nonfinite_batch.exists()):
            shutil.rmtree(self.path, ignore_errors=True)

    def _left_by_remove(self) -> set[Path]:
        return {self.nonfinite_batch, self.start} if self.nonfinite_batch.exists() else set()


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that repeats a key, of which YAML's loaders silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RunError: The file is not a YAML mapping, or repeats a key; the message names it.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not text in UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: of odd values
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        raise RunError(f"{path} is not a valid YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} does not hold settings")
    return values


def with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which names that older runs wrote are those of today."""
    values = dict(settings)
    for section, renamed in RENAMED_SETTINGS.items():
        if isinstance(old := values.get(section), dict):
            values[section] = {renamed.get(name, name): value for name, value in old.items()}
    if isinstance(train := values.get("train"), dict) and "tensorboard" in train:
        logger = "tensorboard" if train["tensorboard"] else "csv"
        rest = {name: value for name, value in train.items() if name != "tensorboard"}
        values["train"] = {"logger": logger, **rest}
    return values


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The head of a CSV file, and its rows that have a cell for each of its columns.

    A last row without an end of line is left out: it is still being written, or was torn off.
    """
    with path.open(newline="") as file:
        whole = [line for line in file if line.endswith("\n")]
    heads, *rows = [*csv.reader(whole)] or [[]]
    return heads, [row for row in rows if len(row) == len(heads)]


def write_text(path: Path, text: str) -> None:
    """Writes a file through a temporary one beside it, so that readers never see a part of it.

    In UTF-8, whatever the locale: names of classes may have any letters. What is not Unicode, as
    names of files need not be, is written escaped.

    Raises:
        RunError: The file cannot be written, as on a full disk.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=READABLE)


def require_writable(*paths: str | Path | None) -> None:
    """Tells before the work that a file could not be written after it. None is left out.

    Raises:
        RunError: The folder that it would lie in is missing or cannot be written to, or there is a
            folder of its name.
    """
    for path in (Path(path) for path in paths if path is not None):
        with named_failure(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name of a file to write beside ``path``, and moves it there when it is written.

    If it is not, it is removed, and what was at ``path`` stays.

    Raises:
        RunError: The file cannot be written, as on a full disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with named_failure(path):
            yield partial
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # of a file system that has become read-only
            partial.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Makes a folder of a run, if it is missing, but none that it lies in.

    A run directory that has vanished during training is not to appear again, with a part of the
    run's files.

    Raises:
        RunError: It cannot be made.
    """
    with named_failure(path):
        path.mkdir(exist_ok=True)


@contextmanager
def named_failure(path: Path) -> Iterator[None]:
    """Turns a failure to write a file into a `RunError` that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {path}: {reason[:1].lower()}{reason[1:]}") from error


def _make_numbered(path: Path) -> Path:
    """Makes the first directory that there is not of ``path``-1, ``path``-2, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        numbered = path.with_name(f"{path.name}-{number}")
        try:
            numbered.mkdir()
        except FileExistsError:  # another run may have taken it at this moment
            number += 1
        else:
            return numbered
