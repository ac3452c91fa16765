"""Shape-only kernel and gradient of ``mast_ext::subspace_nll``; the schema is in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, refuse_second_derivative, wanted_like

op = torch.ops.mast_ext.subspace_nll.default
backward_op = torch.ops.mast_ext.subspace_nll_backward.default


@torch.library.register_fake("mast_ext::subspace_nll")
def _(x, log_var_x, y, log_var_y, masks, variance):
    subspaces = 1 if masks is None else masks.shape[0]
    y_views = x.shape[0] if y is None else y.shape[0]
    nll = x.new_empty((subspaces, x.shape[0], y_views, x.shape[1]), dtype=accumulation_dtype(x))
    diagonal = variance == "diagonal" or (variance is None and log_var_x.shape[-1] == x.shape[-1])
    return nll, nll.new_empty(0) if diagonal else torch.empty_like(nll)


@torch.library.register_fake("mast_ext::subspace_nll_backward")
def _(grad_nll, x, log_var_x, y, log_var_y, masks, nll, distance, variance, wanted):
    references = (x, log_var_x, y, log_var_y, masks)
    fallbacks = (x, x, x, x, nll)
    return tuple(map(wanted_like, references, wanted, fallbacks))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.variance = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_nll, _grad_distance):
    if grad_nll is None:
        return (None,) * 6
    wanted = ctx.needs_input_grad[:5]
    grads = backward_op(grad_nll, *ctx.saved_tensors, ctx.variance, wanted)
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None


torch.library.register_autograd("mast_ext::subspace_nll", _backward, setup_context=_setup_context)
refuse_second_derivative("subspace_nll")
