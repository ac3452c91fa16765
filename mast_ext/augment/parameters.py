"""The one schema of augmentation parameters: `[V, B, P]` float32 with named columns.

A row says everything about one view of one image; samplers write rows, renderers and encoders of
parameters read them. Neutral values (factor 1, shift 0, sigma 0) stand where an operation was not
applied, so a row can be read without looking at its gates. The constants that standardize rows
follow from the recipe by integration, none is measured.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mast_ext.augment.recipe import AugmentationRecipe

COLUMNS = (
    *("y", "x", "h", "w", "flip", "jitter", "brightness", "contrast", "saturation", "hue"),
    *("grayscale", "blur", "sigma", "solarize"),
)
"""Names of the columns: the crop box relative to the image, gates (0 or 1), factors, the hue shift
in turns, the blur's standard deviation in pixels."""

COLUMN = {name: position for position, name in enumerate(COLUMNS)}

GROUPS = {
    "crop": slice(0, 4),
    "flip": slice(4, 5),
    "color": slice(5, 10),
    "grayscale": slice(10, 11),
    "blur": slice(11, 13),
    "solarize": slice(13, 14),
}
"""Columns of every augmentation."""

APPEARANCE = slice(GROUPS["color"].start, GROUPS["solarize"].stop)
"""Columns of what an augmentation does to pixels where they are."""

SHAREABLE = {
    "crop": ("y", "x", "h", "w"),
    "flip": ("flip",),
    "geometry": ("y", "x", "h", "w", "flip"),
    "brightness": ("jitter", "brightness", "solarize"),
    "contrast": ("jitter", "contrast", "solarize"),
    "saturation": ("jitter", "saturation", "grayscale", "solarize"),
    "hue": ("jitter", "hue", "grayscale", "solarize"),
    "blur": ("blur", "sigma"),
}
"""What two views of an image may have in common, and the columns that have to agree for it: equal
hue shifts are no common hue where one of the views is gray."""

NEUTRAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The row of an image that nothing was done to."""

ATTEMPTS = 10
"""Boxes tried before the central one is taken, as in torchvision's ``RandomResizedCrop``."""


class AugmentationParameters:
    """Parameter rows of a batch of views, with access by name.

    Attributes:
        rows: ``[V, B, P]`` float32 with ``P = len(COLUMNS)``.

    Raises:
        ValueError: ``rows`` does not have the shape ``[V, B, 14]``.
        TypeError: ``rows`` is not float32.
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.ndim != 3 or rows.shape[-1] != len(COLUMNS):
            expected = f"[V, B, {len(COLUMNS)}]"
            raise ValueError(f"rows must have shape {expected}, got {list(rows.shape)}")
        if rows.dtype != torch.float32:
            raise TypeError(f"rows must be float32, got {rows.dtype}")
        self.rows = rows

    def column(self, name: str) -> Tensor:
        """One column, ``[V, B]`` float32.

        Raises:
            ValueError: There is no column of this name.
        """
        if name not in COLUMN:
            raise ValueError(f"column must be one of {', '.join(COLUMNS)}, got {name!r}")
        return self.rows[..., COLUMN[name]]

    def group(self, name: str) -> Tensor:
        """The columns of one augmentation, ``[V, B, n]`` float32.

        Raises:
            ValueError: There is no augmentation of this name.
        """
        if name not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {name!r}")
        return self.rows[..., GROUPS[name]]

    def standardized(self, *recipes: AugmentationRecipe) -> Tensor:
        """Rows with mean 0 and variance 1 under the recipe's own distribution, ``[V, B, P]``.

        The constants are those of a composed view of a large square image (see `moments`). A
        column that the recipe never changes is only centered, so it becomes 0.

        Args:
            *recipes: What the views were made with. Of several recipes, say those of every view,
                the distribution is the mixture: the same parameters are the same numbers in all
                views.
        """
        shift, scale = _standardization(recipes, self.rows.device, self.rows.dtype)
        return (self.rows - shift) / scale

    def crop_iou(self, i: int, j: int) -> Tensor:
        """Intersection over union of the crop boxes of views ``i`` and ``j``, ``[B]`` float32.

        A flip does not enter: it mirrors the pixels, not the region they come from.
        """
        crops = self.group("crop")
        boxes = torch.stack((crops[i], crops[j]))
        start, extent = boxes[..., :2], boxes[..., 2:]
        overlap = ((start + extent).amin(0) - start.amax(0)).clamp(min=0).prod(-1)
        areas = extent.prod(-1)
        return overlap / (areas[0] + areas[1] - overlap)

    def pair_differences(self, i: int, j: int, *recipes: AugmentationRecipe) -> Tensor:
        """How far apart views ``i`` and ``j`` are made, the same for ``j`` and ``i``.

        Args:
            i: A view.
            j: Another one.
            *recipes: What the views were made with, as in `standardized`.

        Returns:
            ``[B, P + 3]`` float32: the squared differences of the standardized columns, the crops'
            intersection over union, and the sum and the absolute difference of their areas.
        """
        rows, areas = self.standardized(*recipes), self.group("crop")[..., 2:].prod(-1)
        crops = (self.crop_iou(i, j), areas[i] + areas[j], (areas[i] - areas[j]).abs())
        return torch.cat(((rows[i] - rows[j]).square(), torch.stack(crops, dim=-1)), dim=-1)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _standardization(
    recipes: tuple[AugmentationRecipe, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Shift and scale of every column, ``[P]``; kept, as a copy to a GPU is waited for."""
    shift, scale = (torch.tensor(x, device=device, dtype=dtype) for x in mixture_moments(recipes))
    return shift, torch.where(scale > 0, scale, torch.ones_like(scale))


