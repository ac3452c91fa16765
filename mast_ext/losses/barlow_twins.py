"""Barlow Twins (Zbontar et al., ICML 2021), a drop-in for lightly's class."""

from typing import Literal

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.losses.gather import gather_batch, require_distributed
from mast_ext.losses.inputs import require_option

Variant = Literal["official", "paper"]


class BarlowTwinsLoss(nn.Module):
    """Cross-correlation of two views against the identity::

        Σ_d (1 − C_dd)² + lambda_param · Σ_{d≠e} C_de²       C = norm(z_a)ᵀ norm(z_b) / B

    where ``norm`` standardises every dimension over the batch. Values equal those of lightly 1.6.0
    to float32 accuracy; the loss of 16-bit inputs is float32.

    Args:
        lambda_param: Weight of the off-diagonal entries.
        gather_distributed: Takes the batch of all processes as one, standardisation included
            (lightly standardises every process's batch by itself and averages ``C``). Processes
            must have batches of equal size.
        variant: ``"official"`` standardises as batch norm does, with the biased variance plus 1e-5
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
        self.lambda_param = lambda_param
        self.gather_distributed = require_distributed(gather_distributed)
        self.variant: Variant = require_option("variant", variant, Variant)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: Embeddings ``[B, D]`` of one view.
            z_b: Embeddings of the other view, like ``z_a``.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, or ``B < 2``.
        """
        if self.gather_distributed:
            z_a, z_b = gather_batch(z_a, 0), gather_batch(z_b, 0)
        return functional.cross_correlation_penalty(
            z_a, z_b, lambda_=self.lambda_param, variant=self.variant
        )

    def pair_losses(self, views: Tensor) -> Tensor:
        """What the loss says about every pair of views of every image.

        The loss is a function of the batch's correlations and has no exact share per image. This
        is half the squared distance of the standardised embeddings, whose mean over images is
        ``Σ_d (1 − C_dd)``: what the diagonal term pulls on.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        official = self.variant == "official"
        wide = views.double() if views.dtype == torch.float64 else views.float()
        batch = gather_batch(wide, 1) if self.gather_distributed else wide
        variance = batch.var(1, keepdim=True, unbiased=not official)
        scale = (variance + (1e-5 if official else 0.0)).rsqrt()
        normal = (wide - batch.mean(1, keepdim=True)) * scale
        return functional.subspace_similarity(normal, metric="sqeuclidean")[0] / 2
