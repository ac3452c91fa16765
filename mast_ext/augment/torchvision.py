"""Renders views on the CPU, with the pixels that torchvision's functional API gives.

Whole batches are rendered at once, in numpy, and the result is exact: pixels are integer levels
between operations (as in torchvision's uint8 path) and filter weights are multiples of a power of
two, so that all sums of resize and blur are exact and do not depend on the order of summation: in
float32 those of 8 bits, in float64 those of 16. Hence the same rows give the same bits whatever the
batch, the thread count or the BLAS. numpy rather than torch, because a renderer works beside a
training step: torch's operator threads would fight over the cores with the step's, and autocast or
a lowered matmul precision would reach in here. Several batches are rendered in parallel by the
loader's threads.

Images have any number of channels. Where torchvision has no contrast (neither gray nor RGB) each
channel is changed about its own mean: bands of a satellite differ in their range.

Images up to `DENSE_LIMIT` pixels a side are cropped, resized and flipped by two batched matrix
products; larger ones by torchvision, one at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from mast_ext.augment.parameters import COLUMN, COLUMNS, GROUPS
from mast_ext.augment.recipe import AugmentationRecipe
from mast_ext.augment.rendering import check_crops, empty, within

Levels = NDArray[np.floating]  # [N, C, S, S], integers in [0, 255] or, float64, in [0, 65535]
Rows = NDArray[np.float32]  # [N, P]
Weights = NDArray[np.floating]  # [N, S, L], of a filter along one axis

DENSE_LIMIT = 64
"""Largest side of an image, in pixels, whose resize is a dense matrix product."""

_CHUNK_PIXELS = 1 << 16  # pixels worked on at a time: planes stay in the cache
_BLOCK = 32  # output pixels of a filter computed by one product


class _Precision(NamedTuple):
    """Of numbers in filters, so that every sum of them is exact.

    Attributes:
        levels: The type of levels and weights.
        raw: Bits of a weight before all are made to sum to 1.
        weight: Bits of a weight then.
        fraction: Bits behind the point of a level between two filters.
    """

    levels: type[np.floating]
    raw: int
    weight: int
    fraction: int


_PRECISION = {
    torch.uint8: _Precision(np.float32, 16, 13, 3),  # with the 8 bits of a level: the 24 of float32
    torch.uint16: _Precision(np.float64, 30, 24, 8),  # with the 16 of a level: 48 of float64's 53
}

_TOP = {torch.uint8: 255, torch.uint16: 65535}


def render(
    images: Tensor | Sequence[Tensor],
    rows: Tensor,
    recipe: AugmentationRecipe,
    *,
    for_gpu: bool = False,
) -> Tensor:
    """Renders the views that the rows describe.

    Args:
        images: uint8 or uint16 images, ``[B, C, H, W]``, or a sequence of B tensors ``[C, H, W]``;
            those of 3 channels are RGB.
        rows: Augmentation parameters, ``[V, B, P]`` float32.
        recipe: Size of the views, solarization threshold and normalization.
        for_gpu: Leaves normalization of 8 bits to the GPU that the views are to be copied to.

    Returns:
        Normalized views, ``[V, B, C, S, S]`` float32; those ``for_gpu`` are in page-locked memory,
        and levels, uint8, if the images are of 8 bits.

    Raises:
        ValueError: Shapes or channels do not fit, a crop box is empty or leaves its image, or
            images without color are to change theirs.
        TypeError: An image is neither uint8 nor uint16.
    """
    rows = torch.as_tensor(rows, dtype=torch.float32)
    dtype = _check(images, rows, recipe)
    views, batch = rows.shape[:2]
    parameters = rows.numpy()
    shape = (views, batch, recipe.channels, recipe.size, recipe.size)
    as_levels = for_gpu and dtype == torch.uint8
    result = empty(shape, torch.uint8 if as_levels else torch.float32, for_gpu=for_gpu)
    out = result.numpy()
    chunk = max(1, _CHUNK_PIXELS // recipe.size**2)
    for members, stack in _same_size_groups(images):
        for start in range(0, len(members), chunk):
            part = slice(start, start + chunk)
            for view in range(views):
                chosen = parameters[view, members[part]]
                levels = _geometry(stack[part], chosen, recipe.size, dtype)
                _photometry(levels, chosen, recipe, dtype)
                if not as_levels:
                    levels = _normalized(levels, recipe, _TOP[dtype])
                out[view, members[part]] = levels
    return result


def _check(
    images: Tensor | Sequence[Tensor], rows: Tensor, recipe: AugmentationRecipe
) -> torch.dtype:
    """The type of all images; raises what `render` does."""
    if rows.ndim != 3 or rows.shape[1:] != (len(images), len(COLUMNS)):
        expected = f"[V, {len(images)}, {len(COLUMNS)}] for {len(images)} images"
        raise ValueError(f"rows must have shape {expected}, got {list(rows.shape)}")
    # A stack is judged as one image of its kind.
    each = [images[0]] if isinstance(images, Tensor) and len(images) else list(images)
    for image in each:
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"images must have shape [C, H, W], got {list(image.shape)}")
        if len(image) != recipe.channels:
            raise ValueError(
                f"images must have a channel for each of the {recipe.channels} numbers of mean and"
                f" std, got shape {list(image.shape)}"
            )
        if image.dtype not in _TOP:
            raise TypeError(f"images must be uint8 or uint16, got {image.dtype}")
        if image.dtype != each[0].dtype:
            raise TypeError(f"images must be of one type, got {each[0].dtype} and {image.dtype}")
    if recipe.channels != 3:
        for name, neutral in (("saturation", 1), ("hue", 0), ("grayscale", 0)):
            if (rows[..., COLUMN[name]] != neutral).any():
                raise ValueError(
                    f"rows change {name}, and images of {recipe.channels} channels have no color"
                )
    check_crops(rows)
    return each[0].dtype if each else torch.uint8


def _same_size_groups(
    images: Tensor | Sequence[Tensor],
) -> list[tuple[NDArray[np.intp], Tensor | list[Tensor]]]:
    """Positions in the batch and images of each size; small images of one size are stacked."""
    if isinstance(images, Tensor):
        return [(np.arange(len(images)), images)]
    positions: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(images):
        height, width = image.shape[1:]
        # Large images are rendered one at a time: one group holds them all.
        large = max(height, width) > DENSE_LIMIT
        positions.setdefault((0, 0) if large else (height, width), []).append(position)
    groups: list[tuple[NDArray[np.intp], Tensor | list[Tensor]]] = []
    for size, members in positions.items():
        chosen = [images[position] for position in members]
        groups.append((np.array(members), chosen if size == (0, 0) else torch.stack(chosen)))
    return groups


def _geometry(images: Tensor | list[Tensor], rows: Rows, size: int, dtype: torch.dtype) -> Levels:
    """Crop, antialiased bilinear resize and flip: levels ``[N, C, S, S]``."""
    boxes, flipped = rows[:, GROUPS["crop"]], rows[:, COLUMN["flip"]] > 0.5
    if isinstance(images, Tensor) and max(images.shape[-2:]) <= DENSE_LIMIT:
        height, width = images.shape[-2:]
        y, x, h, w = boxes.T
        precision = _PRECISION[dtype]
        across = _resize_weights(x, w, width, size, flipped, precision)
        down = _resize_weights(y, h, height, size, np.zeros_like(flipped), precision)
        return _filter(images.numpy().astype(precision.levels), across, down, dtype)

    levels = np.empty((len(rows), len(images[0]), size, size), _PRECISION[dtype].levels)
    for image, box, flip, view in zip(images, boxes.tolist(), flipped, levels, strict=True):
        height, width = image.shape[-2:]
        scaled = np.multiply(box, (height, width, height, width))
        (y, x), (h, w) = within(scaled[:2], scaled[2:], np.array((height, width)))
        crop = functional.crop(image, int(y), int(x), int(h), int(w))
        if dtype != torch.uint8:
            crop = crop.float()  # keeps 16 bits, and rounds as the path for them would
        crop = functional.resize(crop, [size, size], antialias=True)
        view[:] = crop.numpy()[..., ::-1] if flip else crop.numpy()
    if dtype != torch.uint8:
        np.clip(np.rint(levels, out=levels), 0, _TOP[dtype], out=levels)
    return levels


def _resize_weights(
    start: Rows,
    extent: Rows,
    length: int,
    size: int,
    flipped: NDArray[np.bool_],
    precision: _Precision,
) -> Weights:
    """Weights ``[N, S, L]`` with which output pixels take input pixels along one axis.

    The triangle filter of Pillow and torch: its half width is one input pixel when enlarging and
    one output pixel when shrinking, and it ends at the crop's border. Weights are multiples of
    ``2 ** -precision.weight``.
    """
    start, extent = (
        each[:, None, None] for each in within(start * length, extent * length, length)
    )
    kind = precision.levels
    scale = extent.astype(kind) / kind(size)
    output = np.arange(size, dtype=kind)
    output = np.where(flipped[:, None], size - 1 - output, output)[:, :, None]
    position = np.arange(length, dtype=kind) - start
    weights = (position + 0.5) - (output + 0.5) * scale
    np.abs(weights, out=weights)
    weights /= -np.maximum(scale, 1)
    weights += 1
    np.maximum(weights, 0, out=weights)
    weights *= (position >= 0) & (position < extent)
    # Integers before the sum, so that the sum has one value in any order of addition.
    weights *= 2.0**precision.raw
    np.rint(weights, out=weights)
    weights *= 2.0**precision.weight / weights.sum(axis=-1, keepdims=True)
    np.rint(weights, out=weights)
    weights *= 2.0**-precision.weight
    return weights


def _filter(levels: Levels, across: Weights, down: Weights, dtype: torch.dtype) -> Levels:
    """Applies a filter along rows, then one along columns: new levels ``[N, C, S, S]``.

    Both are matrices ``[N, S, L]`` of multiples of ``2 ** -weight``; between them levels keep
    ``fraction`` fractional bits (see `_Precision`). So every partial sum is exact.
    """
    top, fraction = _TOP[dtype], _PRECISION[dtype].fraction
    count, channels, height, _ = levels.shape
    rows = np.empty((count, channels, height, across.shape[1]), levels.dtype)
    for block, used in _bands(across):
        weights = across[:, None, block, used].swapaxes(-1, -2)
        np.matmul(levels[..., used], weights, out=rows[..., block])
    rows *= 2.0**fraction
    np.rint(rows, out=rows)
    np.minimum(rows, top * 2**fraction, out=rows)  # rounded weights may sum to over 1
    rows *= 2.0**-fraction
    result = np.empty((count, channels, down.shape[1], across.shape[1]), levels.dtype)
    for block, used in _bands(down):
        np.matmul(down[:, None, block, used], rows[:, :, used], out=result[:, :, block])
    np.rint(result, out=result)
    return np.clip(result, 0, top, out=result)


def _bands(weights: Weights) -> Iterator[tuple[slice, slice]]:
    """Blocks of output pixels and, for each, the input pixels it takes anything from.

    A filter's matrix is a band: leaving out the rest saves most of the work of a large one, and
    keeps the products so small that a BLAS does not start threads for them.
    """
    for start in range(0, weights.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        used = weights[:, block].any(axis=(0, 1)).nonzero()[0]
        yield block, slice(used[0], used[-1] + 1)


def _photometry(levels: Levels, rows: Rows, recipe: AugmentationRecipe, dtype: torch.dtype) -> None:
    """Jitter, gray, blur and solarize of ``levels`` ``[N, C, S, S]``, in place."""
    applied = rows > 0.5
    jittered = applied[:, COLUMN["jitter"]]
    shifted = jittered & (rows[:, COLUMN["hue"]] != 0)
    blurred = applied[:, COLUMN["blur"]] & (rows[:, COLUMN["sigma"]] > 0)
    top = _TOP[dtype]
    threshold = recipe.solarize_threshold * top // 255
    operations: tuple[tuple[NDArray[np.bool_], Callable[[Levels, Rows], None]], ...] = (
        (jittered, lambda part, rows: _jitter(part, rows, top)),
        (shifted, lambda part, rows: _shift_hue(part, rows, top)),
        (applied[:, COLUMN["grayscale"]], _to_gray),
        (blurred, lambda part, rows: _blur(part, rows, dtype)),
        (applied[:, COLUMN["solarize"]], lambda part, _: _solarize(part, threshold, top)),
    )
    for chosen, operation in operations:
        at = chosen.nonzero()[0]
        if len(at) == len(levels):
            operation(levels, rows)
        elif len(at):
            part = levels[at]
            operation(part, rows[at])
            levels[at] = part


def _jitter(levels: Levels, rows: Rows, top: int) -> None:
    """Brightness, contrast (about the mean gray) and saturation; truncated to levels each time."""
    brightness, contrast, saturation = (
        rows[:, COLUMN[name], None, None, None] for name in ("brightness", "contrast", "saturation")
    )
    levels *= brightness
    np.minimum(levels, top, out=levels)
    np.floor(levels, out=levels)

    # A sum of integers in float64 is exact; the mean is rounded once.
    colored = levels.shape[1] == 3
    gray = _gray(levels) if colored else levels
    mean = gray.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
    levels *= contrast
    levels += (1 - contrast) * mean.astype(levels.dtype)
    np.clip(levels, 0, top, out=levels)
    np.floor(levels, out=levels)

    if colored:
        gray = _gray(levels)
        gray *= 1 - saturation
        levels *= saturation
        levels += gray
        np.clip(levels, 0, top, out=levels)
        np.floor(levels, out=levels)


def _gray(levels: Levels) -> Levels:
    """Luma (ITU-R 601-2) truncated to levels, ``[N, 1, S, S]``."""
    gray = levels[:, 0:1] * 0.2989
    gray += levels[:, 1:2] * 0.587
    gray += levels[:, 2:3] * 0.114
    return np.floor(gray, out=gray)


def _to_gray(levels: Levels, rows: Rows) -> None:
    levels[:] = _gray(levels)


def _shift_hue(levels: Levels, rows: Rows, top_level: int) -> None:
    """Turns the hue of HSV by a fraction of a turn; value and chroma are kept."""
    red, green, blue = (levels[:, channel] for channel in range(3))
    top = np.maximum(np.maximum(red, green), blue)
    chroma = top - np.minimum(np.minimum(red, green), blue)
    per_chroma = 1 / np.maximum(chroma, 1)  # levels are integers: only a zero is raised
    # The hue in sixths of a turn, from the sector in which the largest channel lies.
    hue = (red - green) * per_chroma
    hue += 4
    np.copyto(hue, (blue - red) * per_chroma + 2, where=top == green)
    np.copyto(hue, (green - blue) * per_chroma, where=top == red)
    hue += 6 * rows[:, COLUMN["hue"], None, None]
    # torchvision goes to [0, 1] and back with a factor just below 256 (of 16 bits, 65536).
    to_levels = (top_level + 1 - 1e-3) / top_level
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        sextant = hue + offset  # modulo 6
        turns = sextant * (1 / 6)
        np.floor(turns, out=turns)
        turns *= 6
        sextant -= turns
        missing = np.minimum(sextant, 4 - sextant)
        np.clip(missing, 0, 1, out=missing)
        missing *= chroma
        np.subtract(top, missing, out=missing)
        missing *= to_levels
        np.floor(missing, out=levels[:, channel])


def _blur(levels: Levels, rows: Rows, dtype: torch.dtype) -> None:
    """Separable Gaussian of sigma pixels with window ``2 ceil(3 sigma) + 1``.

    The image is reflected without repeating its border (reflect-101), however large the window.
    """
    sigma = rows[:, COLUMN["sigma"]].astype(np.float64)
    weights = _blur_weights(sigma, levels.shape[-1], _PRECISION[dtype])
    levels[:] = _filter(levels, weights, weights, dtype)


def _blur_weights(sigma: NDArray[np.float64], size: int, precision: _Precision) -> Weights:
    """Matrices ``[N, S, S]`` of a blur along one axis, multiples of ``2 ** -precision.weight``."""
    radius = np.ceil(3 * sigma)[:, None]
    reach = int(radius.max())
    distance = np.arange(reach + 1.0)
    # One half of the kernel; integers before the sum, whose value then depends on no padding.
    half = np.rint(2.0 ** (precision.raw + 4) * np.exp(-0.5 * (distance / sigma[:, None]) ** 2))
    half *= distance <= radius
    total = 2 * half.sum(axis=1, keepdims=True) - half[:, :1]
    half = np.rint(half / total * 2.0**precision.weight)
    # What is left to one, so that a constant image stays as it is.
    half[:, 0] = 2.0**precision.weight - 2 * half[:, 1:].sum(axis=1)

    # Weights of pixels -reach to size - 1 + reach: the same kernel in every row, one pixel on.
    line = np.zeros((len(sigma), 2 * (size - 1) + 2 * reach + 1), precision.levels)
    line[:, size - 1 + reach : size + 2 * reach] = half * 2.0**-precision.weight
    line[:, size - 1 : size - 1 + reach] = line[:, size + reach : size + 2 * reach][:, ::-1]
    unbounded = sliding_window_view(line, size + 2 * reach, axis=1)[:, ::-1]
    # Then each place outside the image adds to the pixel that it shows. From one reflection to the
    # next no pixel is shown twice.
    step = max(size - 1, 1)
    weights = np.zeros((len(sigma), size, size), precision.levels)
    for start in range(-reach // step * step, size + reach, step):
        place = np.arange(max(start, -reach), min(start + step, size + reach))
        shown = np.abs((place + step) % (2 * step) - step) if size > 1 else 0 * place
        weights[:, :, shown] += unbounded[:, :, place + reach]
    return weights


def _solarize(levels: Levels, threshold: int, top: int) -> None:
    np.copyto(levels, top - levels, where=levels >= threshold)


def _normalized(levels: Levels, recipe: AugmentationRecipe, top: int) -> NDArray[np.float32]:
    """The levels, changed in place if they are float32, as the network takes them."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (recipe.mean, recipe.std))
    values = levels.astype(np.float32, copy=False)
    values /= top
    values -= mean
    values /= std
    return values
