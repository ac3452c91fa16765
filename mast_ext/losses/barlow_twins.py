"""Barlow Twins (Zbontar et al., ICML 2021), a drop-in for lightly's class."""

from typing import Literal

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import as_integer, explains_types, require_number
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import (
    in_one_dtype,
    require_alike,
    require_images,
    require_option,
    require_views,
)
from mast_ext.losses.common.linear_algebra import gram

Variant = Literal["official", "paper"]


class BarlowTwinsLoss(nn.Module):
    """Cross-correlation of two views against the identity::

        Σ_d (1 − C_dd)² + lambda_param · Σ_{d≠e} C_de²       C = norm(z_a)ᵀ norm(z_b) / B

    where ``norm`` standardizes every dimension over the batch. Values equal those of lightly 1.6.0
    to float32 accuracy; the loss of 16-bit inputs is float32.

    Args:
        lambda_param: Weight of the off-diagonal entries.
        gather_distributed: Takes the batch of all processes as one, standardization included
            (lightly standardizes every process's batch by itself and averages ``C``). Processes
            must have batches of equal size.
        variant: ``"official"`` standardizes as batch norm does, with the biased variance plus 1e-5
            (the authors' code, lightly); ``"paper"`` divides by the unbiased standard deviation
            (the paper's pseudo-code).

    Raises:
        ValueError: ``variant`` is unknown, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        lambda_param: float = 5e-3,
        gather_distributed: bool = False,
        *,
        variant: Variant = "official",
    ) -> None:
        super().__init__()
        self.lambda_param = require_number("lambda_param", lambda_param)
        self.gather_distributed = require_distributed(gather_distributed)
        self.variant: Variant = require_option("variant", variant, Variant)

    @explains_types
    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: Embeddings ``[B, D]`` of one view.
            z_b: Embeddings of the other view, like ``z_a``; of another floating-point dtype, too.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, or ``B < 2`` (of all processes, with
                ``gather_distributed``).
        """
        require_alike(z_a=z_a, z_b=z_b)
        z_a, z_b = in_one_dtype(z_a, z_b)
        if self.gather_distributed:
            z_a, z_b = gather_batch(z_a, 0), gather_batch(z_b, 0)
        require_images(z_a.shape[0], "z_a", least=2)
        return functional.cross_correlation_penalty(
            z_a, z_b, lambda_=self.lambda_param, variant=self.variant
        )

    @explains_types
    def pair_losses(self, views: Tensor, *, chunks: int | None = None) -> Tensor:
        """What the loss says about every pair of views of every image.

        The loss is a function of the batch's correlations and has no exact share per image. By
        default this is half the squared distance of the standardized embeddings, whose mean over
        images is ``Σ_d (1 − C_dd)``: what the diagonal term pulls on.

        With ``chunks`` the batch is cut into that many parts, as in the published code of Ferreira
        et al. 2025: the images of a part share the loss of the part as if it were the batch. No
        ``D×D`` matrix is formed: with ``A, B`` the standardized views of ``b`` images,
        ``Σ_de C_de² = ⟨A·Aᵀ, B·Bᵀ⟩ / b²``, so that one ``b×b`` Gram matrix per view serves all
        pairs.

        Args:
            views: Embeddings ``[V, B, D]``.
            chunks: In how many parts, whose sizes differ by at most 1, a batch (this process's) is
                cut; at least 2 images each.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``B < 2`` (of all processes, with ``gather_distributed``), or ``chunks`` is
                not between 1 and ``B / 2``.
        """
        require_views(views)
        wide = views.double() if views.dtype == torch.float64 else views.float()
        if chunks is None:
            batch = gather_batch(wide, 1) if self.gather_distributed else wide
            require_images(batch.shape[1], "views", least=2)
            normal = self._standardize(wide, batch)
            return functional.subspace_similarity(normal, metric="sqeuclidean")[0] / 2
        chunks = as_integer("chunks", chunks)
        if not 1 <= chunks <= wide.shape[1] // 2:
            raise ValueError(
                f"chunks must be at least 1 and leave 2 images to each, got {chunks} for views"
                f" {list(views.shape)}"
            )
        parts = [self._chunk_losses(part) for part in wide.tensor_split(chunks, dim=1)]
        return torch.cat(parts, dim=2)

    def _chunk_losses(self, views: Tensor) -> Tensor:
        """The losses of a chunk's views ``[V, b, D]``, given to each image: ``[V, V, b]``."""
        count = views.shape[1]
        normal = self._standardize(views, views)
        grams = gram(normal)
        total = torch.stack([(grams * gram).sum((1, 2)) for gram in grams]) / count**2
        diagonal = torch.stack([(normal * view).mean(1) for view in normal])  # C_dd: [V, V, D]
        off_diagonal = total - diagonal.square().sum(-1)
        loss = (1 - diagonal).square().sum(-1) + self.lambda_param * off_diagonal
        return loss.unsqueeze(-1).expand(-1, -1, count)

    def _standardize(self, views: Tensor, batch: Tensor) -> Tensor:
        """Views ``[V, b, D]`` by the mean and variance of every dimension over a batch of them."""
        official = self.variant == "official"
        variance = batch.var(1, keepdim=True, unbiased=not official)
        scale = (variance + (1e-5 if official else 0.0)).rsqrt()
        return (views - batch.mean(1, keepdim=True)) * scale

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param}, variant={self.variant!r}"
