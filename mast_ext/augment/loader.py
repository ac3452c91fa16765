"""Feeds training: batches of rendered views, in a keyed order, resumable at any step.

The loader keeps three integers (seed, epoch, step): the order of an epoch and every parameter are
functions of them, so the remaining batches after a resume are the same bits. Renderers may work
ahead; nothing random happens in them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mast_ext.augment import sampler
from mast_ext.augment.block_masks import HiddenPlaces
from mast_ext.augment.kept import KEPT_GB, keep_decoded
from mast_ext.augment.policies import ComposedPolicy, ViewPlan, ViewPolicy
from mast_ext.augment.recipe import AugmentationRecipe
from mast_ext.augment.rendering import (
    ImageSource,
    Indices,
    Rendered,
    Renderer,
    TorchvisionRenderer,
    images_of,
    require_source,
)
from mast_ext.augment.transfer import CopyStream, copied_ahead
from mast_ext.checks import OptionError, require_integer

BACKENDS = ("torchvision", "dali")
"""Names of the renderers that exist."""


@dataclass
class ViewBatch:
    """Views of a batch of images, and how they were made.

    Parameters are of all views, in this order: the full-size ones, L local ones, and the plain
    center view where there is one. V counts them all.

    Attributes:
        images: Normalized full-size views (the center view is one), ``[V − L, B, C, S, S]``
            float32; on the way to a GPU (see `ViewLoader.on`) perhaps their levels, uint8.
        parameters: Augmentation parameters, ``[V, B, P]`` float32.
        index: Sample indices in the source, ``[B]`` int64.
        labels: Class ids of every factor, each ``[B]`` int64.
        changed: By which of the policy's ``shared`` augmentations any two views of an image but the
            center one differ, ``[B, K]`` bool; None when the policy shares none.
        local_images: Normalized local views, ``[L, B, C, s, s]`` float32; None when there are
            none.
        masks: Patches to hide of the full-size views but the center one, bool ``[F, B, H, W]``;
            None when the policy masks none.
        hidden: Where these patches are, to be replaced together with ``masks``; None when there are
            no masks, or when it is to be looked for in them.
    """

    images: Tensor
    parameters: Tensor
    index: Tensor
    labels: dict[str, Tensor]
    changed: Tensor | None = None
    local_images: Tensor | None = None
    masks: Tensor | None = None
    hidden: HiddenPlaces | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ViewBatch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ViewBatch":
        """The batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the batch's memory on a GPU from being reused before the stream is through."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def normalized(self, mean: Tensor, std: Tensor) -> "ViewBatch":
        """The batch with uint8 levels normalized; float32 images are left as they are.

        By the operations of the CPU's renderer, each rounded by itself as there, so that the pixels
        are the same.

        Args:
            mean: Mean of each channel, of pixels in ``[0, 1]``, ``[C, 1, 1]``.
            std: Standard deviation of each channel, ``[C, 1, 1]``.
        """
        top = torch.full_like(mean, 255)

        def pixels(images: Tensor | None) -> Tensor | None:
            if images is None or images.dtype != torch.uint8:
                return images
            return images.float().div_(top).sub_(mean).div_(std)

        images = pixels(self.images)
        assert images is not None
        return replace(self, images=images, local_images=pixels(self.local_images))

    def split(self, parts: int) -> "list[ViewBatch]":
        """Splits the images into batches of equal size, in order.

        Raises:
            ValueError: The number of images does not divide into so many.
        """
        if parts < 1 or len(self.index) % parts:
            raise OptionError(
                f"a batch of {len(self.index)} images does not divide into {parts} equal parts"
            )
        axes = {"index": 0, "changed": 0}  # those of the images; all others have them second
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        chunks = {
            name: value.chunk(parts, axes.get(name, 1))
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        labels = {name: ids.chunk(parts) for name, ids in self.labels.items()}
        hidden = [None] * parts if self.hidden is None else self.hidden.split(parts)
        return [
            replace(
                self,
                **{name: pieces[part] for name, pieces in chunks.items()},
                labels={name: pieces[part] for name, pieces in labels.items()},
                hidden=hidden[part],
            )
            for part in range(parts)
        ]

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ViewBatch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: function(value) for k, value in values.items() if isinstance(value, Tensor)}
        labels = {name: function(tensor) for name, tensor in self.labels.items()}
        hidden = None if self.hidden is None else self.hidden.map(function)
        return replace(self, **tensors, labels=labels, hidden=hidden)