@functools.lru_cache(maxsize=64)
def moments(recipe: AugmentationRecipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every column under the recipe, ``P`` numbers each.

    They are exact for gates, factors and sigma (a neutral value mixed with a uniform draw) and an
    integral for the crop box, over area and log ratio as torchvision's ``RandomResizedCrop`` draws
    them, of a square image so large that rounding to pixels does not matter.
    """
    jitter = recipe.jitter if "color" in recipe.augmentations else 0.0
    pairs = {
        **_crop_moments(recipe),
        "flip": _gate(recipe.flip),
        "jitter": _gate(jitter),
        "grayscale": _gate(recipe.grayscale),
        "blur": _gate(recipe.blur),
        "sigma": _gated_uniform(recipe.blur, 0.0, *recipe.blur_sigma),
        "solarize": _gate(recipe.solarize),
    }
    for name in ("brightness", "contrast", "saturation", "hue"):
        neutral = NEUTRAL[COLUMN[name]]
        pairs[name] = _gated_uniform(jitter, neutral, *recipe.factor_range(name))
    means, variances = zip(*(pairs[name] for name in COLUMNS), strict=True)
    # Below 1e-12 a variance is what cancellation leaves of zero.
    return means, tuple(math.sqrt(v) if v > 1e-12 else 0.0 for v in variances)


def mixture_moments(
    recipes: Sequence[AugmentationRecipe],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every column of a view of a random one of the recipes."""
    if len(set(recipes)) == 1:
        return moments(recipes[0])
    means, stds = np.moveaxis(np.array([moments(recipe) for recipe in recipes]), 1, 0)
    mean = means.mean(0)
    variance = (stds**2 + (means - mean) ** 2).mean(0)
    return tuple(mean.tolist()), tuple(np.sqrt(np.where(variance > 1e-12, variance, 0)).tolist())


def _gate(probability: float) -> tuple[float, float]:
    return probability, probability * (1 - probability)


def _gated_uniform(p: float, neutral: float, low: float, high: float) -> tuple[float, float]:
    """Mean and variance of ``neutral`` with probability ``1 - p``, else uniform in the range."""
    middle = (low + high) / 2
    within = p * (high - low) ** 2 / 12
    between = p * (1 - p) * (middle - neutral) ** 2
    return (1 - p) * neutral + p * middle, within + between


def _crop_moments(recipe: AugmentationRecipe, nodes: int = 1000) -> dict[str, tuple[float, float]]:
    """Moments of y, x, h, w by the midpoint rule over area and log ratio (unit square image)."""
    neutral = {"y": 0.0, "x": 0.0, "h": 1.0, "w": 1.0}
    if "crop" not in recipe.augmentations:
        return {name: (value, 0.0) for name, value in neutral.items()}
    middles = (np.arange(nodes) + 0.5) / nodes
    area = np.interp(middles, (0, 1), recipe.crop_scale)[:, None]
    ratio = np.exp(np.interp(middles, (0, 1), np.log(recipe.crop_ratio)))[None, :]
    h, w = np.sqrt(area / ratio), np.sqrt(area * ratio)
    fits = (h <= 1) & (w <= 1)
    missed = float((1 - fits.mean()) ** ATTEMPTS)  # then the central box is taken
    low, high = recipe.crop_ratio
    central_w, central_h = min(1.0, high), min(1.0, 1 / low)

    result = {}
    for start, extent, sides, central in (("y", "h", h, central_h), ("x", "w", w, central_w)):
        side = sides[fits] if fits.any() else np.array([central])
        slack = 1 - side
        # The start is uniform in [0, slack]: its second moment is slack² / 3.
        raw = {start: (slack.mean() / 2, (slack**2).mean() / 3), extent: _first_two(side)}
        fixed = {start: (1 - central) / 2, extent: central}
        for name, (first, second) in raw.items():
            mean = (1 - missed) * first + missed * fixed[name]
            square = (1 - missed) * second + missed * fixed[name] ** 2
            result[name] = (float(mean), float(square - mean**2))
    return result


def _first_two(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float((values**2).mean())
