"""Shape-only kernels of ``mast_ext::contrastive_loss``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import (
    accumulation_dtype,
    kept_products,
    one_by_one,
    shape_only,
    wanted_like,
)

op = torch.ops.mast_ext.contrastive_loss.default
backward_op = torch.ops.mast_ext.contrastive_loss_backward.default


@shape_only("mast_ext::contrastive_loss")
def _(views, temperature_tensor, temperature, decoupled, within_views, one_sided, keep=True):
    first, count = views[0], len(views)
    rows = first.shape[0]
    kept = (count if within_views else count - 1) * rows
    lse = first.new_empty((count, count, rows), dtype=accumulation_dtype(first))
    return (
        lse.new_empty(()),
        lse,
        lse.new_empty((2, *lse.shape) if keep else (0,)),
        lse.new_empty((1, count, rows)),
        lse.new_empty(kept_products(first, 1, kept, kept, keep)),
    )


@torch.library.register_fake("mast_ext::contrastive_loss_backward")
def _(
    grad,
    views,
    temperature_tensor,
    lse,
    slopes,
    inv_norm,
    products,
    temperature,
    within_views,
    wanted,
):
    first = views[0]
    return (
        first.new_empty((len(views), *first.shape) if wanted[0] else (0,)),
        wanted_like(temperature_tensor, wanted[1], lse),
    )


for each in (op, backward_op):
    torch.library.register_vmap(each, one_by_one(each))
