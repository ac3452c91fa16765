"""Shape-only kernels of ``mast_ext::grouped_squared_difference``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.grouped_squared_difference.default
backward_op = torch.ops.mast_ext.grouped_squared_difference_backward.default


@shape_only("mast_ext::grouped_squared_difference")
def _(x, y, group, groups, weight, dimension_weights):
    sums = x.new_empty((groups, x.shape[1]), dtype=accumulation_dtype(x))
    rows = 0 if dimension_weights is None else x.shape[0]
    return sums, sums.new_empty(groups), sums.new_empty(rows)


@torch.library.register_fake("mast_ext::grouped_squared_difference_backward")
def _(grad_sums, grad_counts, x, y, group, weight, wanted):
    return (
        wanted_like(x, wanted[0], x),
        wanted_like(y, wanted[1], x),
        wanted_like(weight, wanted[2], grad_sums),
    )
