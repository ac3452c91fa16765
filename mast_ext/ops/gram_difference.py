"""Shape-only kernels of ``mast_ext::gram_difference``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.gram_difference.default
backward_op = torch.ops.mast_ext.gram_difference_backward.default


@shape_only("mast_ext::gram_difference")
def _(s, t, remove_negative, keep=True):
    images, rows, dim = s.shape
    difference = s.new_empty(images, dtype=accumulation_dtype(s))
    if remove_negative is not None or not keep:
        return difference, difference.new_empty(0)
    # As in csrc/host/gram_difference; the numbers may be symbolic.
    side = 2 * dim if rows > 2 * dim else rows
    return difference, difference.new_empty((images, side, side))


@torch.library.register_fake("mast_ext::gram_difference_backward")
def _(grad_difference, s, t, product, remove_negative, wanted):
    return wanted_like(s, wanted[0], s), wanted_like(t, wanted[1], s)
