"""Shape-only kernels of ``mast_ext::gather_views``; schemas in library.cpp."""

import torch
from torch import Tensor

from mast_ext.ops.common import shape_only

op = torch.ops.mast_ext.gather_views.default
backward_op = torch.ops.mast_ext.gather_views_backward.default


def _new_rows(given: Tensor, count: int) -> Tensor:
    """``[count, B, ...]`` laid out as Rows::new_rows of csrc/host/gather_views does it."""
    sizes = (count, *given.shape[1:])
    axes = [
        (stride, size)
        for size, stride in zip(sizes[2:], given.stride()[2:], strict=True)
        if size != 1
    ]
    length, gaps = 1, False
    for stride, size in sorted(axes, key=lambda axis: axis[0]):
        gaps = gaps or stride != length
        length = length * size
    if gaps or 0 in sizes:
        return given.new_empty(sizes)
    return given.new_empty_strided(sizes, (sizes[1] * length, length, *given.stride()[2:]))


@shape_only("mast_ext::gather_views")
def _(views, index):
    return _new_rows(views, index.shape[0])


@torch.library.register_fake("mast_ext::gather_views_backward")
def _(grad, index, views):
    return _new_rows(grad, views)
