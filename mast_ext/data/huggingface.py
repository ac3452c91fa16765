"""Images of Hugging Face's `datasets`: a folder of ``save_to_disk``, or Parquet files."""

import contextlib
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mast_ext.data.encoded import EncodedSource, Progress
from mast_ext.data.files import Cell, open_stream
from mast_ext.data.labels import class_ids, class_names, numbered
from mast_ext.data.splits import Split, SplitError, share

SPLITS = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val", "dev")}
"""What the splits are called in names of files and folders."""

LABEL_COLUMNS = ("label", "labels", "class")
"""Columns of numbers or names that are labels where no column is of classes."""


class HuggingFaceSource(EncodedSource):
    """Images of a column of a table that the package `datasets` reads.

    Args:
        path: A folder that ``save_to_disk`` wrote; or Parquet files: one, a folder of them, or a
            pattern. A split is what a ``DatasetDict`` has, or the files with its name in theirs
            (``train-00000-of-00002.parquet``) or in their folder's. Of what has no splits a tenth
            of the rows, chosen by a hash of the position, is the test split.
        split: ``"train"`` or ``"test"``, which is ``validation`` where there is no ``test``, or no
            label in it.
        image_column: The images' column: encoded files, as ``datasets.Image`` stores them. By
            default the only one of that kind.
        label_column: The labels' column, numbers from 0 or names. By default every column of
            ``ClassLabel``, else ``label``, ``labels`` or ``class``, if there is one.
        on_bad_image: As of a `FolderSource`.
        max_images: Keep at most this many, spread evenly over the rows.
        channels: As of a `FolderSource`.
        bits: As of a `FolderSource`.
        progress: As of a `FolderSource`.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        FileNotFoundError: There is no such folder or split, or no Parquet files.
        SplitError: The split has no images, or a class that the training split has not.
        ValueError: A file cannot be read, or a column is not there or no such column.
        BadImageError: An image cannot be decoded and ``on_bad_image`` is ``"error"``.
    """

    name = "huggingface"

    def __init__(
        self,
        path: str | Path,
        split: Split,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        max_images: int | None = None,
        channels: int | None = None,
        bits: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        datasets = _package()
        with _failures(path), _quiet(datasets):
            tables = _tables(datasets, Path(path))
            train = next((tables[name]() for name in SPLITS["train"] if name in tables), None)
            if train is None and "" in tables:
                train = tables[""]()
            if train is None:
                found = ", ".join(tables)
                raise FileNotFoundError(f"{path} has no split train, but {found}")
            images = _image_column(datasets, train, image_column, path)
            factors = _label_columns(datasets, train, label_column, path)
            table, own = train, "" not in tables
            if split == "test" and own:
                table = _test_table(tables, factors, path)
            rows = (
                np.arange(len(table))
                if own
                else share([b"%d" % i for i in range(len(table))], split)
            )
            if not len(rows):
                raise SplitError(f"no images in the {split} split of {path}")
            for column in (images, *factors.values()):
                if column not in table.column_names:
                    raise ValueError(f"the {split} split of {path} has no column {column}")
            labels: dict[str, NDArray[np.int64]] = {}
            classes: dict[str, list[str]] = {}
            for factor, column in factors.items():
                where = f"column {column} of {path}"
                kind = train.features[column]
                own_names = getattr(kind, "names", None)
                names = class_names(train[column][:]) if own_names is None else list(own_names)
                numbers, values = own_names is not None or not names, table[column][:]
                given: Any = getattr(table.features[column], "names", None) or own_names
                # The same ids may stand for other classes here: their names count.
                renamed = own_names is not None and given != own_names
                if renamed and all(isinstance(i, int) and i >= 0 for i in values):
                    numbers, values = False, [given[i] for i in values]
                ids = class_ids(values, () if numbers else names, where)
                labels[factor], classes[factor] = ids[rows], numbered(names, ids)
            encoded = table.select_columns([images])
            encoded = encoded.cast_column(images, datasets.Image(decode=False))
        super().__init__(
            [_cell(encoded, images, int(row), path) for row in rows],
            labels,
            classes,
            where=f"in {path}",
            on_bad_image=on_bad_image,
            max_images=max_images,
            channels=channels,
            bits=bits,
            progress=progress,
        )


_HUB_NAME = re.compile(r"hf:/.*|[\w-][\w.-]*(/[\w.-]+)?")
"""What may be a data set of the hub: NAME, OWNER/NAME or a URL, without a slash before it."""

Table = Any  # datasets.Dataset
Tables = dict[str, Callable[[], Table]]


def _package() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data.name huggingface needs {error.name}, not installed here:"
            " pip install 'mast-ext[huggingface]'"
        ) from error
    return datasets


