"""Shape-only kernels of ``mast_ext::epps_pulley_distance``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import shape_only

op = torch.ops.mast_ext.epps_pulley_distance.default
backward_op = torch.ops.mast_ext.epps_pulley_distance_backward.default


@shape_only("mast_ext::epps_pulley_distance")
def _(sums, images_tensor, images, phi, weights):
    return sums.new_empty(sums.shape[0])


@torch.library.register_fake("mast_ext::epps_pulley_distance_backward")
def _(grad_distance, sums, images_tensor, images, phi, weights):
    return sums.new_empty(sums.shape)
