"""Shape-only kernels of ``mast_ext::subspace_similarity``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.subspace_similarity.default
backward_op = torch.ops.mast_ext.subspace_similarity_backward.default


@shape_only("mast_ext::subspace_similarity")
def _(x, y, masks, metric, eps):
    subspaces = 1 if masks is None else masks.shape[0]
    cosine = metric == "cosine"
    x_views, batch = x.shape[:2]
    y_views = x_views if y is None else y.shape[0]
    similarity = x.new_empty((subspaces, x_views, y_views, batch), dtype=accumulation_dtype(x))
    inv_norm_x = similarity.new_empty((subspaces, x_views if cosine else 0, batch))
    inv_norm_y = similarity.new_empty(
        (subspaces, y_views if cosine and y is not None else 0, batch)
    )
    return similarity, inv_norm_x, inv_norm_y


@torch.library.register_fake("mast_ext::subspace_similarity_backward")
def _(grad_similarity, x, y, masks, similarity, inv_norm_x, inv_norm_y, metric, eps, wanted):
    return (
        wanted_like(x, wanted[0], x),
        wanted_like(y, wanted[1], x),
        wanted_like(masks, wanted[2], similarity),
    )
