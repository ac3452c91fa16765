"""Collectives of tensors, with the right gradients, and of objects, between processes.

The contract of every loss in this package: when each process computes the loss of the gathered
batch, and the parameters' gradients are averaged over processes (as DistributedDataParallel does),
the result is the gradient of one process on the global batch. So the backward of a gather adds
up the gradients that all processes found for an embedding, and does not average them.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from mast_ext.compiling import Function, never_compiled

T = TypeVar("T")


def require_distributed(gather_distributed: bool) -> bool:
    """Returns ``gather_distributed``.

    Raises:
        ValueError: It is set, but this build of torch has no ``torch.distributed``.
    """
    if gather_distributed and not dist.is_available():
        raise ValueError("gather_distributed=True needs a build of torch with torch.distributed")
    return gather_distributed


def is_initialized() -> bool:
    """Whether this process belongs to a default process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together; 1 outside of distributed training."""
    return dist.get_world_size() if is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0; 0 outside of distributed training."""
    return dist.get_rank() if is_initialized() else 0


_side_groups: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()  # by the group they stand beside


def host_group() -> Any:
    """The process group that takes tensors on the CPU; None when it is the default one.

    A default group of NCCL takes none: a group of gloo is made to stand beside it, and ends with
    it. That is something to do together, so every process has to call alike for the first time.
    """
    if "cpu:" in dist.get_backend_config():
        return None
    world = dist.group.WORLD
    if world not in _side_groups:
        _side_groups[world] = dist.new_group(backend="gloo", timeout=_timeout_of(world))
    return _side_groups[world]


def _timeout_of(group: Any) -> timedelta | None:
    """How long the group's processes wait for each other; None if the group does not say."""
    for device in ("cuda", "cpu"):
        with suppress(RuntimeError, AttributeError):  # no backend for it, or one without options
            return group._get_backend(torch.device(device)).options._timeout
    return None


def all_reduce(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, without gradient.

    Raises:
        RuntimeError: Another process died or is late.
    """
    return _all_reduce(x) if world_size() > 1 else x


@never_compiled
def _all_reduce(x: Tensor, operation: Any = None) -> Tensor:
    """By default the sum."""
    x = x.detach().clone()
    with _collective("all-reduce"):
        dist.all_reduce(x, operation or dist.ReduceOp.SUM)
    return x


@never_compiled
def start_all_reduce(x: Tensor) -> Callable[[], Tensor]:
    """Starts to sum ``x`` over processes, without gradient, while other work goes on.

    Returns:
        Waits for the sum and returns it; on a GPU the current stream waits, not the host.

    Raises:
        RuntimeError: Another process died or is late; at either call.
    """
    x = x.detach().clone()
    with _collective("all-reduce"):
        work = dist.all_reduce(x, async_op=True)

    def finish() -> Tensor:
        with _collective("all-reduce"):
            work.wait()
        return x

    return finish


FEW_PROCESSES = 8  # GPUs of a machine, for which one exchange is faster than two that move less


def all_reduce_logsumexp(x: Tensor) -> Tensor:
    """Log of the sum of ``exp(x)`` over processes, without gradient; cannot overflow.

    Up to `FEW_PROCESSES` processes gather ``x``. More exchange a maximum and a sum, so that what
    each receives does not grow with their number.

    Raises:
        RuntimeError: Another process died or is late.
    """
    if world_size() == 1:
        return x
    if world_size() <= FEW_PROCESSES:
        return all_gather(x[None]).logsumexp(0)
    limits = torch.finfo(x.dtype)  # where nothing or infinity is largest, differences stay numbers
    largest = _all_reduce(x, dist.ReduceOp.MAX).clamp(limits.min, limits.max)
    return largest + _all_reduce((x - largest).exp()).log()


@never_compiled
def all_gather(x: Tensor, out: Tensor | None = None, group: Any = None) -> Tensor:
    """Concatenates ``x [B, ...]`` of all processes in the order of ranks, without gradient.

    Args:
        x: A tensor whose shape and dtype are the same on every process; not checked.
        out: Contiguous ``[world size · B, ...]`` to write to.
        group: A process group of all processes; by default the default one.

    Raises:
        RuntimeError: Another process died or is late.
    """
    x = x.detach().contiguous()
    if out is None:
        out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    with _collective("all-gather"):
        dist.all_gather_into_tensor(out, x, group=group)
    return out


_SENT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@never_compiled
def require_equal_batches(x: Tensor, dim: int) -> None:
    """Compares what the processes are about to gather along ``dim``.

    Every process learns every size, so all of them raise or none does. The hosts tell each other:
    none waits for a GPU, which meanwhile goes on with what is queued. Not checked while a CUDA
    graph is captured, as its shapes are fixed.

    Raises:
        ValueError: The sizes differ, or the dtypes, or some require a gradient and others do not.
        RuntimeError: Another process died or is late.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    batch = x.shape[dim]
    width = x.numel() // max(batch, 1)
    dtype = _SENT_DTYPES.index(x.dtype) if x.dtype in _SENT_DTYPES else len(_SENT_DTYPES)
    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    mine = torch.tensor([[batch, width, dtype, needs_gradient]], device="cpu")
    every = all_gather(mine, group=host_group()).tolist()
    names = [str(each).removeprefix("torch.") for each in _SENT_DTYPES] + ["another"]
    shown = [(b, w, names[d], "yes" if needs else "no") for b, w, d, needs in every]
    whats = (
        "a batch of the same size",
        "as many numbers per image",
        "embeddings of the same dtype",
        "embeddings that require a gradient, or none that do,",
    )
    for what, values in zip(whats, zip(*shown, strict=True), strict=True):
        if len(set(values)) > 1:
            found = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"gather_distributed=True needs {what} on every process, got {found}")


