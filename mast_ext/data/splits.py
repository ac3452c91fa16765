"""Which images are of the training split and which of the test split, and how many are kept."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]

TEST_FRACTION = 0.1
"""Share of the images that is the test split of what has no split of its own."""

SPLIT_NAMES = {"train": ("train",), "test": ("test", "val")}
"""What arrays and archives of each split have in their names."""

FOLDER_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
"""What folders of each split are called, in any case of letters; the first that is there counts."""


class SplitError(ValueError):
    """A split has no images, or labels that the training split has not; the message says which."""


def split_folders(root: Path, split: str) -> list[Path]:
    """The folders of a split, by `FOLDER_NAMES`; of two that differ in case, that in lower case."""
    with os.scandir(root) as entries:
        names = sorted(each.name for each in entries if each.is_dir())
    folders = {name.lower(): name for name in names}  # lower case comes last
    return [root / folders[name] for name in FOLDER_NAMES[split] if name in folders]


def spread(count: int, most: int | None) -> NDArray[np.int64]:
    """Positions of ``most`` items (all by default) spread evenly over ``count``."""
    if most is None or most >= count:
        return np.arange(count)
    return np.arange(most) * count // most


def share(keys: Sequence[bytes], split: str) -> NDArray[np.int64]:
    """Positions of a split's items: a tenth, chosen by a hash of the keys, is the test split.

    Args:
        keys: What the items are called.
        split: ``train`` or ``test``.
    """
    count = max(round(TEST_FRACTION * len(keys)), 1) if len(keys) > 1 else 0
    by_hash = sorted(range(len(keys)), key=lambda i: (zlib.crc32(keys[i]), i))
    test = np.zeros(len(keys), bool)
    test[by_hash[:count]] = True
    return np.flatnonzero(test == (split == "test"))
