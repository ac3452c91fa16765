"""Class ids of labels that are numbers or names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mast_ext.data.splits import SplitError

_MOST_CLASSES = 1 << 20


def class_names(values: Any) -> list[str]:
    """The names of classes, sorted; empty of labels that are numbers."""
    array = np.asarray(values)
    return [] if array.dtype.kind in "iub" else sorted({str(value) for value in array.tolist()})


def class_ids(values: Any, names: Sequence[str], where: str) -> NDArray[np.int64]:
    """Class ids ``[N]`` of labels.

    Args:
        values: Numbers from 0, or names, ``[N]``.
        names: Names of the training split's classes, in the order of their ids; empty for numbers.
        where: What the labels are of, for messages.

    Raises:
        SplitError: A name is not among the training split's.
        ValueError: A label is neither a number from 0 nor a name.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        ids = array.astype(np.int64)
        for wrong in np.flatnonzero((ids < 0) | (ids >= _MOST_CLASSES))[:1]:
            raise ValueError(f"{where}: label {ids[wrong]} of image {wrong} is out of range")
        return ids
    listed = array.tolist()
    if not all(isinstance(value, str) for value in listed):
        raise ValueError(f"{where}: labels must be integers or names, got {array.dtype}")
    known = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(listed) - known.keys())
    if unknown:
        raise SplitError(f"{where} has classes that the training split has not: {unknown[0]}")
    return np.array([known[name] for name in listed], np.int64)


def numbered(names: Sequence[str], ids: NDArray[np.int64]) -> list[str]:
    """The names of classes; their numbers where they have none."""
    return list(names) or [str(i) for i in range(int(ids.max()) + 1)]
