"""Shape-only kernels of ``mast_ext::sigmoid_contrast``; schemas in library.cpp.

The weighted sum has none: it is made of the others (csrc/binding/composites.cpp).
"""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.sigmoid_contrast.default
backward_op = torch.ops.mast_ext.sigmoid_contrast_backward.default
weighted_op = torch.ops.mast_ext.weighted_sigmoid_contrast.default


@shape_only("mast_ext::sigmoid_contrast")
def _(x, y, scale, bias, offset):
    return x.new_empty(x.shape[0], dtype=accumulation_dtype(x))


@torch.library.register_fake("mast_ext::sigmoid_contrast_backward")
def _(grad_loss, x, y, scale, bias, offset, wanted):
    return tuple(wanted_like(t, w, x) for t, w in zip((x, y, scale, bias), wanted, strict=True))


@shape_only("mast_ext::sigmoid_contrast_with_grad")
def _(x, y, scale, bias, weights, offset, wanted):
    grads = (wanted_like(t, w, x) for t, w in zip((x, y, scale, bias), wanted, strict=True))
    return x.new_empty((), dtype=accumulation_dtype(x)), *grads


@torch.library.register_fake("mast_ext::sigmoid_contrast_with_grad_backward")
def _(grad, grad_x, grad_y, grad_scale, grad_bias):
    return tuple(torch.empty_like(t) for t in (grad_x, grad_y, grad_scale, grad_bias))
