"""VICReg (Bardes, Ponce & LeCun, ICLR 2022), a drop-in for lightly's class.

Composed of the results of two native operators; nothing of size ``D·D`` exists where ``B·B`` is
smaller.
"""

from typing import Literal

from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_number
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import (
    in_one_dtype,
    require_option,
    require_tensors,
    require_views,
)
from mast_ext.losses.common.variance_covariance import positional_terms

Variant = Literal["official", "solo"]


class VICRegLoss(nn.Module):
    """Variance-invariance-covariance regularization of two views::

        lambda_param · mean (z_a − z_b)²
          + mu_param · ½ [v(z_a) + v(z_b)]     v(z) = mean_d relu(1 − sqrt(Var_b(z_bd) + eps))
          + nu_param · [c(z_a) + c(z_b)]       c(z) = Σ_{d≠e} Cov(z)_de² / D

    with unbiased variances and covariances. Values equal those of lightly 1.6.0 to float32
    accuracy, with one difference: the loss of 16-bit inputs is float32 (theirs is rounded to the
    inputs' dtype, and overflows in float16).

    Args:
        lambda_param: Weight of the invariance term.
        mu_param: Weight of the variance term.
        nu_param: Weight of the covariance term.
        gather_distributed: Takes the statistics over the batches of all processes, which must be
            of equal size.
        eps: Added to the variances inside the root.
        variant: ``"official"`` as above (the authors' code, lightly); ``"solo"`` does not halve
            the variance term (solo-learn, and the paper's equation).

    Raises:
        ValueError: ``variant`` is unknown, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        *,
        variant: Variant = "official",
    ) -> None:
        super().__init__()
        self.lambda_param = require_number("lambda_param", lambda_param)
        self.mu_param = require_number("mu_param", mu_param)
        self.nu_param = require_number("nu_param", nu_param)
        self.gather_distributed = require_distributed(gather_distributed)
        self.eps = require_number("eps", eps, 0)
        self.variant: Variant = require_option("variant", variant, Variant)

    @explains_types
    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: Embeddings ``[B, ..., D]``. Axes between the batch and the embedding are positions:
                every one has its own statistics, and the terms are their means.
            z_b: Embeddings of the other view, like ``z_a``; of another floating-point dtype, too.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            AssertionError: The shapes differ, ``B < 2`` (the type lightly raises), or there is no
                number. With ``gather_distributed`` the images of all processes count.
            ValueError: The processes' batches differ in size.
            RuntimeError: Another process died or is late.
        """
        require_tensors(z_a=z_a, z_b=z_b)
        if z_a.shape != z_b.shape:
            raise AssertionError(
                f"z_a and z_b must have the same shape, got {tuple(z_a.shape)} and "
                f"{tuple(z_b.shape)}"
            )
        z_a, z_b = in_one_dtype(z_a, z_b)
        every_a, every_b = z_a, z_b
        if self.gather_distributed and z_a.ndim > 1:
            every_a, every_b = gather_batch(z_a, 0), gather_batch(z_b, 0)
        if z_a.ndim < 2 or every_a.shape[0] < 2:
            raise AssertionError(
                f"z_a and z_b must have shape [B, ..., D] with B > 1, got {tuple(every_a.shape)}"
            )
        if 0 in z_a.shape[1:]:
            raise AssertionError(f"z_a and z_b must have no empty axis, got {tuple(z_a.shape)}")
        scales = (1 / z_a.numel(), 0.5 if self.variant == "official" else 1.0, 1.0)
        weights = (self.lambda_param, self.mu_param, self.nu_param)
        distance = None  # vicreg_terms takes that of the views themselves
        if z_a.ndim > 2 or every_a is not z_a:
            flat = [z.flatten(0, -2).unsqueeze(0) for z in (z_a, z_b)]
            distance = functional.subspace_similarity(*flat, metric="sqeuclidean")
        if z_a.ndim == 2:
            return functional.vicreg_terms(
                every_a, every_b, distance, scales=scales, weights=weights, eps=self.eps
            )[0]
        assert distance is not None
        variance, covariance = positional_terms([every_a, every_b], self.eps)
        return functional.weighted_terms(
            distance, variance, covariance, scales=scales, weights=weights
        )[0]

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """What the loss says about every pair of views of every image.

        Variance and covariance belong to the batch, so this is the invariance term alone, weighted
        as in the loss: its mean over images is that term.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        require_views(views)
        distance = functional.subspace_similarity(views, metric="sqeuclidean")[0]
        return distance * self.lambda_param / views.shape[2]

    def extra_repr(self) -> str:
        return (
            f"lambda_param={self.lambda_param}, mu_param={self.mu_param}, nu_param={self.nu_param},"
            f" eps={self.eps}, variant={self.variant!r}"
        )
