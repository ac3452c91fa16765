"""Block masks: which patches of a view are hidden from the student (masked image modeling).

Blockwise masking of BEiT (Bao et al. 2022), with the random ratio of iBOT (Zhou et al. 2022).
Drawn like augmentation parameters: a view's mask is a function of (seed, epoch, sample, view), and
whole batches are drawn at once, block after block.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mast_ext.augment import sampler
from mast_ext.checks import OptionError, require_integers, require_number, require_range

BLOCKS = 24
"""Blocks tried on a mask; one that hides nothing new, or too much, is left out."""

_STREAM = 1 << 21  # streams of masks lie above those of views


@dataclass(frozen=True)
class HiddenPlaces:
    """Where a batch's masks hide patches.

    Found while the masks are on the host: to find them in masks on a GPU, the host would have to
    wait for their number.

    Attributes:
        flat: Indices of the hidden patches in ``masks.flatten()``, ``[P]`` int64, ascending.
        counts: Hidden patches of every view of every image, ``[V, B]`` int64, on the host.
        patches: Patches of a view, hidden or not.
    """

    flat: Tensor
    counts: NDArray[np.int64]
    patches: int

    @classmethod
    def of(cls, masks: NDArray[np.bool_]) -> "HiddenPlaces":
        """The places that masks ``[V, B, H, W]`` hide."""
        flat = torch.from_numpy(np.flatnonzero(masks))
        return cls(flat, masks.sum((2, 3)), masks.shape[2] * masks.shape[3])

    def of_first_views(self, views: int) -> "HiddenPlaces":
        """The places that ``masks[:views]`` hide."""
        counts = self.counts[:views]
        return replace(self, flat=self.flat[: counts.sum()], counts=counts)

    def split(self, parts: int) -> "list[HiddenPlaces]":
        """The places that each of ``masks.chunk(parts, 1)`` hides, whose sizes must be equal."""
        views, images = self.counts.shape
        size = images // parts
        ends = np.append(0, self.counts.cumsum())  # of every view of every image, in this order
        found = []
        for part in range(parts):
            pieces = []
            for view in range(views):
                first = view * images + part * size
                # Indices move down by the images that the part does not have: those before it of
                # this view, and all others of the views before.
                moved = (first - view * size) * self.patches
                pieces.append(self.flat[ends[first] : ends[first + size]] - moved)
            counts = self.counts[:, part * size : (part + 1) * size]
            found.append(replace(self, flat=torch.cat(pieces), counts=counts))
        return found

    def map(self, function: Callable[[Tensor], Tensor]) -> "HiddenPlaces":
        """The same with a function applied to ``flat``, such as a copy to a GPU."""
        return replace(self, flat=function(self.flat))


@dataclass(frozen=True)
class BlockMasks:
    """Draws masks of rectangular blocks on a grid of patches.

    A view is masked with probability ``probability``; then its share of hidden patches is drawn
    uniformly from ``ratio`` and rounded to a number of patches, at least 1. Blocks of random place,
    area and shape are added while they fit into that number; what they leave of it is hidden patch
    by patch.

    Attributes:
        grid: Height and width of a view in patches.
        probability: How many views are masked, in ``[0, 1]``.
        ratio: Range of the share of hidden patches, in ``[0, 1]``; not 0 at both ends unless no
            view is masked.
        aspect: Blocks are at most this many times higher than wide, or wider than high.

    Raises:
        ValueError: A value lies out of range, or views are to be masked without hiding anything.
    """

    grid: tuple[int, int]
    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    aspect: float = 10 / 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", require_integers("grid", self.grid, 2, low=1))
        require_number("probability", self.probability, 0, 1, expected="a probability in [0, 1]")
        low, high = require_range("ratio", self.ratio, 1, from_zero=True)
        object.__setattr__(self, "ratio", (low, high))
        if high == 0 and self.probability > 0:
            raise OptionError(
                f"ratio must have high > 0, as a masked view hides patches, got {low} and {high} "
                f"with probability {self.probability} (0 masks no view)"
            )
        require_number("aspect", self.aspect, 1)

    def draw(self, seed: int, epoch: int, indices: ArrayLike, views: int) -> NDArray[np.bool_]:
        """Masks of the first ``views`` views of a batch.

        Args:
            seed: Seed of the run.
            epoch: Epoch, at least 0.
            indices: Sample indices in the source, ``[B]`` integers.
            views: How many views.

        Returns:
            ``[views, B, H, W]``, true where a patch is hidden.
        """
        height, width = self.grid
        patches = height * width
        keys = np.stack([sampler.keys(seed, epoch, indices, _STREAM + v) for v in range(views)])
        u = sampler.uniforms(keys.ravel(), 2 + 4 * BLOCKS + patches)
        masked = u[:, 0] < self.probability
        low, high = self.ratio
        # A small share of a small grid rounds to nothing.
        target = np.maximum(np.rint((low + (high - low) * u[:, 1]) * patches), 1) * masked

        masks = np.zeros((len(u), height, width), bool)
        for block in range(BLOCKS):
            left = target - masks.sum((1, 2))
            if not left.any():
                break
            added = self._block(u[:, 2 + 4 * block : 6 + 4 * block], left) & ~masks
            count = added.sum((1, 2))
            masks |= added & ((count > 0) & (count <= left))[:, None, None]

        # The patches that are still to be hidden: those of the smallest numbers among the others.
        order = np.where(masks.reshape(len(u), -1), -1.0, u[:, 2 + 4 * BLOCKS :]).argsort(axis=1)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(patches)[None], axis=1)
        return (rank < target[:, None]).reshape(views, -1, height, width)

    def _block(self, u: NDArray[np.float64], most: NDArray[np.float64]) -> NDArray[np.bool_]:
        """One block for every mask, of an area from the smallest up to ``most`` patches."""
        height, width = self.grid
        smallest = max(1, (min(self.grid) // 3) ** 2)  # as BEiT takes 16 of a grid of 14 x 14
        area = smallest + u[:, 0] * np.maximum(most - smallest, 0)
        ratio = self.aspect ** (2 * u[:, 1] - 1)
        h = np.clip(np.rint(np.sqrt(area * ratio)), 1, height)
        w = np.clip(np.rint(np.sqrt(area / ratio)), 1, width)
        top, left = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        y, x = np.arange(height), np.arange(width)
        rows = (y >= top[:, None]) & (y < (top + h)[:, None])
        columns = (x >= left[:, None]) & (x < (left + w)[:, None])
        return rows[:, :, None] & columns[:, None, :]
