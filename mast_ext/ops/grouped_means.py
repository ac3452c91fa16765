"""Shape-only kernels of ``mast_ext::grouped_means``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import shape_only, wanted_like

op = torch.ops.mast_ext.grouped_means.default
backward_op = torch.ops.mast_ext.grouped_means_backward.default


@shape_only("mast_ext::grouped_means")
def _(group_weights, sums, counts):
    dim = group_weights.shape[1]
    return sums.new_empty(dim), sums.new_empty(dim)


@torch.library.register_fake("mast_ext::grouped_means_backward")
def _(grad_means, group_weights, sums, counts, means, compared, wanted):
    inputs = (group_weights, sums, counts)
    return tuple(wanted_like(t, want, t) for t, want in zip(inputs, wanted, strict=True))
