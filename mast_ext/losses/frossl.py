"""FroSSL (Skean et al., ECCV 2024), a drop-in for lightly's class."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_number
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import require_images, stack_views
from mast_ext.losses.common.linear_algebra import smaller_gram, widen


class FroSSLLoss(nn.Module):
    r"""Draws views to their mean, and makes the spectrum of every view's covariance even::

        loss = Σ_v log ‖Z_vᵀ Z_v / tr(Z_vᵀ Z_v)‖²_F
                 + invariance_weight · V/B · Σ_vbd (Z_vbd − Z̄_bd)²

    with ``Z_v [B, D]`` the view with every dimension divided by its norm over the batch, and ``Z̄``
    the mean of the ``V`` views (Skean et al. 2024, "FroSSL: Frobenius Norm Minimization for
    Efficient Multiview Self-Supervised Learning"). Of ``Zᵀ Z`` and ``Z Zᵀ``, whose norms and traces
    agree, the smaller is made. Plain torch: no kernel of ours is in it.

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32,
    and a GPU is not waited for.

    Args:
        invariance_weight: Weight of the distances to the mean view.
        gather_distributed: Takes the batch of all processes as one; they must be of equal size.

    Raises:
        ValueError: ``gather_distributed`` without torch.distributed.
    """

    def __init__(self, invariance_weight: float = 1.0, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.invariance_weight = require_number("invariance_weight", invariance_weight)
        self.gather_distributed = require_distributed(gather_distributed)

    @explains_types
    def forward(self, z_views: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            z_views: Embeddings of two or more views, ``[B, D]`` each: float32, float16, bfloat16 or
                float64.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: There are fewer than two views, the shapes differ, there is no image, or the
                processes' batches differ in size.
            RuntimeError: Another process died or is late.
        """
        views = widen(stack_views(z_views, "z_views"))
        if len(views) < 2:
            raise ValueError(f"z_views must hold at least 2 views, got {len(views)}")
        if self.gather_distributed:
            views = gather_batch(views, 1)
        require_images(views.shape[1], "z_views")
        views = F.normalize(views, dim=1)
        # The trace is the number of dimensions that are not 0 throughout, and has no gradient.
        trace = views.detach().square().sum((1, 2))
        norms = smaller_gram(views).square().sum((1, 2))
        evenness = (norms.log() - 2 * trace.log()).sum()
        distances = (views - views.mean(0)).square().sum() * (len(views) / views.shape[1])
        return evenness + self.invariance_weight * distances

    def extra_repr(self) -> str:
        return f"invariance_weight={self.invariance_weight}"
