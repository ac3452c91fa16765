"""Shape-only kernel and gradient of ``cross_correlation_penalty``; schema in library.cpp."""

import torch

from mast_ext.ops.common import (
    KEPT_ELEMENTS,
    accumulation_dtype,
    product_dtype,
    refuse_second_derivative,
    wanted_like,
)

op = torch.ops.mast_ext.cross_correlation_penalty.default
backward_op = torch.ops.mast_ext.cross_correlation_penalty_backward.default


@torch.library.register_fake("mast_ext::cross_correlation_penalty")
def _(a, b, lambda_, variant):
    rows, dim = a.shape
    gram = dim >= 2 * (rows - 1)
    penalty = a.new_empty((), dtype=accumulation_dtype(a))
    product = a.new_empty((2, rows, rows) if gram else (1, dim, dim), dtype=product_dtype(a))
    return (
        penalty,
        penalty.new_empty((2, dim)),
        penalty.new_empty((2, dim)),
        product,
        penalty.new_empty((dim,)),
        penalty.new_empty((rows if gram else dim,)),
        product.new_empty((2 if 2 * a.numel() <= KEPT_ELEMENTS else 0, rows, dim)),
    )


@torch.library.register_fake("mast_ext::cross_correlation_penalty_backward")
def _(
    grad_penalty,
    a,
    b,
    mean,
    scale,
    product,
    dots,
    row_sums,
    standard,
    lambda_,
    variant,
    wanted,
):
    return wanted_like(a, wanted[0], a), wanted_like(b, wanted[1], a)


def _setup_context(ctx, inputs, output):
    a, b, ctx.lambda_, ctx.variant = inputs
    ctx.save_for_backward(a, b, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_penalty, *_):
    if grad_penalty is None:
        return (None,) * 4
    wanted = ctx.needs_input_grad[:2]
    grads = backward_op(grad_penalty, *ctx.saved_tensors, ctx.lambda_, ctx.variant, wanted)
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None


torch.library.register_autograd(
    "mast_ext::cross_correlation_penalty", _backward, setup_context=_setup_context
)
refuse_second_derivative("cross_correlation_penalty")
