"""Shape-only kernel and gradient of ``nearest_neighbor_distance``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, refuse_second_derivative, wanted_like

op = torch.ops.mast_ext.nearest_neighbor_distance.default
backward_op = torch.ops.mast_ext.nearest_neighbor_distance_backward.default


@torch.library.register_fake("mast_ext::nearest_neighbor_distance")
def _(x, eps):
    distance = x.new_empty((x.shape[0],), dtype=accumulation_dtype(x))
    return distance, torch.empty_like(distance, dtype=torch.long)


@torch.library.register_fake("mast_ext::nearest_neighbor_distance_backward")
def _(grad_distance, x, distance, index, eps):
    return wanted_like(x, True, x)


def _setup_context(ctx, inputs, output):
    x, ctx.eps = inputs
    ctx.save_for_backward(x, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_distance, _grad_index):
    if grad_distance is None:
        return None, None
    return backward_op(grad_distance, *ctx.saved_tensors, ctx.eps), None


torch.library.register_autograd(
    "mast_ext::nearest_neighbor_distance", _backward, setup_context=_setup_context
)
refuse_second_derivative("nearest_neighbor_distance")
