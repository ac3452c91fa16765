"""What a loader asks of a renderer, and the renderer that needs no package besides.

A renderer gets the batches of an epoch as indices, and a function that plans any of them; it gives
their pixels in the same order, and may work ahead.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mast_ext import ops
from mast_ext.augment.policies import ViewPlan, ViewPolicy

Indices = NDArray[np.int64]  # [B], of samples in the source
Plan = Callable[[Indices], ViewPlan]

T = TypeVar("T")


class ImageSource(Protocol):
    """What a loader needs to know of a source of images (`mast_ext.data` has some).

    Attributes:
        sizes: Height and width of every image, ``[N, 2]`` integers.
        labels: Class ids of every factor, each ``[N]`` integers; empty without labels.
        stacked: All images, ``[N, C, H, W]`` uint8 or uint16, when they are in memory and of one
            size; else None.
    """

    sizes: np.ndarray
    labels: dict[str, np.ndarray]
    stacked: Tensor | None

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Image ``index``, ``[C, H, W]`` uint8 or uint16; of 3 channels: RGB."""
        ...


@dataclass
class Rendered:
    """A batch with its pixels.

    Attributes:
        indices: Samples in the source, ``[B]`` int64.
        plan: How their views are made.
        images: Normalized full-size views, the center view last, ``[V − L, B, C, S, S]`` float32;
            or their levels, uint8.
        local_images: Normalized local views, ``[L, B, C, s, s]`` float32, if there are any; or
            their levels.
    """

    indices: Indices
    plan: ViewPlan
    images: Tensor
    local_images: Tensor | None


class Renderer(Protocol):
    """Renders the batches of an epoch, or of the rest of one."""

    def render(
        self, parts: Iterable[Indices], plan: Plan, *, for_gpu: bool = False
    ) -> Iterator[Rendered]:
        """Batches in the order of ``parts``; leaving the iteration early ends the work on them.

        Those ``for_gpu`` lie in page-locked memory, unless they are on a GPU already, and may be
        levels in place of normalized pixels.
        """
        ...


def by_size(policy: ViewPolicy, views: Sequence[T]) -> tuple[list[T], list[T]]:
    """Splits what there is for each view: full-size views with the center view, and local ones."""
    first = policy.num_views() - policy.local_views - policy.with_center
    last = first + policy.local_views
    return [*views[:first], *views[last:]], list(views[first:last])


class TorchvisionRenderer:
    """Renders by `mast_ext.augment.torchvision`, a batch to a thread.

    Args:
        source: Where the images come from.
        policy: Which views are made of them.
        workers: Threads that render ahead; 0 renders when it is called for, on as many threads as
            torch has.
    """

    def __init__(self, source: ImageSource, policy: ViewPolicy, workers: int) -> None:
        self.source, self.policy, self.workers = source, policy, workers

    def render(
        self, parts: Iterable[Indices], plan: Plan, *, for_gpu: bool = False
    ) -> Iterator[Rendered]:
        """See `Renderer`; those ``for_gpu`` are levels.

        Raises:
            ValueError: An image cannot be decoded; the message names it.
        """
        if self.workers == 0:
            for indices in parts:
                yield self._batch(indices, plan, for_gpu)
            return
        pending: deque[Future[Rendered]] = deque()
        pool = _single_threaded_pool(self.workers)
        ending = sys.is_finalizing  # when modules may have gone
        try:
            for indices in parts:
                pending.append(pool.submit(self._batch, indices, plan, for_gpu))
                if len(pending) > self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the caller leaves the loop early
            if not ending():
                pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, indices: Indices, plan: Plan, for_gpu: bool) -> Rendered:
        from mast_ext.augment.torchvision import render

        planned = plan(indices)
        images = images_of(self.source, indices)
        full, local = by_size(self.policy, planned.rows.unbind())
        small = None
        if local:
            recipe = self.policy.local_recipe or self.policy.recipe
            small = render(images, torch.stack(local), recipe, for_gpu=for_gpu)
        views = render(images, torch.stack(full), self.policy.recipe, for_gpu=for_gpu)
        return Rendered(indices, planned, views, small)


def check_crops(rows: Tensor) -> None:
    """Raises a ValueError unless the crop boxes of rows ``[V, B, P]`` lie in their images."""
    start, extent = rows[..., :2], rows[..., 2:4]
    valid = (start >= 0) & (extent > 0) & (start + extent <= 1 + 1e-5)
    if not valid.all():
        view, index = (~valid.all(-1)).nonzero()[0].tolist()
        box = [round(v, 4) for v in rows[view, index, :4].tolist()]
        raise ValueError(
            f"crop boxes must be non-empty and inside the image, got (y, x, h, w) = {box} "
            f"for view {view} of image {index}"
        )