@contextlib.contextmanager
def _failures(path: str | Path) -> Iterator[None]:
    """Says in one sentence what cannot be read."""
    try:
        yield
    except (SplitError, MemoryError, ModuleNotFoundError):
        raise
    except (FileNotFoundError, ValueError) as error:
        if str(Path(path)) in str(error):  # as it is written in ours
            raise
        raise ValueError(f"cannot read {path}: {error}") from error
    except Exception as error:  # packages raise errors of their own
        behind = error.__cause__ or error
        raise ValueError(f"cannot read {path}: {str(behind) or type(behind).__name__}") from error


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the package's own progress bars."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _tables(datasets: Any, path: Path) -> Tables:
    """Tables by the name of their split; of one without splits the name is empty."""
    if (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        return {name: partial(found.__getitem__, name) for name in found}
    if (path / "dataset_info.json").is_file():
        return {"": partial(datasets.load_from_disk, str(path))}
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
    else:
        files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        what = "does not exist"
        if path.is_dir():
            what = "has no Parquet files, nor what save_to_disk writes"
        elif path.suffix != ".parquet" and _HUB_NAME.fullmatch(str(path)):
            what += (
                "; nothing is fetched from the hub: store what is there first, by"
                " datasets.load_dataset(NAME).save_to_disk(DIR)"
            )
        raise FileNotFoundError(f"{path} {what}")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_in(file, path), []).append(str(file))
    if not by_split.keys() & set(SPLITS["train"]):  # one part of a set, or a set without parts
        by_split = {"": [str(file) for file in files]}
    return {
        name: partial(datasets.Dataset.from_parquet, listed) for name, listed in by_split.items()
    }


def _split_in(file: Path, root: Path) -> str:
    """The split in a file's name or that of its folder below the root; empty without."""
    inside = file.relative_to(root).parts if file.is_relative_to(root) else ()
    for part in (file.stem, *reversed(inside[:-1])):
        for word in re.split(r"[-_.]", part.lower()):
            if any(word in names for names in SPLITS.values()):
                return word
    return ""


def _test_table(tables: Tables, factors: dict[str, str], path: str | Path) -> Table:
    """The test split; that of them which has labels, where there are several."""
    names = [name for name in SPLITS["test"] if name in tables]
    if not names:
        raise FileNotFoundError(f"{path} has no split {' or '.join(SPLITS['test'])}")
    for name in names:
        table = tables[name]()
        hidden = (
            column not in table.column_names or set(table[column][:]) <= {-1, None}
            for column in factors.values()
        )
        if not any(hidden):
            return table
    raise SplitError(f"the images of {', '.join(names)} in {path} have no labels")


def _image_column(datasets: Any, table: Table, name: str | None, path: str | Path) -> str:
    kinds = {
        column: isinstance(kind, datasets.Image) or _is_encoded(datasets, kind)
        for column, kind in table.features.items()
    }
    if name is not None and name not in kinds:
        raise ValueError(f"{path} has no column {name}: it has {', '.join(kinds)}")
    if name is not None and not kinds[name]:
        raise ValueError(f"column {name} of {path} holds no encoded images: {table.features[name]}")
    found = [name] if name is not None else [column for column, image in kinds.items() if image]
    if len(found) != 1:
        which = f"several columns of images, {', '.join(found)}" if found else "no column of images"
        raise ValueError(f"{path} has {which}: data.image_column names one of {', '.join(kinds)}")
    return found[0]


def _is_encoded(datasets: Any, kind: Any) -> bool:
    """Whether a column without the kind ``Image`` has what this stores: bytes, perhaps a path."""
    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary")
    fields = dict(kind) if isinstance(kind, dict) else {}
    return "bytes" in fields and fields.keys() <= {"bytes", "path"}


def _label_columns(
    datasets: Any, table: Table, name: str | None, path: str | Path
) -> dict[str, str]:
    """Columns of labels by the factor that they are called."""
    if name is not None and name not in table.column_names:
        raise ValueError(f"{path} has no column {name}: it has {', '.join(table.column_names)}")
    columns: Sequence[str] = (
        [name]
        if name is not None
        else [
            column
            for column, kind in table.features.items()
            if isinstance(kind, datasets.ClassLabel)
        ]
    )
    if not columns:
        columns = [column for column in LABEL_COLUMNS if column in table.column_names][:1]
    return {"class": columns[0]} if len(columns) == 1 else {column: column for column in columns}


def _cell(table: Table, column: str, row: int, path: str | Path) -> Cell:
    def read() -> bytes:
        stored = table[row][column]
        if stored is None or not (stored["bytes"] or stored["path"]):
            raise ValueError("the cell is empty")
        if stored["bytes"]:
            return stored["bytes"]
        with open_stream(Path(stored["path"])) as file:
            return file.read()

    return Cell(f"row {row} of {path}", read)
