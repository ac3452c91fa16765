"""Shape-only kernels of ``mast_ext::vicreg_terms``; schemas in library.cpp."""

import torch

from mast_ext import native
from mast_ext.ops.common import (
    accumulation_dtype,
    prefers_gram,
    product_dtype,
    shape_only,
    wanted_like,
)

op = torch.ops.mast_ext.vicreg_terms.default
backward_op = torch.ops.mast_ext.vicreg_terms_backward.default


@shape_only("mast_ext::vicreg_terms")
def _(x, y, invariance, group, group_weights, eps, scales, weights):
    rows, dim = x.shape
    gram = prefers_gram(rows, dim, 1)
    keep = 2 * x.numel() <= native.kept_elements
    mean = x.new_empty((2, dim), dtype=accumulation_dtype(x))
    product = x.new_empty((1, 2, rows, rows) if gram else (2, dim, dim), dtype=product_dtype(x))
    return (
        mean.new_empty(()),
        mean.new_empty(3),
        mean,
        torch.empty_like(mean),
        product,
        product.new_empty((2, rows, dim) if keep else (0,)),
        *(mean.new_empty(shape) for shape in group_shapes(group_weights)),
    )


def group_shapes(group_weights):
    """The shapes of the groups' sums, counts, means, and of the pairs that were compared."""
    if group_weights is None:
        return [(0,)] * 4
    groups, dim = group_weights.shape
    return [(groups, dim), (groups,), (dim,), (dim,)]


@torch.library.register_fake("mast_ext::vicreg_terms_backward")
def _(
    grad,
    x,
    y,
    invariance,
    group,
    group_weights,
    mean,
    sum_squares,
    product,
    centered,
    group_sums,
    group_counts,
    group_means,
    compared,
    eps,
    factors,
    weights_wanted,
):
    return (
        x.new_empty((2, *x.shape)),
        wanted_like(invariance, True, mean),
        wanted_like(group_weights, weights_wanted, mean),
    )