def gather_batch(x: Tensor, dim: int) -> Tensor:
    """Concatenates ``x`` of all processes along ``dim``, in the order of ranks; differentiable.

    Outside of distributed training ``x`` itself is returned.

    Raises:
        ValueError: The processes' tensors differ in size.
        RuntimeError: Another process died or is late.
    """
    return _gather_batch(x, dim) if world_size() > 1 else x


@never_compiled
def _gather_batch(x: Tensor, dim: int) -> Tensor:
    require_equal_batches(x, dim)
    return _Gather.apply(x.movedim(dim, 0)).movedim(0, dim)


class _Gather(Function):
    """``[B, ...]`` to ``[world size · B, ...]``."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _ReduceScatter.apply(grad)


class _ReduceScatter(Function):
    """The adjoint of `_Gather`.

    Inside of a transform of torch.func only the forward of a function has tensors that can be sent.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _reduce_scatter(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Gather.apply(grad)


def _reduce_scatter(x: Tensor) -> Tensor:
    """This process's part ``[B, ...]`` of the sum of ``x [world size · B, ...]`` over processes."""
    x = x.contiguous()
    out = x.new_empty((x.shape[0] // world_size(), *x.shape[1:]))
    with _collective("reduce-scatter"):
        dist.reduce_scatter_tensor(out, x)
    return out


@never_compiled
def start_ring_shift(x: Tensor) -> Callable[[], Tensor]:
    """Starts to send ``x`` to the next process and to receive that of the previous one.

    The processes, at least two, form a ring in the order of ranks. Every process has to call alike,
    as often.

    Args:
        x: Of a shape and dtype that are the same on every process; not checked. It must not change
            before the call that waits.

    Returns:
        Waits for the previous process's tensor and returns it, without gradient; on a GPU the
        current stream waits, not the host.

    Raises:
        RuntimeError: Another process died or is late; at either call.
    """
    x = x.detach().contiguous()
    received = torch.empty_like(x)
    to, source = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    with _collective("ring shift"):
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, received, source)]
        )

    def finish() -> Tensor:
        with _collective("ring shift"):
            for work in works:
                work.wait()
        return received

    return finish


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes; differentiable. The gradient is the sum of all processes' too.

    Outside of distributed training ``x`` itself is returned.

    Raises:
        RuntimeError: Another process died or is late.
    """
    return _Sum.apply(x) if is_initialized() else x


class _Sum(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


def sum_for_common_loss(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes; differentiable, with nothing sent in the backward pass.

    For a loss that every process computes alike from the sum. Its gradient is then the same on all
    of them, so that the sum of all processes' gradients is one of them times their number. (So it
    is of second derivatives if what is made of the gradient is the same on all of them, too.)

    Outside of distributed training ``x`` itself is returned.

    Raises:
        RuntimeError: Another process died or is late.
    """
    return _sum_for_common_loss(x) if world_size() > 1 else x


@never_compiled
def _sum_for_common_loss(x: Tensor) -> Tensor:
    return _CommonSum.apply(x)


class _CommonSum(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * world_size()


def broadcast(x: Tensor) -> Tensor:
    """The first process's ``x`` on all of them, without gradient.

    Raises:
        RuntimeError: Another process died or is late.
    """
    return _broadcast(x) if world_size() > 1 else x


@never_compiled
def _broadcast(x: Tensor) -> Tensor:
    x = x.detach().clone()
    with _collective("broadcast"):
        dist.broadcast(x, src=0)
    return x


def all_gather_object(value: T) -> list[T]:
    """A picklable value of every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=host_group())
    return values


def all_gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """Numbers of every process, as many of each, in the order of ranks."""
    if world_size() == 1:
        return [list(numbers)]
    own = torch.tensor([list(numbers)], dtype=torch.float64, device="cpu")
    return all_gather(own, group=host_group()).tolist()


def run_on_first_rank(function: Callable[[], T]) -> T:
    """Calls a function in the first process alone.

    Returns:
        In every process what it returned.

    Raises:
        Exception: In every process what it raised; a RuntimeError with its text elsewhere than in
            the first if it cannot be sent.
    """
    if world_size() == 1:
        return function()
    result: Any = None
    error: Exception | None = None
    if rank() == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    told = [result, None if error is None else _sendable(error)]
    dist.broadcast_object_list(told, src=0, group=host_group())
    if rank() != 0:
        result, error = told
    if error is not None:
        raise error
    return result


def _sendable(error: Exception) -> Exception:
    """The error, or one with its text if it does not survive pickling."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def _collective(name: str) -> Iterator[None]:
    """Says in one sentence what a backend's error means."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{name} failed on rank {rank()} of {world_size()}: another process died or is late"
        ) from error
