"""Shape-only kernels of ``mast_ext::view_pair_cross_entropy``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import shape_only

op = torch.ops.mast_ext.view_pair_cross_entropy.default
backward_op = torch.ops.mast_ext.view_pair_cross_entropy_backward.default


@shape_only("mast_ext::view_pair_cross_entropy")
def _(lse, positive, decoupled, reduction):
    return lse.new_empty(lse.shape[:-3] if reduction == "mean" else lse.shape)


@torch.library.register_fake("mast_ext::view_pair_cross_entropy_backward")
def _(grad_loss, lse, positive, decoupled, reduction):
    return lse.new_empty(lse.shape), lse.new_empty(lse.shape)
