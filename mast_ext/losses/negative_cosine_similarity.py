"""Negative cosine similarity (SimSiam, Chen & He, CVPR 2021), a drop-in for lightly's class."""

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_number
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_option,
    require_tensors,
    require_views,
)

# Of so many similarities one operation negates and takes the mean, and another makes its gradient.
# On a GPU a single thread block does so, which is for few numbers.
MOST_IN_ONE_SUM = 4096


class NegativeCosineSimilarity(nn.Module):
    """``−cos(x0, x1)`` along one dimension, averaged over the others.

    Norms below ``eps`` count as ``eps``, in the gradient too (torch's passes it on as if the norm
    were not held). No gradient is stopped: detach the target yourself, as SimSiam does. Values
    equal those of lightly 1.6.0 to float32 accuracy; the result is float32 for 16-bit inputs.

    Args:
        dim: The dimension of the embeddings.
        eps: Smallest norm to divide by.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for every similarity by itself.

    Raises:
        ValueError: ``reduction`` is unknown.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.dim = require_integer("dim", dim)
        self.eps = require_number("eps", eps)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The loss of two tensors.

        Args:
            x0: Embeddings of any shape, with the embedding along ``dim``.
            x1: A tensor that broadcasts with ``x0``.

        Returns:
            A scalar, or with ``reduction="none"`` the broadcast shape without ``dim``; float32
            (float64 for float64 inputs).

        Raises:
            IndexError: ``dim`` is not a dimension of the inputs.
            RuntimeError: The shapes do not broadcast.
            TypeError: The inputs are not floating-point tensors.
            ValueError: There is no similarity to take the mean over, or an embedding of no number.
        """
        require_tensors(x0=x0, x1=x1)
        if x0.shape != x1.shape:
            sides = zip(reversed(x0.shape), reversed(x1.shape), strict=False)
            if not all(a == b or 1 in (a, b) for a, b in sides):
                raise RuntimeError(
                    "x0 and x1 must have one shape, or shapes that broadcast, got "
                    f"{list(x0.shape)} and {list(x1.shape)}"
                )
            x0, x1 = torch.broadcast_tensors(x0, x1)
        if not -x0.ndim <= self.dim < x0.ndim:
            raise IndexError(
                f"x0 and x1 must have the dimension dim={self.dim}, got {list(x0.shape)}"
            )
        if not x0.shape[self.dim]:
            raise ValueError(
                f"x0 and x1 must have embeddings of 1 or more numbers along dim={self.dim}, got "
                f"{list(x0.shape)}"
            )
        x0, x1 = in_one_dtype(x0, x1)
        if self.dim not in (-1, x0.ndim - 1):
            x0, x1 = x0.movedim(self.dim, -1), x1.movedim(self.dim, -1)
        similarity = functional.subspace_similarity(
            x0.reshape(1, -1, x0.shape[-1]), x1.reshape(1, -1, x1.shape[-1]), eps=self.eps
        )
        pairs = similarity.numel()
        if self.reduction == "mean" and 0 < pairs <= MOST_IN_ONE_SUM:
            return functional.weighted_terms(similarity, scales=(-1 / pairs,), weights=(1.0,))[0]
        return reduce(-similarity.view(x0.shape[:-1]), self.reduction, "x0")

    @explains_types
    def pair_losses(self, views: Tensor, targets: Tensor | None = None) -> Tensor:
        """The loss of every view against every target, per image.

        Args:
            views: Embeddings (predictions) ``[V, B, D]``.
            targets: Embeddings ``[V, B, D]`` to compare with; ``views`` themselves by default.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        require_tensors(views=views, targets=targets)
        require_views(views)
        if targets is not None and require_views(targets, "targets").shape[1:] != views.shape[1:]:
            raise ValueError(
                f"targets must have the images and width of views, {list(views.shape)}, "
                f"got {list(targets.shape)}"
            )
        if targets is not None:
            views, targets = in_one_dtype(views, targets)
        return -functional.subspace_similarity(views, targets, eps=self.eps)[0]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}, reduction={self.reduction!r}"
