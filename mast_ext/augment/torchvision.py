"""Renders views on the CPU, with the pixels that torchvision's functional API gives.

That is their definition; what computes them are operators of our own, several times as fast. The
result is exact: pixels are integer levels between operations (as in torchvision's uint8 path) and
all sums of resize and blur are exact (csrc/kernels/common/levels_cpu.h), so the same rows give the
same bits whatever the batch, the thread count or the processor. A renderer's thread works beside a
training step and leaves it alone: the operators take no more threads than the thread that calls
them is allowed, and need neither Python's lock nor what the step has set for autocast and matrix
products.

Images have any number of channels. Where torchvision has no contrast (neither gray nor RGB) each
channel is changed about its own mean: bands of a satellite differ in their range.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mast_ext import ops
from mast_ext.augment.parameters import COLUMN, COLUMNS, GROUPS
from mast_ext.augment.recipe import AugmentationRecipe
from mast_ext.augment.rendering import check_crops, empty, within

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
        ValueError: Shapes or channels do not fit, a crop box is empty or leaves its image, a factor
            that is used is not finite, sigma is above 1,000 pixels, or images without color are to
            change theirs.
        TypeError: An image is neither uint8 nor uint16.
    """
    # On the CPU whatever torch.set_default_device says, as all that is made here.
    rows = torch.as_tensor(rows, dtype=torch.float32, device="cpu")
    dtype = _check(images, rows, recipe)
    views, batch = rows.shape[:2]
    shape = (views, batch, recipe.channels, recipe.size, recipe.size)
    as_levels = for_gpu and dtype == torch.uint8
    result = empty(shape, torch.uint8 if as_levels else torch.float32, for_gpu=for_gpu)
    boxes, flipped = _boxes(images, rows), rows[..., COLUMN["flip"]] > 0.5
    threshold = recipe.solarize_threshold * _TOP[dtype] // 255
    mean = std = None
    if not as_levels:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")
            for values in (recipe.mean, recipe.std)
        )
    for at, same_size in _parts(images, views):
        levels = ops.rendering.resized_crops(same_size, boxes[at], flipped[at], recipe.size)
        ops.rendering.photometry(levels, rows[at], threshold, mean, std, result[at])
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


def _parts(
    images: Tensor | Sequence[Tensor], views: int
) -> Iterator[tuple[tuple[int | slice, int | slice], Tensor]]:
    """What is rendered at a time: indices into ``[V, B]``, and their images ``[n, C, H, W]``."""
    if isinstance(images, Tensor):
        for view in range(views if len(images) else 0):
            yield (view, slice(None)), images
        return
    for position, image in enumerate(images):
        yield (slice(None), position), image.expand(views, *image.shape)


def _boxes(images: Tensor | Sequence[Tensor], rows: Tensor) -> Tensor:
    """Top, left, height and width in pixels, ``[V, B, 4]`` int64, of every view's crop."""
    each = images[:1] if isinstance(images, Tensor) else images
    sizes = np.array([image.shape[-2:] for image in each]).reshape(-1, 2)
    parts = rows[..., GROUPS["crop"]].numpy().astype(np.float64)
    start, extent = within(parts[..., :2] * sizes, parts[..., 2:] * sizes, sizes)
    return torch.from_numpy(np.concatenate((start, extent), axis=-1).astype(np.int64))
