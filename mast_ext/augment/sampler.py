"""Draws augmentation parameters: stateless, keyed, in plain numpy.

Every random number is a hash of (seed, epoch, sample index, stream, position): splitmix64 started
from a key that mixes the first four. So a sample's parameters depend neither on the batch it is
in, nor on its neighbors, the number of ranks or threads, and a run is resumed with three integers.
Every column has its own position, so switching an augmentation on does not change another's draw.

Source of the hash: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mast_ext.augment.parameters import ATTEMPTS, COLUMN, GROUPS, NEUTRAL
from mast_ext.augment.recipe import AugmentationRecipe

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

# Positions of the uniform numbers of a row within its stream.
_AREA, _RATIO = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE = range(20, 28)
_FACTORS = {"brightness": 28, "contrast": 29, "saturation": 30, "hue": 31}
_UNIFORMS = 32


def keys(seed: int, epoch: int, indices: ArrayLike, stream: int = 0) -> NDArray[np.uint64]:
    """One key for each sample: ``[B]`` uint64 from (seed, epoch, sample index, stream)."""
    state = np.full(1, int(seed) & _MASK, np.uint64)
    for word in (epoch, stream):
        state = _mix(state + np.uint64(_GOLDEN)) ^ np.uint64(int(word) & _MASK)
    state = _mix(state + np.uint64(_GOLDEN)) ^ np.asarray(indices, np.int64).astype(np.uint64)
    return _mix(state + np.uint64(_GOLDEN))


def uniforms(key: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """``count`` numbers in ``[0, 1)`` for every key: ``[..., count]`` float64 of 53 bits."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(key[..., None] + steps) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order of an epoch, ``[length]`` int64: samples sorted by a hash of their index."""
    return np.argsort(keys(seed, epoch, np.arange(length), stream=-1), kind="stable")


def center_rows(sizes: ArrayLike) -> NDArray[np.float32]:
    """Rows of the plain center view (largest central square, nothing else), ``[B, P]`` float32.

    Args:
        sizes: Height and width of every image, ``[B, 2]`` integers.
    """
    sizes = _checked_sizes(sizes)
    side = sizes.min(axis=1)
    box = np.stack(((sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2, side, side), axis=1)
    rows = np.tile(np.array(NEUTRAL), (len(sizes), 1))
    rows[:, GROUPS["crop"]] = box / sizes[:, [0, 1, 0, 1]]
    return rows.astype(np.float32)


def composed_rows(
    recipe: AugmentationRecipe,
    seed: int,
    epoch: int,
    indices: ArrayLike,
    sizes: ArrayLike,
    view: int,
    *,
    jittered: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Rows of fully augmented views: every augmentation drawn as the recipe says.

    Args:
        recipe: Probabilities and ranges.
        seed: Seed of the run.
        epoch: Epoch, at least 0.
        indices: Sample indices in the source, ``[B]`` integers.
        sizes: Height and width of every image, ``[B, 2]`` integers.
        view: Stream of the draw; views of different streams are independent.
        jittered: Whose colors are changed, ``[B]``; drawn by default.

    Returns:
        ``[B, P]`` float32.
    """
    sizes = _checked_sizes(sizes)
    u = uniforms(keys(seed, epoch, indices, view), _UNIFORMS)
    rows = np.tile(np.array(NEUTRAL), (len(sizes), 1))
    rows[:, GROUPS["crop"]] = _crop(recipe, u, sizes)
    rows[:, COLUMN["flip"]] = u[:, _FLIP] < recipe.flip
    if jittered is None:
        jittered = u[:, _JITTER] < recipe.jitter
    rows[:, GROUPS["color"]] = _color(recipe, u, jittered)
    rows[:, COLUMN["grayscale"]] = u[:, _GRAYSCALE] < recipe.grayscale
    rows[:, GROUPS["blur"]] = _blur(recipe, u, u[:, _BLUR] < recipe.blur)
    rows[:, COLUMN["solarize"]] = u[:, _SOLARIZE] < recipe.solarize
    return rows.astype(np.float32)


def _crop(
    recipe: AugmentationRecipe, u: NDArray[np.float64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Relative boxes ``[B, 4]`` (y, x, h, w), drawn as ``RandomResizedCrop.get_params`` does."""
    if "crop" not in recipe.augmentations:
        return center_rows(sizes)[:, GROUPS["crop"]].astype(np.float64)
    height, width = sizes[:, :1], sizes[:, 1:]
    low, high = recipe.crop_scale
    log_low, log_high = np.log(recipe.crop_ratio)
    area = height * width * (low + (high - low) * u[:, _AREA])
    ratio = np.exp(log_low + (log_high - log_low) * u[:, _RATIO])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = (np.arange(len(sizes)), fits.argmax(axis=1))
    h, w, fitted = h[first], w[first], fits[first]
    height, width = height[:, 0], width[:, 0]
    top = np.floor(u[:, _TOP] * (height - h + 1)).astype(np.int64)
    left = np.floor(u[:, _LEFT] * (width - w + 1)).astype(np.int64)

    # The largest central box whose ratio lies within the recipe's range.
    narrow, wide = recipe.crop_ratio
    tall_image, wide_image = width / height < narrow, width / height > wide
    central_h = np.where(tall_image, np.rint(width / narrow), height).clip(1).astype(np.int64)
    central_w = np.where(wide_image, np.rint(height * wide), width).clip(1).astype(np.int64)
    h, w = np.where(fitted, h, central_h), np.where(fitted, w, central_w)
    top = np.where(fitted, top, (height - h) // 2)
    left = np.where(fitted, left, (width - w) // 2)
    return np.stack((top / height, left / width, h / height, w / width), axis=1)


def _color(
    recipe: AugmentationRecipe, u: NDArray[np.float64], applied: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Gate and factors of the color jitter, ``[B, 5]``; neutral where it is not applied."""
    values = np.tile(np.array(NEUTRAL[GROUPS["color"]]), (len(u), 1))
    if "color" not in recipe.augmentations:
        return values
    values[:, 0] = applied
    for name, position in _FACTORS.items():
        low, high = recipe.factor_range(name)
        drawn = low + (high - low) * u[:, position]
        column = COLUMN[name] - GROUPS["color"].start
        values[:, column] = np.where(applied, drawn, values[:, column])
    return values


def _blur(
    recipe: AugmentationRecipe, u: NDArray[np.float64], applied: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Gate and sigma of the blur, ``[B, 2]``; sigma 0 where it is not applied."""
    low, high = recipe.blur_sigma
    sigma = np.where(applied, low + (high - low) * u[:, _SIGMA], 0.0)
    return np.stack((applied.astype(np.float64), sigma), axis=1)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of splitmix64: a bijection of 64 bits in which every bit depends on every bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _checked_sizes(sizes: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(sizes, np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or (array < 1).any():
        raise ValueError(
            f"sizes must be [B, 2] positive heights and widths, got shape {list(array.shape)}"
        )
    return array
