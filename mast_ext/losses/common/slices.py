"""Random directions, along which distributions are compared."""

import torch
from torch import Tensor

from mast_ext.distributed import broadcast


def random_slices(dim: int, count: int, like: Tensor) -> Tensor:
    """Directions of length 1, evenly distributed over the sphere, by torch's generator.

    Args:
        dim: Of the space.
        count: How many.
        like: Has their dtype and device.

    Returns:
        ``[dim, count]``.
    """
    return _normalize(torch.randn(dim, count, dtype=like.dtype, device=like.device))


def common_slices(dim: int, count: int, like: Tensor) -> Tensor:
    """Random directions drawn by the first process, on every process.

    Raises:
        RuntimeError: Another process died or is late.
    """
    drawn = torch.randn(dim, count, dtype=like.dtype, device=like.device)
    return _normalize(broadcast(drawn))


def seeded_slices(dim: int, count: int, like: Tensor, seed: int) -> Tensor:
    """Random directions by a seed: the same on every process with the same kind of device."""
    generator = torch.Generator(like.device).manual_seed(seed)
    drawn = torch.randn(dim, count, dtype=like.dtype, device=like.device, generator=generator)
    return _normalize(drawn)


def _normalize(slices: Tensor) -> Tensor:
    if slices.is_cuda:
        return slices / torch.linalg.vector_norm(slices, dim=0)
    # A norm over the first dimension by vector_norm() takes as long as drawing, on a CPU.
    return slices / slices.square().sum(0).sqrt()
