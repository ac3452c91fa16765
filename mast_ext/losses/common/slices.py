"""Random directions, along which distributions are compared."""

import torch
from torch import Tensor

from mast_ext.distributed import broadcast


def random_slices(
    dim: int, count: int, like: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Directions of length 1, evenly distributed over the sphere: ``[dim, count]``.

    Args:
        dim: Of the space.
        count: How many.
        like: Has their dtype and device.
        generator: On the same device; torch's by default.
    """
    return _normalize(_draw(dim, count, like, generator))


def common_slices(dim: int, count: int, like: Tensor) -> Tensor:
    """Those that the first process draws from torch's generator, on every process.

    Raises:
        RuntimeError: Another process died or is late.
    """
    return _normalize(broadcast(_draw(dim, count, like, None)))


def _draw(dim: int, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(dim, count, dtype=like.dtype, device=like.device, generator=generator)


def _normalize(slices: Tensor) -> Tensor:
    return slices / torch.linalg.vector_norm(slices, dim=0)
