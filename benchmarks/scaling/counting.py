"""Counts what one of many processes sends, holds and computes, by running it on shapes alone."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from cases import Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass
class Count:
    """What one process does in a step.

    Attributes:
        collectives: What it took part in: the kind, and the bytes that each process brings.
        operations: For every operation its arithmetic operations in 16-bit and in 32-bit matrix
            products, and the bytes of its operands and results.
        peak: The most bytes at a time beyond the inputs, without an operator's workspace.
    """

    collectives: list[tuple[str, int]] = field(default_factory=list)
    operations: list[tuple[int, int, int]] = field(default_factory=list)
    peak: int = 0

    def received(self, world: int) -> float:
        """Bytes that a process receives."""
        shares = {
            "all-gather": world - 1,
            "reduce-scatter": world - 1,
            "all-reduce": 2 * (world - 1) / world,
            "broadcast": 1,
            "ring shift": 1,
        }
        return sum(shares[kind] * size for kind, size in self.collectives if kind in shares)


def size_of(x: Tensor) -> int:
    return x.numel() * x.element_size()


class Operations(TorchDispatchMode):
    """Counts operations and what they leave in memory, as they are carried out."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count, self.held, self.paused = count, 0, False
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = [t for t in made if self._is_new(t, given)]
        packet = func._overloadpacket
        counts = bool(new) and not packet.__name__.startswith(("empty", "new_empty"))
        counts = (counts or func._schema.is_mutable) and all(t.is_meta for t in given + made)
        if counts and not self.paused:
            formula = flop_registry.get(packet) or PRODUCTS.get(packet.__name__)
            products = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
            wide = max((t.element_size() for t in given), default=4) > 2
            # Ours make several 16 bit products of one of float32.
            wide = wide and not str(packet).startswith("mast_ext")
            moved = sum(map(size_of, given + new))
            self.count.operations.append((0, products, moved) if wide else (products, 0, moved))
        return out

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """For what stands in for the network."""
        self.paused = True
        yield
        self.paused = False

    def _is_new(self, x: Tensor, given: list[Tensor]) -> bool:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self.storages or any(key == t.untyped_storage()._cdata for t in given):
            return False
        self.held += storage.nbytes()
        self.count.peak = max(self.count.peak, self.held)
        self.storages[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
        return True

    def _freed(self, key: int, size: int) -> None:
        self.held -= size
        del self.storages[key]


def contrastive(x: Tensor, y: Tensor | None, masks: Tensor | None, *_: Any, **__: Any) -> int:
    y = x if y is None else y
    subspaces = 1 if masks is None else len(masks)
    return 2 * subspaces * x.shape[0] * y.shape[0] * x.shape[1] * y.shape[1] * x.shape[2]


def of_views(views: list[Tensor], *_: Any, **__: Any) -> int:
    return 2 * len(views) ** 2 * len(views[0]) * views[0].numel()


def statistics_of(z: Tensor, masks: Tensor | None, *_: Any, **__: Any) -> int:
    rows, dim = z.shape[-2:]
    subspaces = 1 if masks is None else len(masks)
    return 2 * subspaces * z.numel() * min(rows, dim)


# Arithmetic operations in the matrix products of our operators; the others of `CASES` have none.
# Backward passes make the products of the forward pass anew where these are not kept.
PRODUCTS: dict[str, Callable[..., int]] = {
    "contrastive_logsumexp": contrastive,
    "contrastive_logsumexp_backward": lambda _, __, x, y, masks, *___, **____: (
        2 * contrastive(x, y, masks)
    ),
    "contrastive_loss": of_views,
    "contrastive_loss_backward": lambda _, views, *__, **___: 2 * of_views(views),
    "variance_covariance": statistics_of,
    "variance_covariance_backward": lambda _, __, z, masks, *___, **____: statistics_of(z, masks),
    "cross_correlation_penalty": lambda a, *_, **__: 2 * a.numel() * min(2 * len(a), a.shape[1]),
    "cross_correlation_penalty_backward": lambda _, a, *__, **___: (
        4 * a.numel() * min(2 * len(a), a.shape[1])
    ),
    "nearest_neighbor_distance": lambda x, *_, **__: len(x) * x.numel(),
    "sigmoid_contrast": lambda x, y, *_, **__: 2 * x.numel() * len(y),
    "sigmoid_contrast_backward": lambda _, x, y, *__, **___: 6 * x.numel() * len(y),
    "sigmoid_contrast_with_grad": lambda x, y, *_, **__: 6 * x.numel() * len(y),
    "sliced_characteristic_sums": lambda z, slices, *_, **__: 2 * z.numel() * slices.shape[1],
    "sliced_characteristic_sums_backward": lambda _, z, slices, *__, **___: (
        2 * z.numel() * slices.shape[1]
    ),
}


class OthersAlike:
    """Stands for torch.distributed where every other process does what this one does."""

    def __init__(self, world: int, operations: Operations) -> None:
        self.world, self.count, self.operations = world, operations.count, operations

    def functions(self) -> dict[str, Any]:
        return {
            "is_initialized": lambda: True,
            "get_world_size": lambda: self.world,
            "get_rank": lambda: 0,
            "get_backend_config": lambda: "cpu:alike",
            "all_gather_into_tensor": self.all_gather,
            "reduce_scatter_tensor": self.reduce_scatter,
            "all_reduce": self.all_reduce,
            "broadcast": self.broadcast,
            "P2POp": lambda call, x, _: (call, x),
            "batch_isend_irecv": self.ring_shift,
        }

    def all_gather(self, out: Tensor, x: Tensor, group: Any = None) -> None:
        # What hosts tell each other, sizes of batches, is in the memory of the CPU.
        self.count.collectives.append(("all-gather" if x.is_meta else "host", size_of(x)))
        with self.operations.pause():
            out.view(self.world, *x.shape).copy_(x)

    def reduce_scatter(self, out: Tensor, x: Tensor) -> None:
        self.count.collectives.append(("reduce-scatter", size_of(out)))
        with self.operations.pause():
            out.copy_(x[: len(out)])

    def all_reduce(self, x: Tensor, _: Any = None, async_op: bool = False) -> Any:
        self.count.collectives.append(("all-reduce", size_of(x)))
        with self.operations.pause():
            x.mul_(self.world)
        return mock.Mock() if async_op else None

    def broadcast(self, x: Tensor, src: int) -> None:
        self.count.collectives.append(("broadcast", size_of(x)))

    def ring_shift(self, operations: list[tuple[Any, Tensor]]) -> list[Any]:
        (_, sent), (_, received) = operations
        self.count.collectives.append(("ring shift", size_of(sent)))
        with self.operations.pause():
            received.copy_(sent)
        return []


def counted(case: Case, world: int, dtype: torch.dtype, checking: bool = False) -> Count:
    """What a step of the loss, forward and backward, takes on one of ``world`` processes."""
    count = Count()
    make = case.check if checking and case.check else case.make
    call = make(partial(torch.empty, dtype=dtype, device="meta", requires_grad=True))
    with contextlib.ExitStack() as stack:
        operations = Operations(count)
        if world > 1:
            alike = OthersAlike(world, operations).functions()
            stack.enter_context(mock.patch.multiple(dist, **alike))
        stack.enter_context(operations)
        call().backward()
    return count
