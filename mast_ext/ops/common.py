"""What the shape-only kernels share."""

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype sums over ``x`` are carried, and results returned, in."""
    return torch.promote_types(x.dtype, torch.float32)


# As kKeptElements and product_type() in csrc/host/columns/column_passes.h.
KEPT_ELEMENTS = 1 << 18


def product_dtype(z: Tensor) -> torch.dtype:
    """The dtype matrix products of embeddings run in."""
    cuda_bfloat16 = z.device.type == "cuda" and z.dtype == torch.bfloat16
    return torch.bfloat16 if cuda_bfloat16 else accumulation_dtype(z)


def wanted_like(reference: Tensor | None, wanted: bool, fallback: Tensor) -> Tensor:
    """Shape of a gradient a backward op returns: like ``reference``, or empty if not wanted."""
    if reference is None:
        return fallback.new_empty(0)
    return (
        torch.empty_like(reference, memory_format=torch.contiguous_format)
        if wanted
        else (reference.new_empty(0))
    )