def within(
    start: NDArray[Any], extent: NDArray[Any], length: NDArray[Any] | int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rounded boxes along an axis, of at least one pixel and none beyond the image's last one.

    Fractions of an image of few pixels, rounded each by itself, may lie beyond its end.
    """
    start = np.minimum(np.rint(start), length - 1)
    return start, np.clip(np.rint(extent), 1, length - start)


def empty(shape: Sequence[int], dtype: torch.dtype, *, for_gpu: bool) -> Tensor:
    """Memory on the host, page-locked where a GPU is to copy from it while the host goes on.

    Both kinds reuse the memory of earlier batches: new pages take longer to get than to fill.
    """
    if for_gpu or not dtype.is_floating_point:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=for_gpu)
    return ops.rendering.new_pixels(torch.empty(0, dtype=dtype, device="cpu"), tuple(shape))


def images_of(source: ImageSource, indices: Indices) -> Tensor | list[Tensor]:
    """Images of a batch, each ``[C, H, W]``; stacked if the source has them so."""
    if source.stacked is not None:
        return source.stacked[torch.from_numpy(indices)]
    return [image_of(source, int(index)) for index in indices]


def image_of(source: ImageSource, index: int) -> Tensor:
    """Image ``index``, ``[C, H, W]``.

    Raises:
        TypeError: It is no tensor, or neither uint8 nor uint16.
        ValueError: It is not in the CPU's memory, or not of the size that the source says, which
            its crops were drawn for.
    """
    image = source.image(index)
    _require_levels(f"image {index} of the source", image)
    size = tuple(source.sizes[index].tolist())
    if image.ndim != 3 or not len(image) or image.shape[1:] != size:
        raise ValueError(
            f"image {index} of the source must have shape [C, {size[0]}, {size[1]}], as its sizes"
            f" say, got {list(image.shape)}"
        )
    return image


def require_source(source: ImageSource) -> None:
    """Checks all of a source but its single images, which `image_of` checks as they are taken.

    Raises:
        TypeError: It lacks something that an `ImageSource` has, or has it of another type.
        ValueError: Shapes do not fit each other, or images are not in the CPU's memory.
    """
    names = ("sizes", "labels", "stacked", "image", "__len__")
    if missing := [name for name in names if not hasattr(source, name)]:
        raise TypeError(
            f"source must have {', '.join(names)} (see ImageSource), and {type(source).__name__}"
            f" has no {', '.join(missing)}"
        )
    if not callable(source.image):
        raise TypeError(f"source.image must be a method, got {type(source.image).__name__}")
    count = len(source)
    _require_array("source.sizes", source.sizes, (count, 2))
    if (source.sizes < 1).any():
        raise ValueError("source.sizes must be at least 1, height and width of every image")
    if not isinstance(source.labels, dict):
        raise TypeError(
            "source.labels must be a dict of arrays, empty without labels, got"
            f" {type(source.labels).__name__}"
        )
    for name, ids in source.labels.items():
        _require_array(f"source.labels[{name!r}]", ids, (count,))
    stacked = source.stacked
    if stacked is None:
        return
    _require_levels("source.stacked", stacked, " or None")
    if stacked.ndim != 4 or len(stacked) != count or 0 in stacked.shape[1:]:
        raise ValueError(
            f"source.stacked must have shape [{count}, C, H, W], got {list(stacked.shape)}"
        )
    if (source.sizes != stacked.shape[2:]).any():
        raise ValueError(
            f"source.sizes must be {list(stacked.shape[2:])} for every image, as source.stacked is"
        )


def _require_array(name: str, values: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        got = f"one of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"{name} must be a NumPy array of integers, got {got}")
    if values.shape != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)}, of {shape[0]} images, got {list(values.shape)}"
        )


def _require_levels(name: str, images: Any, other: str = "") -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch tensor{other}, got {type(images).__name__}")
    if images.dtype not in (torch.uint8, torch.uint16):
        raise TypeError(f"{name} must be uint8 or uint16, got {images.dtype}")
    if not images.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got {images.device}")


def _single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Threads whose torch operators keep to them: more would fight with the training step.

    ``torch.set_num_threads`` also changes what every thread that has not computed yet, and some
    calls of the others, take up; so the caller sets its own number again once all have started.
    """
    threads = torch.get_num_threads()
    started = Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, "views", initializer=start)
    try:
        for _ in range(workers):  # a thread starts with the first task that finds none idle
            pool.submit(int)
        started.wait()
    except BaseException:  # a thread that does not start: the others would wait for it
        started.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(threads)
    return pool
