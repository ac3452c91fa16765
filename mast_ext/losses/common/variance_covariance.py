"""What VICReg asks of each view's batch by itself: variance and covariance."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from mast_ext import functional


def variance_covariance_terms(views: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """The variance and the covariance terms of several views.

    Args:
        views: ``[B, ..., D]`` each, of one shape. Axes between the batch and the embedding are
            positions: each has its own statistics, and the terms are their means.
        eps: Added to the variances inside the root.

    Returns:
        Two tensors, float32 (float64 for float64 inputs), whose sums are the sums of the views'
        variance terms and of their covariance terms.
    """
    if views[0].ndim == 2 and counts_calls(views[0]):  # a copy, for half of the calls
        return functional.variance_covariance(torch.stack(tuple(views)), eps=eps)
    variances, covariances = [], []
    for z in views:  # one at a time: the copy costs more
        positions = z.flatten(1, -2).transpose(0, 1) if z.ndim > 2 else z[None]
        terms = functional.variance_covariance(positions, eps=eps)
        variance, covariance = (t.squeeze() if z.ndim == 2 else t.mean() for t in terms)
        variances.append(variance)
        covariances.append(covariance)
    return reduce(torch.add, variances), reduce(torch.add, covariances)


def counts_calls(x: Tensor) -> bool:
    """Whether calls take longer than a copy of ``x``: on a GPU, and for few numbers."""
    return x.is_cuda or x.numel() <= 2**15
