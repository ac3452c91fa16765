"""Shape-only kernels of ``mast_ext::subspace_nll``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.subspace_nll.default
backward_op = torch.ops.mast_ext.subspace_nll_backward.default


@shape_only("mast_ext::subspace_nll")
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
