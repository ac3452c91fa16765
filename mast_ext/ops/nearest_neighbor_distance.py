"""Shape-only kernels of ``mast_ext::nearest_neighbor_distance``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only, wanted_like

op = torch.ops.mast_ext.nearest_neighbor_distance.default
backward_op = torch.ops.mast_ext.nearest_neighbor_distance_backward.default


@shape_only("mast_ext::nearest_neighbor_distance")
def shapes(x, eps):
    """What the operator returns, without values."""
    distance = x.new_empty((x.shape[0],), dtype=accumulation_dtype(x))
    return distance, torch.empty_like(distance, dtype=torch.long)


@torch.library.register_fake("mast_ext::nearest_neighbor_distance_backward")
def backward_shapes(grad_distance, x, distance, index, eps):
    """What the backward operator returns, without values."""
    return wanted_like(x, True, x)
