"""EMP-SSL (Tong et al., arXiv 2304.03977), a drop-in for lightly's class."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_number, require_positive
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import require_images, require_option, stack_views
from mast_ext.losses.common.linear_algebra import log_determinant, smaller_gram, widen

Variant = Literal["lightly", "paper"]


class EMPSSLLoss(nn.Module):
    r"""Many patches of an image are drawn to their mean, while the batch keeps its coding rate::

        loss = ± mean_v R(Z_v) − inv_coef · mean_vb cos(z_vb, mean_v z_vb)
        R(Z) = ½ log det (I + D / (B · tcr_eps) · Zᵀ Z)

    (Tong et al. 2023; the paper squares ``tcr_eps``, its code and lightly do not.) The determinant
    is that of ``D × D`` or of ``B × B``, whichever is smaller, and equal. It is a Cholesky
    factor's of ``torch.linalg``: no kernel of ours is in it.

    Values equal those of lightly 1.6.0 to float32 accuracy; 16-bit inputs give a float32 loss.
    **The sign of the coding rate is lightly's by default**: plus, so that training makes it small.
    The paper's objective makes it large, which keeps embeddings from collapsing:
    ``variant="paper"``.

    Args:
        tcr_eps: Distortion of the coding rate; above 0.
        inv_coef: Weight of the cosine.
        gather_distributed: Takes the coding rate over the batch of all processes, which must be of
            equal size.
        variant: ``"lightly"`` adds the coding rate, ``"paper"`` takes it off.

    Raises:
        ValueError: ``tcr_eps`` is not positive, ``variant`` unknown, or ``gather_distributed``
            without torch.distributed.
    """

    def __init__(
        self,
        tcr_eps: float = 0.2,
        inv_coef: float = 200.0,
        *,
        gather_distributed: bool = False,
        variant: Variant = "lightly",
    ) -> None:
        super().__init__()
        self.tcr_eps = require_positive("tcr_eps", tcr_eps)
        self.inv_coef = require_number("inv_coef", inv_coef)
        self.gather_distributed = require_distributed(gather_distributed)
        self.variant: Variant = require_option("variant", variant, Variant)

    @explains_types
    def forward(self, z_views: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            z_views: Embeddings of the views, ``[B, D]`` each: float32, float16, bfloat16 or
                float64.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: There is no view, the shapes differ, there is no image, or the processes'
                batches differ in size.
            RuntimeError: Another process died or is late.
        """
        views = widen(stack_views(z_views, "z_views"))
        batch = gather_batch(views, 1) if self.gather_distributed else views
        require_images(views.shape[1], "z_views")
        _, images, dim = batch.shape
        rate = smaller_gram(batch) * (dim / (images * self.tcr_eps))
        identity = torch.eye(rate.shape[-1], dtype=rate.dtype, device=rate.device)
        rate = log_determinant(rate + identity).mean() / 2
        cosine = F.cosine_similarity(views, views.mean(0, keepdim=True), dim=-1).mean()
        return (rate if self.variant == "lightly" else -rate) - self.inv_coef * cosine

    def extra_repr(self) -> str:
        return f"tcr_eps={self.tcr_eps}, inv_coef={self.inv_coef}, variant={self.variant!r}"
