"""Which images are of the training split and which of the test split, and how many are kept."""

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]

TEST_FRACTION = 0.1
"""Share of the images that is the test split of what has no split of its own."""

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
"""Names of the folders of each split."""


class SplitError(ValueError):
    """A split has no images, or labels that the training split has not; the message says which."""


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
