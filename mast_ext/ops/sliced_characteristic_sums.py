"""Shape-only kernels of ``mast_ext::sliced_characteristic_sums``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only

op = torch.ops.mast_ext.sliced_characteristic_sums.default
backward_op = torch.ops.mast_ext.sliced_characteristic_sums_backward.default


@shape_only("mast_ext::sliced_characteristic_sums")
def _(z, slices, knots, t_min, t_max, keep=True):
    dim, count = slices.shape
    sums = z.new_empty((z.shape[0], knots, 2, count), dtype=accumulation_dtype(z))
    kept = (*z.shape[:2], (count + 31) // 16 * 16) if keep and count <= 2 * dim else (0,)
    return sums, sums.new_empty(kept)


@torch.library.register_fake("mast_ext::sliced_characteristic_sums_backward")
def _(grad_sums, z, slices, projections, t_min, t_max):
    return z.new_empty(z.shape)
