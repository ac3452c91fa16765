"""Shape-only kernels of ``mast_ext::budgeted_masks``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import shape_only

op = torch.ops.mast_ext.budgeted_masks.default
backward_op = torch.ops.mast_ext.budgeted_masks_backward.default


@shape_only("mast_ext::budgeted_masks")
def _(mask_logits, mean, sharpness):
    masks, dim = mask_logits.shape
    return mask_logits.new_empty(2**masks, dim), mask_logits.new_empty(masks, dim)


@torch.library.register_fake("mast_ext::budgeted_masks_backward")
def _(grad_weights, weights, shifted, sharpness):
    return shifted.new_empty(shifted.shape)
