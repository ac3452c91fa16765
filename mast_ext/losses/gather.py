"""Gathering a batch over processes so that distributed training equals training on one.

The contract of every loss in this package: when each process computes the loss of the gathered
batch, and the parameters' gradients are averaged over processes (as DistributedDataParallel does),
the result is the gradient of one process on the global batch. So the backward of the gather adds
up the gradients that all processes found for an embedding, and does not average them.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def require_distributed(gather_distributed: bool) -> bool:
    """Returns ``gather_distributed``.

    Raises:
        ValueError: It is set, but this build of torch has no ``torch.distributed``.
    """
    if gather_distributed and not dist.is_available():
        raise ValueError("gather_distributed=True needs a build of torch with torch.distributed")
    return gather_distributed


def world_size() -> int:
    """Number of processes that train together; 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def gather_batch(x: Tensor, dim: int) -> Tensor:
    """Concatenates ``x`` of all processes along ``dim``, in the order of ranks; differentiable.

    Every process must hold a tensor of the same shape and dtype. Outside of distributed training
    ``x`` itself is returned.
    """
    return _Gather.apply(x.movedim(dim, 0)).movedim(0, dim) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    """``[B, ...]`` to ``[world size · B, ...]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[dist.get_rank()]
