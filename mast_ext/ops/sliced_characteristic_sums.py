"""Shape-only kernels of ``mast_ext::sliced_characteristic_sums``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype

op = torch.ops.mast_ext.sliced_characteristic_sums.default
backward_op = torch.ops.mast_ext.sliced_characteristic_sums_backward.default


@torch.library.register_fake("mast_ext::sliced_characteristic_sums")
def _(z, slices, knots, t_min, t_max):
    shape = (z.shape[0], knots, 2, slices.shape[1])
    return z.new_empty(shape, dtype=accumulation_dtype(z))


@torch.library.register_fake("mast_ext::sliced_characteristic_sums_backward")
def _(grad_sums, z, slices, t_min, t_max):
    return z.new_empty(z.shape)
