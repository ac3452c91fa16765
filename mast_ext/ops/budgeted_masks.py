"""Shape-only kernels of ``mast_ext::budgeted_masks``; schemas in library.cpp."""

import torch

op = torch.ops.mast_ext.budgeted_masks.default
backward_op = torch.ops.mast_ext.budgeted_masks_backward.default


@torch.library.register_fake("mast_ext::budgeted_masks")
def _(logits, mean, sharpness):
    masks, dim = logits.shape
    return logits.new_empty(2**masks, dim), logits.new_empty(masks, dim)


@torch.library.register_fake("mast_ext::budgeted_masks_backward")
def _(grad_weights, weights, shifted, sharpness):
    return shifted.new_empty(shifted.shape)
