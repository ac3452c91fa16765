"""What VICReg asks of every position's batch by itself: variance and covariance."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from mast_ext import functional


def positional_terms(views: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """The variance and the covariance terms of several views.

    Args:
        views: ``[B, ..., D]`` each, of one shape. Axes between the batch and the embedding are
            positions: each has its own statistics, and the terms are their means.
        eps: Added to the variances inside the root.

    Returns:
        Two scalars, float32 (float64 for float64 inputs): the sums of the views' variance terms and
        of their covariance terms.
    """
    variances, covariances = [], []
    for z in views:  # one at a time: a copy of all costs more
        positions = z.flatten(1, -2).transpose(0, 1)
        variance, covariance = functional.variance_covariance(positions, eps=eps)
        variances.append(variance.mean())
        covariances.append(covariance.mean())
    return reduce(torch.add, variances), reduce(torch.add, covariances)
