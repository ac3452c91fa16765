"""Shape-only kernels of ``mast_ext::cross_correlation_penalty``; schemas in library.cpp."""

import torch

from mast_ext import native
from mast_ext.ops.common import (
    accumulation_dtype,
    prefers_gram,
    product_dtype,
    shape_only,
    wanted_like,
)

op = torch.ops.mast_ext.cross_correlation_penalty.default
backward_op = torch.ops.mast_ext.cross_correlation_penalty_backward.default


@shape_only("mast_ext::cross_correlation_penalty")
def shapes(a, b, lambda_, variant):
    """What the operator returns, without values."""
    rows, dim = a.shape
    gram = prefers_gram(rows, dim, 1)
    penalty = a.new_empty((), dtype=accumulation_dtype(a))
    # As in csrc/host/cross_correlation_penalty: (H, H^T) of a small batch in the place of P.
    small = a.device.type == "cuda" and not gram and dim <= 128 and rows * dim <= 1 << 16
    matrices = 2 if small else 1
    product = a.new_empty((2, rows, rows) if gram else (matrices, dim, dim), dtype=product_dtype(a))
    return (
        penalty,
        penalty.new_empty((2, dim)),
        penalty.new_empty((2, dim)),
        product,
        penalty.new_empty((dim,)),
        penalty.new_empty((rows if gram else dim,)),
        penalty.new_empty((dim if small else 0,)),
        product.new_empty((2 if 2 * a.numel() <= native.kept_elements else 0, rows, dim)),
    )


@torch.library.register_fake("mast_ext::cross_correlation_penalty_backward")
def backward_shapes(
    grad_penalty,
    a,
    b,
    mean,
    scale,
    product,
    dots,
    row_sums,
    column_sums,
    standard,
    lambda_,
    variant,
    wanted,
):
    """What the backward operator returns, without values."""
    return wanted_like(a, wanted[0], a), wanted_like(b, wanted[1], a)
