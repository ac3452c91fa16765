"""Shape-only kernels of ``mast_ext::weighted_terms``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import shape_only, wanted_like

op = torch.ops.mast_ext.weighted_terms.default
backward_op = torch.ops.mast_ext.weighted_terms_backward.default


@shape_only("mast_ext::weighted_terms")
def _(first, second, third, scales, weights):
    return first.new_empty(()), first.new_empty(len(scales))


@torch.library.register_fake("mast_ext::weighted_terms_backward")
def _(grad, first, second, third, factors, wanted):
    terms = (first, second, third)
    return tuple(wanted_like(t, want, first) for t, want in zip(terms, wanted, strict=True))
