"""Shape-only kernels of ``mast_ext::variance_covariance``; schemas in library.cpp."""

import torch

from mast_ext import native
from mast_ext.ops.common import (
    accumulation_dtype,
    prefers_gram,
    product_dtype,
    shape_only,
    wanted_like,
)

op = torch.ops.mast_ext.variance_covariance.default
backward_op = torch.ops.mast_ext.variance_covariance_backward.default


@shape_only("mast_ext::variance_covariance")
def _(z, masks, eps):
    views, rows, dim = z.shape
    subspaces = 1 if masks is None else masks.shape[0]
    gram = prefers_gram(rows, dim, subspaces)
    keep = not (gram and masks is not None) and z.numel() <= native.kept_elements
    variance = z.new_empty((subspaces, views), dtype=accumulation_dtype(z))
    mean = variance.new_empty((views, dim))
    product = z.new_empty(
        (subspaces, views, rows, rows) if gram else (views, dim, dim), dtype=product_dtype(z)
    )
    return (
        variance,
        torch.empty_like(variance),
        mean,
        torch.empty_like(mean),
        product,
        variance.new_empty((subspaces, views, rows if gram else dim)),
        product.new_empty(z.shape if keep else (0,)),
    )


@torch.library.register_fake("mast_ext::variance_covariance_backward")
def _(
    grad_variance,
    grad_covariance,
    z,
    masks,
    mean,
    sum_squares,
    product,
    row_sums,
    centered,
    eps,
    wanted,
):
    return wanted_like(z, wanted[0], z), wanted_like(masks, wanted[1], mean)
