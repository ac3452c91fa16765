"""Alignment and uniformity (Wang & Isola, ICML 2020), a drop-in for lightly's class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import explains_types, require_number, require_positive
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.contrast import contrast_views
from mast_ext.losses.common.inputs import in_one_dtype, require_alike, require_images, require_views
from mast_ext.losses.common.linear_algebra import widen


class HypersphereLoss(nn.Module):
    r"""Pulls the views of an image together, and spreads images evenly over the sphere::

        mean ‖x̂ − ŷ‖^alpha + lam/2 · [u(x) + u(y)]
        u(x) = log mean_{i<j} exp(−t ‖x̂_i − x̂_j‖²)            x̂ = x / ‖x‖

    (Wang & Isola 2020, section 4.) As ``‖x̂_i − x̂_j‖² = 2 − 2 cos``, the second term is the
    contrastive operator's at temperature ``1 / (2 t)``: no large ``B × B`` matrix is stored. A row
    of zeros is at right angles to all others.

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32.

    Args:
        t: Steepness of the kernel that uniformity is measured by; above 0.
        lam: Weight of uniformity.
        alpha: Power of the distance in alignment; above 0.
        gather_distributed: Measures uniformity over the batch of all processes, which must be of
            equal size.

    Raises:
        ValueError: ``t`` or ``alpha`` is not positive, or ``gather_distributed`` without
            torch.distributed.
    """

    def __init__(
        self,
        t: float = 1.0,
        lam: float = 1.0,
        alpha: float = 2.0,
        *,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.t = require_positive("t", t)
        self.lam = require_number("lam", lam)
        self.alpha = require_positive("alpha", alpha)
        self.gather_distributed = require_distributed(gather_distributed)

    @explains_types
    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or (CPU) float64.
            z_b: Embeddings of the other view, like ``z_a``.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes or devices differ, there are fewer than two images (of all
                processes, with ``gather_distributed``), or the processes' batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_alike(z_a=z_a, z_b=z_b)
        z_a, z_b = in_one_dtype(z_a, z_b)
        uniformity = (self._uniformity(z_a) + self._uniformity(z_b)) / 2
        alignment = self._alignment(z_a[None], z_b[None]).mean()
        return alignment + self.lam * uniformity

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """What the loss says about every pair of views of every image.

        Uniformity belongs to the batch, so this is the distance that alignment is the mean of.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``views`` has another shape.
            TypeError: The dtype is not supported.
        """
        return self._alignment(require_views(views), None)

    def _alignment(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Of views ``[V, B, D]`` with those of ``y``, or with themselves: ``[V, W, B]``."""
        unit = F.normalize(widen(x), dim=2)
        other = None if y is None else F.normalize(widen(y), dim=2)
        square = functional.subspace_similarity(unit, other, metric="sqeuclidean")[0]
        # At distance 0 a root has an infinite gradient; the clamp makes it 0, a subgradient.
        return square.clamp_min(torch.finfo(square.dtype).tiny).pow(self.alpha / 2)

    def _uniformity(self, x: Tensor) -> Tensor:
        lse, _ = contrast_views(
            x[None], temperature=1 / (2 * self.t), gather=self.gather_distributed
        )
        rows = lse.flatten()
        if self.gather_distributed:
            rows = gather_batch(rows, 0)
        images = rows.shape[0]
        require_images(images, "z_a", least=2)
        return rows.logsumexp(0) - math.log(images * (images - 1)) - 2 * self.t

    def extra_repr(self) -> str:
        return f"t={self.t}, lam={self.lam}, alpha={self.alpha}"
