"""The functions of ``mast_ext.functional`` in plain torch: definition, test oracle, baseline.

Written to be read: formulas as they stand in the docstrings there, materialising what they like.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["subspace_nll", "subspace_similarity"]


def _weights(masks: Tensor | None, like: Tensor) -> Tensor:
    """Squared masks ``[K, D]``."""
    return like.new_ones(1, like.shape[-1]) if masks is None else masks.square()


def subspace_similarity(
    x: Tensor,
    y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    metric: Literal["cosine", "sqeuclidean"] = "cosine",
    eps: float = 1e-8,
) -> Tensor:
    """See :func:`mast_ext.functional.subspace_similarity`."""
    weights = _weights(masks, x)[:, None, None, None, :]  # [K, 1, 1, 1, D]
    a, b = (
        x[None, :, None],
        (x if y is None else y)[None, None],
    )  # [1, Vx, 1, B, D], [1, 1, Vy, B, D]
    if metric == "sqeuclidean":
        return (weights * (a - b).square()).sum(-1)
    dot = (weights * a * b).sum(-1)
    norm_a = (weights * a.square()).sum(-1).sqrt().clamp_min(eps)
    norm_b = (weights * b.square()).sum(-1).sqrt().clamp_min(eps)
    return dot / (norm_a * norm_b)


def subspace_nll(
    x: Tensor,
    log_var_x: Tensor,
    y: Tensor | None = None,
    log_var_y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    variance: Literal["diagonal", "subspace"] | None = None,
) -> Tensor:
    """See :func:`mast_ext.functional.subspace_nll`."""
    weights = _weights(masks, x)
    weights = (weights / weights.sum(-1, keepdim=True))[:, None, None, None, :]
    y, log_var_y = (x, log_var_x) if y is None or log_var_y is None else (y, log_var_y)
    squared = (x[None, :, None] - y[None, None]).square()  # [1, Vx, Vy, B, D]
    log_s = torch.logaddexp(log_var_x[:, None], log_var_y[None])  # [Vx, Vy, B, D or K]
    if variance is None:
        variance = "diagonal" if log_var_x.shape[-1] == x.shape[-1] else "subspace"
    if variance == "diagonal":
        return (weights * (squared / log_s.exp() + log_s)).sum(-1) / 2
    log_s = log_s.movedim(-1, 0)
    return ((weights * squared).sum(-1) / log_s.exp() + log_s) / 2
