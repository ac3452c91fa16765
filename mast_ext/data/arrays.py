"""Images in arrays of NumPy's: ``.npy`` files, memory-mapped, or a ``.npz`` file."""

import re
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mast_ext.data.decoding import check_array, convert
from mast_ext.data.encoded import STACKED_LIMIT, to_tensor
from mast_ext.data.labels import class_ids, class_names, numbered
from mast_ext.data.splits import SPLIT_NAMES, Split, SplitError, share, spread

IMAGES, LABELS = "images", "labels"
"""What arrays are called by default."""


class NumpySource:
    """Images of an array ``[N, H, W]`` or ``[N, H, W, C]`` (channels last), uint8 or uint16.

    They lie in a ``.npz`` file, in a folder of ``.npy`` files, or in one ``.npy`` file. In the
    first two arrays have names (in a folder those of the files): ``train_images`` beside
    ``test_images`` or ``val_images``, with labels in ``train_labels`` and so on (``images_train``
    is read, too); or ``images`` and ``labels``, of which a tenth, chosen by a hash of the position,
    is the test split. So is a tenth of a ``.npy`` file, which has no labels.

    Labels are numbers from 0, or names: ``[N]``, ``[N, 1]``, or ``[N, K]`` for K factors.

    Args:
        path: The folder or file.
        split: ``"train"`` or ``"test"``.
        image_column: What the array of images is called, without the split; ``images`` by default.
        label_column: What that of labels is called; ``labels`` by default, if there is one.
        max_images: Keep at most this many, spread evenly over the images.
        channels: Of the images that `image` gives, 1 or 3 for images that are gray or RGB; by
            default as many as the array has.
        bits: Likewise, 8 or 16.

    Raises:
        FileNotFoundError: There is no such folder, file or split.
        SplitError: The split has no images, or a class that the training split has not.
        ValueError: A file or an array is not what it should be; the message says which.
    """

    name = "numpy"

    def __init__(
        self,
        path: str | Path,
        split: Split,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        max_images: int | None = None,
        channels: int | None = None,
        bits: int | None = None,
    ) -> None:
        arrays = _Arrays(Path(path))
        images_name, own = arrays.find(image_column or IMAGES, split)
        self._images, where = arrays.read(images_name), f"{images_name} in {path}"
        try:
            check_array(self._images.shape[1:], self._images.dtype, first="N, ")
            self.channels = self._images.shape[3] if self._images.ndim == 4 else 1
            self.bits = bits or 8 * self._images.dtype.itemsize
            if channels is not None:
                convert(np.zeros((1, 1, self.channels), np.uint8), channels, 8)
                self.channels = channels
        except ValueError as error:
            raise ValueError(f"cannot use {where}: {error}") from error
        count = len(self._images)
        keys = [b"%d" % i for i in range(count)]
        rows = np.arange(count) if own else share(keys, split)
        self._rows = rows[spread(len(rows), max_images)]
        if not len(self._rows):
            raise SplitError(f"no images in the {split} split of {where}")

        self.labels: dict[str, NDArray[np.int64]] = {}
        self.classes: dict[str, list[str]] = {}
        labels_name = arrays.labels_of(images_name, image_column or IMAGES, label_column)
        if labels_name is not None:
            self._read_labels(arrays, labels_name, str(path), count)
        height, width = self._images.shape[1:3]
        self.sizes = np.full((len(self._rows), 2), (height, width), np.int32)
        self.skipped: list[str] = []
        self.stacked: torch.Tensor | None = None
        if max(height, width) <= STACKED_LIMIT:
            self.stacked = to_tensor(self._levels(self._rows))
            del self._images  # which would be in memory twice

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[C, H, W]`` uint8 or uint16."""
        if self.stacked is not None:
            return self.stacked[index]
        return to_tensor(self._levels(self._rows[index]))

    def _levels(self, rows: Any) -> NDArray:
        """Images of some rows, ``[..., H, W, C]``, in memory."""
        levels = np.array(self._images[rows])
        levels = levels.astype(levels.dtype.newbyteorder("="), copy=False)
        levels = levels if self._images.ndim == 4 else levels[..., None]
        return convert(levels, self.channels, self.bits)

    def _read_labels(self, arrays: "_Arrays", name: str, path: str, count: int) -> None:
        labels, where = arrays.read(name), f"{name} in {path}"
        train = labels
        for kind in SPLIT_NAMES["test"]:
            for own in (
                re.sub(f"^{kind}_", "train_", name),
                re.sub(f"_{kind}$", "_train", name),
            ):
                train = arrays.read(own) if own != name and own in arrays.names else train
        if labels.ndim not in (1, 2) or len(labels) != count:
            raise ValueError(
                f"{where} must have a label for each of {count} images, [N] or [N, K], got"
                f" {list(labels.shape)}"
            )
        columns, of_train = (each.reshape(len(each), -1).T for each in (labels, train))
        if len(columns) != len(of_train):
            raise ValueError(
                f"{where} must have as many labels of each image as those to train on,"
                f" {len(of_train)}, got {len(columns)}"
            )
        for k, (column, all_names) in enumerate(zip(columns, of_train, strict=True)):
            factor = "class" if len(columns) == 1 else f"class {k}"
            names = class_names(all_names)
            self.labels[factor] = class_ids(column, names, where)[self._rows]
            self.classes[factor] = numbered(names, class_ids(all_names, names, where))


class _Arrays:
    """Arrays by name, of a ``.npz`` file, a folder of ``.npy`` files, or one of these."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._readers: dict[str, Callable[[], NDArray]] = {}
        if path.is_dir():
            files = sorted(path.glob("*.npy"))
            self._readers = {file.stem: partial(_load, file) for file in files}
            if not files:
                raise FileNotFoundError(f"no arrays (.npy) in {path}; a .npz is named itself")
        elif not path.is_file():
            raise FileNotFoundError(f"there is no folder or file of arrays at {path}")
        elif path.suffix.lower() == ".npy":
            self._readers = {path.stem: partial(_load, path)}
        else:
            archive = _load(path)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError(f"{path} is neither a .npy nor a .npz file of NumPy's")
            self._readers = {name: partial(archive.__getitem__, name) for name in archive.files}
        self.names = list(self._readers)
        self._alone = not path.is_dir() and path.suffix.lower() == ".npy"

    def find(self, name: str, split: Split) -> tuple[str, bool]:
        """The array of a split's images, and whether it is of that split alone."""
        if self._alone:
            return self.names[0], False
        if any(each in self.names for each in _of_split(name, "train")):
            for kind in SPLIT_NAMES[split]:
                for each in _of_split(name, kind):
                    if each in self.names:
                        return each, True
            wanted = " or ".join(f"{kind}_{name}" for kind in SPLIT_NAMES[split])
            raise FileNotFoundError(f"{self._path} has train_{name} but no {wanted}")
        if name in self.names:
            return name, False
        raise ValueError(
            f"{self._path} has no array {name} or train_{name} (but {', '.join(self.names)}):"
            " data.image_column says what images are called"
        )

    def labels_of(self, found: str, images: str, labels: str | None) -> str | None:
        """The array of the labels of an array of images; None if there is none by default."""
        name = labels or LABELS
        for kind in chain(*SPLIT_NAMES.values()):
            for own, theirs in zip(_of_split(images, kind), _of_split(name, kind), strict=True):
                if own == found:
                    return self._labels_called(theirs, labels is None)
        return self._labels_called(name, labels is None)

    def _labels_called(self, name: str, may_be_missing: bool) -> str | None:
        if name in self.names and not self._alone:
            return name
        if may_be_missing:
            return None
        raise ValueError(f"{self._path} has no array {name} (but {', '.join(self.names)})")

    def read(self, name: str) -> NDArray:
        """An array; those of ``.npy`` files stay where they are until they are used."""
        try:
            return self._readers[name]()
        except (MemoryError, FileNotFoundError):
            raise
        except Exception as error:  # of a damaged archive: nearly anything
            raise ValueError(f"cannot read {name} in {self._path}: {error}") from error


def _of_split(name: str, kind: str) -> tuple[str, str]:
    return f"{kind}_{name}", f"{name}_{kind}"


def _load(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"cannot read {path}: {error or type(error).__name__}") from error
