"""The functions of ``mast_ext.functional`` in plain torch: definition, test oracle, baseline.

Written to be read: formulas as they stand in the docstrings there, materialising what they like.
"""

from typing import Literal

from torch import Tensor

__all__ = ["subspace_similarity"]


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
    a, b = x[None, :, None], (x if y is None else y)[None, None]  # [1, Vx, 1, B, D], [1, 1, Vy, B, D]
    if metric == "sqeuclidean":
        return (weights * (a - b).square()).sum(-1)
    dot = (weights * a * b).sum(-1)
    norm_a = (weights * a.square()).sum(-1).sqrt().clamp_min(eps)
    norm_b = (weights * b.square()).sum(-1).sqrt().clamp_min(eps)
    return dot / (norm_a * norm_b)
