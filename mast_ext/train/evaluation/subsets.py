"""Some images of a source, such as those whose labels are used."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mast_ext.data import Source


class Subset:
    """Some images of a source, as a source.

    Args:
        source: All images.
        indices: Which of them, ``[n]`` integers.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source, self.indices = source, indices
        self.name, self.classes, self.skipped = source.name, source.classes, source.skipped
        self.channels, self.bits = source.channels, source.bits
        self.sizes = source.sizes[indices]
        self.labels = {name: ids[indices] for name, ids in source.labels.items()}
        stacked = source.stacked
        self.stacked = None if stacked is None else stacked[torch.from_numpy(indices)]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        """Image ``index`` of the subset, ``[C, H, W]`` uint8 or uint16."""
        return self.source.image(int(self.indices[index]))


def labeled_share(
    labels: Mapping[str, NDArray[np.int64]], share: float, seed: int
) -> NDArray[np.int64]:
    """Which images keep their labels when only a share of them is to be used.

    With one factor every class keeps the same share of its images, rounded, and one at least
    (class-balanced, as SimCLR's subsets of ImageNet with 1 % and 10 % of the labels; those are
    lists of files, these are drawn). With several factors the images are drawn without regard to
    them. A smaller share is part of a larger one with the same seed.

    Args:
        labels: Class ids of every factor, each ``[N]``.
        share: In ``(0, 1]``; 1 keeps all.
        seed: Seed of the choice.

    Returns:
        Indices ``[n]``, ascending.

    Raises:
        ValueError: ``share`` of the images are fewer than the classes of a factor.
    """
    count = len(next(iter(labels.values())))
    wanted = round(share * count)
    for factor, ids in labels.items():
        classes = len(np.unique(ids))
        if wanted < classes:
            of = "" if factor == "class" else f" of {factor}"
            raise ValueError(
                f"{100 * share:g}% of the {count} training images are {wanted}, fewer than the"
                f" {classes} classes{of}"
            )
    if share == 1:
        return np.arange(count)
    if len(labels) > 1:
        return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])
    chosen = []
    (ids,) = labels.values()
    for each in np.unique(ids):
        members = np.flatnonzero(ids == each)
        order = np.random.default_rng([seed, each]).permutation(len(members))
        chosen.append(members[order[: max(1, round(share * len(members)))]])
    return np.sort(np.concatenate(chosen))