class ViewLoader:
    """Iterates over an epoch's batches of this rank; made by `build_loader`.

    Exhausting the loader moves it to the next epoch, so plain repeated loops see new views; leaving
    an epoch early and iterating again starts that epoch from its beginning. After
    `load_state_dict` the next iteration continues where the state was taken.
    """

    def __init__(
        self,
        source: ImageSource,
        policy: ViewPolicy,
        renderer: Renderer,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world_size: int,
    ) -> None:
        self.source = source
        self.policy = policy
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._renderer = renderer
        self._stream: CopyStream | None = None
        self._shuffle = shuffle
        self._rank, self._world_size = rank, world_size
        self._step = 0  # batches handed out in this epoch
        self._resume_at = 0
        share = len(source) // world_size  # equal shares: a rank with more would wait for ever
        self._share = share // batch_size * batch_size if drop_last else share
        if self._share == 0:
            raise OptionError(
                f"the source's {len(source)} images are too few for one batch: "
                f"batch_size {batch_size}, world_size {world_size}, drop_last {drop_last}"
            )

    def __len__(self) -> int:
        """Batches in an epoch, on this rank."""
        return -(-self._share // self.batch_size)

    def __iter__(self) -> Iterator[ViewBatch]:
        return self._batches(for_gpu=False)

    def on(
        self,
        device: torch.device | str,
        profile: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> Iterator[ViewBatch]:
        """The batches of an iteration on a device.

        To a GPU they are copied one ahead, on a stream of their own (see
        `mast_ext.augment.transfer`), as levels where the renderer has them, which are a quarter of
        the bytes; they are normalized there. `state_dict` counts a batch when its copy begins.

        Args:
            device: Where the batches are to be.
            profile: Gives contexts to do parts of the work in, by what they are called:
                ``"wait_for_views"`` and, to a GPU, ``"transfer_views"``.
        """
        device = torch.device(device)
        if device.type == "cpu":
            yield from _each_in(iter(self), profile, "wait_for_views")
            return
        recipe = self.policy.recipe
        mean = torch.tensor(recipe.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(recipe.std, device=device).view(-1, 1, 1)
        if self._stream is None or self._stream.device != device:
            self._stream = CopyStream(device)  # one for all epochs, so that memory is reused
        views = _each_in(self._batches(for_gpu=True), profile, "wait_for_views")
        copies = (batch.normalized(mean, std) for batch in copied_ahead(views, self._stream))
        yield from _each_in(copies, profile, "transfer_views")

    def _batches(self, *, for_gpu: bool) -> Iterator[ViewBatch]:
        start, self._resume_at = self._resume_at, 0
        epoch, self._step = self.epoch, start
        order = self._order(epoch)
        parts = [
            order[step * self.batch_size : (step + 1) * self.batch_size]
            for step in range(start, len(self))
        ]
        rendered = self._renderer.render(parts, partial(self._plan, epoch), for_gpu=for_gpu)
        for step, batch in enumerate(rendered, start=start + 1):
            self._step = step
            yield self._assemble(batch)
        if self.epoch == epoch:
            self.epoch, self._step = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration.

        The epoch of a state that was just loaded keeps its step; any other starts at its beginning.
        """
        epoch = require_integer("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._step, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch and the number of batches handed out in it."""
        return {"seed": self.seed, "epoch": self.epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a state: the next iteration gives exactly the batches that were left.

        Batch size, world size and source must be those of the run that wrote the state.

        Raises:
            ValueError: The state is incomplete, of another seed, or its step is out of range.
        """
        missing = {"seed", "epoch", "step"} - state.keys()
        if missing:
            raise ValueError(f"loader state lacks {', '.join(sorted(missing))}")
        if state["seed"] != self.seed:
            raise ValueError(f"loader state has seed {state['seed']}, this loader {self.seed}")
        if state["epoch"] < 0 or not 0 <= state["step"] <= len(self):
            raise ValueError(
                f"loader state has epoch {state['epoch']}, step {state['step']}; "
                f"expected an epoch of at least 0 and a step in [0, {len(self)}]"
            )
        self.epoch = state["epoch"]
        self._step = self._resume_at = state["step"]

    def _order(self, epoch: int) -> np.ndarray:
        """Sample indices of this rank in this epoch, disjoint from those of other ranks.

        The ranks' batches of a step, one after the other, are the batch that a single process with
        as large a batch has at that step.
        """
        count, size = len(self.source), self.batch_size
        order = sampler.permutation(self.seed, epoch, count) if self._shuffle else np.arange(count)
        whole = self._share // size * size * self._world_size
        steps, rest = np.split(order[: self._share * self._world_size], [whole])
        mine = steps.reshape(-1, self._world_size, size)[:, self._rank]
        return np.concatenate((mine.ravel(), rest.reshape(self._world_size, -1)[self._rank]))

    def _plan(self, epoch: int, indices: Indices) -> ViewPlan:
        return self.policy.plan(self.seed, epoch, indices, self.source.sizes[indices])

    def _assemble(self, batch: Rendered) -> ViewBatch:
        indices, plan = batch.indices, batch.plan
        return ViewBatch(
            images=batch.images,
            parameters=plan.rows,
            index=torch.from_numpy(indices),
            labels={
                name: torch.from_numpy(ids[indices].astype(np.int64))
                for name, ids in self.source.labels.items()
            },
            changed=plan.changed,
            local_images=batch.local_images,
            masks=plan.masks,
            hidden=plan.hidden,
        )


def _each_in(
    batches: Iterator[ViewBatch], profile: Callable[[str], AbstractContextManager[Any]], part: str
) -> Iterator[ViewBatch]:
    """The same batches; each is waited for inside of a context ``profile(part)``."""
    while True:
        with profile(part):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def build_loader(
    source: ImageSource,
    policy: ViewPolicy,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    backend: str = "auto",
    photometric: str = "exact",
    device: str = "cpu",
    keep_gb: float = KEPT_GB,
) -> ViewLoader:
    """Makes a loader of views.

    Args:
        source: Where the images come from. Of other than 3 channels: the recipe's ``mean`` and
            ``std`` have as many numbers, and it changes no colors.
        policy: Which views are made of them.
        batch_size: Images in a batch of this rank, at least 1.
        seed: Seed of the order and of every augmentation.
        shuffle: Visit the images in a new order every epoch.
        drop_last: Leave out a last batch that is not full.
        rank: This process among ``world_size``. Ranks see disjoint shares of equal size: up to
            ``world_size - 1`` images are left out of an epoch.
        world_size: Number of processes.
        workers: Threads that render ahead; 0 renders in the calling thread (DALI: in one of its
            own, while the caller waits).
        backend: ``"torchvision"``, ``"dali"``, or ``"auto"``: DALI for what only it can do, on the
            CPU and with exact photometry torchvision, which is faster there.
        photometric: ``"exact"``: torchvision's pixels. ``"fused"`` (DALI's alone): faster, but
            another recipe, see `mast_ext.augment.dali`.
        device: Where views are rendered, ``"cpu"`` or (DALI) ``"gpu"``: on this process's current
            CUDA device, where their pixels stay.
        keep_gb: Gigabytes of memory in which images that torchvision renders are kept once they
            are decoded, if all together take no more.

    Raises:
        TypeError: The source is not what `ImageSource` says, or an option has another type.
        ValueError: A value is out of range or unknown, the source's shapes do not fit, the backend
            cannot do what is asked for, or not one batch fits.
        ModuleNotFoundError: DALI is asked for and not installed.
    """
    require_source(source)
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("world_size", world_size, 1),
        ("rank", rank, 0),
        ("workers", workers, 0),
    ):
        require_integer(name, value, low)
    seed = require_integer("seed", seed)
    if rank >= world_size:
        raise OptionError(f"rank must be below world_size {world_size}, got {rank}")
    renderer = _renderer(source, policy, batch_size, workers, backend, photometric, device, keep_gb)
    return ViewLoader(
        source,
        policy,
        renderer,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )


def evaluation_images(
    source: ImageSource,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Plain center views of all images in order, for feature extraction.

    Args:
        source: Where the images come from.
        size: Side of the views in pixels.
        mean: Mean of each channel, of pixels in ``[0, 1]``.
        std: Standard deviation of each channel.
        batch_size: Images in a batch, at least 1; the last one may be smaller.

    Yields:
        Normalized images ``[B, C, size, size]`` float32 and their indices ``[B]`` int64.

    Raises:
        TypeError: The source is not what `ImageSource` says.
        ValueError: Its shapes do not fit, or ``batch_size`` is below 1.
    """
    from mast_ext.augment.torchvision import render

    require_source(source)
    require_integer("batch_size", batch_size, 1)
    recipe = AugmentationRecipe(size=size, mean=mean, std=std)  # whose size and norm alone count
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, min(start + batch_size, len(source)))
        rows = torch.from_numpy(sampler.center_rows(source.sizes[indices]))[None]
        yield render(images_of(source, indices), rows, recipe)[0], torch.from_numpy(indices)


def composed_views(
    source: ImageSource, indices: Indices, recipe: AugmentationRecipe, *, views: int, seed: int
) -> Tensor:
    """Independent views of some images, the same at every call.

    Args:
        source: Where the images come from.
        indices: Which of them, ``[B]`` int64.
        recipe: What may be done to a view.
        views: Views of every image.
        seed: Seed of their parameters.

    Returns:
        Normalized, ``[views, B, C, S, S]`` float32.

    Raises:
        TypeError: The source is not what `ImageSource` says.
        ValueError: Its shapes do not fit.
    """
    from mast_ext.augment.torchvision import render

    require_source(source)
    plan = ComposedPolicy(recipe, views=views).plan(seed, 0, indices, source.sizes[indices])
    return render(images_of(source, indices), plan.rows, recipe)


def _renderer(
    source: ImageSource,
    policy: ViewPolicy,
    batch_size: int,
    workers: int,
    backend: str,
    photometric: str,
    device: str,
    keep_gb: float,
) -> Renderer:
    plain = (photometric, device) == ("exact", "cpu")
    if backend == "auto":
        backend = "torchvision" if plain else "dali"
    if backend == "torchvision" and plain:
        return TorchvisionRenderer(keep_decoded(source, keep_gb), policy, workers)
    if backend == "torchvision":
        raise OptionError(
            "backend torchvision renders on the CPU with exact photometry, got device "
            f"{device!r} and photometric {photometric!r}: use backend dali"
        )
    if backend != "dali":
        raise OptionError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    from mast_ext.augment.dali import DaliRenderer  # the only place that needs DALI

    return DaliRenderer(
        source,
        policy,
        batch_size=min(batch_size, len(source)),
        threads=max(1, workers),
        prefetch=workers > 0,
        photometric=photometric,
        device=device,
    )
