"""CIFAR-10 and CIFAR-100 as published, read into memory; nothing is downloaded.

Both published forms are read: the pickles for Python and the binary files. Pickles are loaded by an
unpickler that knows arrays only, so that a file cannot run code.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mast_ext.data.splits import spread

SIZE = 32
_PIXELS = 3 * SIZE * SIZE

_FILES = {  # name, folder, split -> files; the labels are read in the order of `_FACTORS`
    ("cifar10", "cifar-10-batches-py", "train"): [f"data_batch_{i}" for i in range(1, 6)],
    ("cifar10", "cifar-10-batches-py", "test"): ["test_batch"],
    ("cifar10", "cifar-10-batches-bin", "train"): [f"data_batch_{i}.bin" for i in range(1, 6)],
    ("cifar10", "cifar-10-batches-bin", "test"): ["test_batch.bin"],
    ("cifar100", "cifar-100-python", "train"): ["train"],
    ("cifar100", "cifar-100-python", "test"): ["test"],
    ("cifar100", "cifar-100-binary", "train"): ["train.bin"],
    ("cifar100", "cifar-100-binary", "test"): ["test.bin"],
}
_FACTORS = {  # factor -> key of its labels in a pickle, in the order of the bytes of a record
    "cifar10": {"class": b"labels"},
    "cifar100": {"superclass": b"coarse_labels", "class": b"fine_labels"},
}
_CLASSES = {  # name, factor -> number of classes, key in the pickle of names, text file of names
    ("cifar10", "class"): (10, b"label_names", "batches.meta.txt"),
    ("cifar100", "class"): (100, b"fine_label_names", "fine_label_names.txt"),
    ("cifar100", "superclass"): (20, b"coarse_label_names", "coarse_label_names.txt"),
}
_META = {"cifar-10-batches-py": "batches.meta", "cifar-100-python": "meta"}


class CIFARSource:
    """CIFAR-10 or CIFAR-100, all in memory.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: The unpacked folder (such as ``cifar-10-batches-py`` or ``cifar-10-batches-bin``), or
            the one it lies in.
        split: ``"train"`` or ``"test"``.
        max_images: Keep at most this many, spread evenly over the images.

    Attributes:
        labels: ``class``; of CIFAR-100 ``superclass``, too.

    Raises:
        FileNotFoundError: The folder or one of its files does not exist.
        ValueError: A file is not what it should be; the message names it.
    """

    def __init__(
        self,
        name: Literal["cifar10", "cifar100"],
        path: str | Path,
        split: Literal["train", "test"],
        *,
        max_images: int | None = None,
    ) -> None:
        self.name: str = name
        folder, layout = _folder(name, Path(path))
        parts = [_read(folder / file, name) for file in _FILES[name, layout, split]]
        pixels = np.concatenate([pixels for pixels, _ in parts])
        kept = spread(len(pixels), max_images)
        self.stacked: torch.Tensor | None = torch.from_numpy(pixels[kept])
        self.sizes = np.full((len(kept), 2), SIZE, np.int32)
        self.labels = {
            factor: np.concatenate([labels[factor] for _, labels in parts])[kept]
            for factor in _FACTORS[name]
        }
        self.classes = {factor: _names(folder, layout, name, factor) for factor in _FACTORS[name]}
        self.skipped: list[str] = []
        self.channels, self.bits = 3, 8

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[C, 32, 32]`` uint8."""
        assert self.stacked is not None
        return self.stacked[index]


def _folder(name: str, path: Path) -> tuple[Path, str]:
    """The folder of the files and its published name."""
    layouts = list(dict.fromkeys(layout for key, layout, _ in _FILES if key == name))
    for layout in layouts:
        first = _FILES[name, layout, "train"][0]
        for folder in (path, path / layout):
            if (folder / first).is_file():
                return folder, layout
    reason = f"has none of {', '.join(layouts)}" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"{name}: folder {path} {reason}")


def _read(file: Path, name: str) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Pixels ``[N, 3, 32, 32]`` and labels ``[N]`` by factor of one file."""
    factors = _FACTORS[name]
    if file.suffix == ".bin":
        data = np.fromfile(file, np.uint8)
        record = len(factors) + _PIXELS
        if not len(data) or len(data) % record:
            raise ValueError(f"{file} has {len(data)} bytes, not records of {record}: cut short?")
        records = data.reshape(-1, record)
        pixels = records[:, len(factors) :]
        listed: list[Any] = list(records[:, : len(factors)].T)
    else:
        loaded = _unpickle(file)
        try:
            pixels = np.asarray(loaded[b"data"])
            listed = [loaded[key] for key in factors.values()]
        except KeyError as error:
            raise ValueError(f"{file} has no {error}: not a batch of {name}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(
            f"{file} must have uint8 images [N, {_PIXELS}], got {pixels.dtype} {list(pixels.shape)}"
        )
    labels = {}
    for factor, values in zip(factors, listed, strict=True):
        ids = np.asarray(values, np.int64)
        count = _CLASSES[name, factor][0]
        if ids.shape != (len(pixels),) or not ((ids >= 0) & (ids < count)).all():
            raise ValueError(f"{file} must have a {factor} below {count} for each image")
        labels[factor] = ids
    return np.ascontiguousarray(pixels).reshape(-1, 3, SIZE, SIZE), labels


def _names(folder: Path, layout: str, name: str, factor: str) -> list[str]:
    """Names of the classes; their numbers where the file of names is missing."""
    count, key, text = _CLASSES[name, factor]
    if layout in _META and (folder / _META[layout]).is_file():
        names = [v.decode() for v in _unpickle(folder / _META[layout]).get(key, [])]
    elif (folder / text).is_file():
        names = (folder / text).read_text().split()
    else:
        names = []
    return names if len(names) == count else [str(i) for i in range(count)]


class _Unpickler(pickle.Unpickler):
    """Makes arrays and plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        if root == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")


def _unpickle(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as stream:
            loaded = _Unpickler(stream, encoding="bytes").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"cannot read {file}: {error or type(error).__name__}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"cannot read {file}: it holds a {type(loaded).__name__}")
    # Written by Python 3, as tools that make such files do, the keys are text.
    return {key.encode() if isinstance(key, str) else key: v for key, v in loaded.items()}
