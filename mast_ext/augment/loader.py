"""Feeds training: batches of rendered views, in a keyed order, resumable at any step.

The loader keeps three integers (seed, epoch, step): the order of an epoch and every parameter are
functions of them, so the remaining batches after a resume are the same bits. Threads prefetch whole
batches; nothing random happens in them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from threading import Barrier
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mast_ext.augment import sampler
from mast_ext.augment.checks import check_integer
from mast_ext.augment.policies import ViewPolicy
from mast_ext.augment.recipe import AugmentationRecipe

BACKENDS = ("torchvision",)
"""Names of the renderers that exist."""

Renderer = Callable[[Tensor | Sequence[Tensor], Tensor, AugmentationRecipe], Tensor]


class ImageSource(Protocol):
    """What a loader needs to know of a source of images (`mast_ext.data` has some)."""

    sizes: np.ndarray
    labels: dict[str, np.ndarray]
    stacked: Tensor | None

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor: ...


@dataclass
class ViewBatch:
    """Views of a batch of images, and how they were made.

    Attributes:
        images: Normalised views, ``[V, B, 3, S, S]`` float32.
        parameters: Augmentation parameters, ``[V, B, P]`` float32.
        pair_subspace: Subspace of every pair of views, ``[V, V, B]`` int64.
        index: Sample indices in the source, ``[B]`` int64.
        labels: Class ids of every factor, each ``[B]`` int64.
    """

    images: Tensor
    parameters: Tensor
    pair_subspace: Tensor
    index: Tensor
    labels: dict[str, Tensor]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ViewBatch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ViewBatch":
        """The batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ViewBatch":
        tensors = {f.name: function(getattr(self, f.name)) for f in fields(self)[:-1]}
        labels = {name: function(tensor) for name, tensor in self.labels.items()}
        return replace(self, **tensors, labels=labels)


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
        render: Renderer,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world_size: int,
        workers: int,
    ) -> None:
        self.source = source
        self.policy = policy
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._render = render
        self._shuffle = shuffle
        self._rank, self._world_size = rank, world_size
        self._workers = workers
        self._step = 0  # batches handed out in this epoch
        self._resume_at = 0
        share = len(source) // world_size  # equal shares: a rank with more would wait for ever
        self._share = share // batch_size * batch_size if drop_last else share
        if self._share == 0:
            raise ValueError(
                f"the source's {len(source)} images are too few for one batch: "
                f"batch_size {batch_size}, world_size {world_size}, drop_last {drop_last}"
            )

    def __len__(self) -> int:
        """Batches in an epoch, on this rank."""
        return -(-self._share // self.batch_size)

    def __iter__(self) -> Iterator[ViewBatch]:
        start, self._resume_at = self._resume_at, 0
        epoch, self._step = self.epoch, start
        order = self._order(epoch)
        for step, batch in enumerate(self._batches(order, epoch, start), start=start + 1):
            self._step = step
            yield batch
        if self.epoch == epoch:
            self.epoch, self._step = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration.

        The epoch of a state that was just loaded keeps its step; any other starts at its beginning.
        """
        check_integer("epoch", epoch, 0)
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
        """Sample indices of this rank in this epoch, disjoint from those of other ranks."""
        count = len(self.source)
        order = sampler.permutation(self.seed, epoch, count) if self._shuffle else np.arange(count)
        return order[self._rank :: self._world_size][: self._share]

    def _batches(self, order: np.ndarray, epoch: int, start: int) -> Iterator[ViewBatch]:
        parts = [
            order[step * self.batch_size : (step + 1) * self.batch_size]
            for step in range(start, len(self))
        ]
        if self._workers == 0:
            for part in parts:
                yield self._batch(part, epoch)
            return
        pending: deque[Future[ViewBatch]] = deque()
        pool = _single_threaded_pool(self._workers)
        try:
            for part in parts:
                pending.append(pool.submit(self._batch, part, epoch))
                if len(pending) > self._workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also when the caller leaves the loop early
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, indices: np.ndarray, epoch: int) -> ViewBatch:
        plan = self.policy.plan(self.seed, epoch, indices, self.source.sizes[indices])
        index = torch.from_numpy(indices)
        images = _images(self.source, indices)
        return ViewBatch(
            images=self._render(images, plan.rows, self.policy.recipe),
            parameters=plan.rows,
            pair_subspace=plan.pair_subspace,
            index=index,
            labels={
                name: torch.from_numpy(ids[indices].astype(np.int64))
                for name, ids in self.source.labels.items()
            },
        )


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
    for _ in range(workers):  # a thread starts with the first task that finds none idle
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)
    return pool


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
    backend: str = "torchvision",
) -> ViewLoader:
    """Makes a loader of views.

    Args:
        source: Where the images come from.
        policy: Which views are made of them.
        batch_size: Images in a batch of this rank, at least 1.
        seed: Seed of the order and of every augmentation.
        shuffle: Visit the images in a new order every epoch.
        drop_last: Leave out a last batch that is not full.
        rank: This process among ``world_size``. Ranks see disjoint shares of equal size: up to
            ``world_size - 1`` images are left out of an epoch.
        world_size: Number of processes.
        workers: Threads that render ahead; 0 renders in the calling thread.
        backend: Renderer; ``"torchvision"`` is the one that exists.

    Raises:
        ValueError: A value is out of range, the backend is unknown, or not one batch fits.
    """
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("world_size", world_size, 1),
        ("rank", rank, 0),
        ("workers", workers, 0),
    ):
        check_integer(name, value, low)
    if rank >= world_size:
        raise ValueError(f"rank must be below world_size {world_size}, got {rank}")
    return ViewLoader(
        source,
        policy,
        _renderer(backend),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        workers=workers,
    )


def evaluation_images(
    source: ImageSource,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Plain centre views of all images in order, for feature extraction.

    Args:
        source: Where the images come from.
        size: Side of the views in pixels.
        mean: Mean of each channel, of pixels in ``[0, 1]``.
        std: Standard deviation of each channel.
        batch_size: Images in a batch, at least 1; the last one may be smaller.

    Yields:
        Normalised images ``[B, 3, size, size]`` float32 and their indices ``[B]`` int64.
    """
    check_integer("batch_size", batch_size, 1)
    recipe = AugmentationRecipe(size=size, mean=mean, std=std)
    render = _renderer("torchvision")
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, min(start + batch_size, len(source)))
        rows = torch.from_numpy(sampler.centre_rows(source.sizes[indices]))[None]
        yield render(_images(source, indices), rows, recipe)[0], torch.from_numpy(indices)


def _images(source: ImageSource, indices: np.ndarray) -> Tensor | list[Tensor]:
    if source.stacked is not None:
        return source.stacked[torch.from_numpy(indices)]
    return [source.image(int(index)) for index in indices]


def _renderer(backend: str) -> Renderer:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    from mast_ext.augment.torchvision import render  # the only place that needs torchvision

    return render
