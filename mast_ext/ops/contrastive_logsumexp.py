"""Shape-only kernels of ``mast_ext::contrastive_logsumexp``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, kept_products, shape_only, wanted_like

op = torch.ops.mast_ext.contrastive_logsumexp.default
backward_op = torch.ops.mast_ext.contrastive_logsumexp_backward.default


@shape_only("mast_ext::contrastive_logsumexp")
def _(
    x,
    y,
    masks,
    temperature_tensor,
    temperature,
    offset,
    exclude_self,
    exclude_positive,
    within_views,
    keep=True,
):
    subspaces = 1 if masks is None else masks.shape[0]
    x_views, rows = x.shape[:2]
    y_views, columns = (0, 0) if y is None else y.shape[:2]
    blocks = (subspaces, x_views, x_views if y is None else y_views, rows)
    lse = x.new_empty(blocks, dtype=accumulation_dtype(x))
    missing = rows if y is None and not within_views else 0
    width = x_views * rows - missing if y is None else y_views * columns
    return (
        lse,
        lse.new_empty(blocks if offset is not None else (*blocks, 0)),
        lse.new_empty((subspaces, x_views, rows)),
        lse.new_empty((subspaces, y_views, columns)),
        lse.new_empty(kept_products(x, subspaces, x_views * rows - missing, width, keep)),
    )


@torch.library.register_fake("mast_ext::contrastive_logsumexp_backward")
def _(
    grad_lse,
    grad_positive,
    x,
    y,
    masks,
    temperature_tensor,
    lse,
    inv_norm_x,
    inv_norm_y,
    products,
    y_lse,
    y_grad_lse,
    y_grad_positive,
    temperature,
    offset,
    exclude_self,
    exclude_positive,
    within_views,
    wanted,
):
    return (
        wanted_like(x, wanted[0], x),
        wanted_like(y, wanted[1], x),
        wanted_like(masks, wanted[2], lse),
        wanted_like(temperature_tensor, wanted[3], lse),
    )
