"""Negative cosine similarity (SimSiam, Chen & He, CVPR 2021), a drop-in for lightly's class."""

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.losses.common.inputs import Reduction, reduce, require_option


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
        self.dim = dim
        self.eps = eps
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

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
            ValueError: There is no similarity to take the mean over.
        """
        if x0.shape != x1.shape:
            x0, x1 = torch.broadcast_tensors(x0, x1)
        if x0.dtype != x1.dtype:
            dtype = torch.promote_types(x0.dtype, x1.dtype)
            x0, x1 = x0.to(dtype), x1.to(dtype)
        x0, x1 = x0.movedim(self.dim, -1), x1.movedim(self.dim, -1)
        similarity = functional.subspace_similarity(
            x0.reshape(1, -1, x0.shape[-1]), x1.reshape(1, -1, x1.shape[-1]), eps=self.eps
        )
        return reduce(-similarity.view(x0.shape[:-1]), self.reduction, "x0")

    def pair_losses(self, views: Tensor, targets: Tensor | None = None) -> Tensor:
        """The loss of every view against every target, per image.

        Args:
            views: Embeddings (predictions) ``[V, B, D]``.
            targets: Embeddings ``[V, B, D]`` to compare with; ``views`` themselves by default.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        return -functional.subspace_similarity(views, targets, eps=self.eps)[0]
