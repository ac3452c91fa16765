"""Model-aware contrastive learning (Huang et al., ICML 2023), a drop-in for lightly's class."""

from typing import Literal

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.checks import explains_types, require_number
from mast_ext.distributed import all_reduce, world_size
from mast_ext.losses.common.contrast import contrast_views, positive_cross_entropy
from mast_ext.losses.common.inputs import Negatives, Reduction
from mast_ext.losses.common.view_pairs import (
    ViewPairLoss,
    log_negatives,
    mean_over_pairs,
    reduce_pairs,
)


class MACLLoss(ViewPairLoss):
    """NT-Xent at a temperature that follows how well views agree, and weighted by what is left::

        A    = mean cosine of the positives                     no gradient flows through A
        t    = temperature · (1 + alpha · (A − A_0))
        loss = mean over anchors of  −log p / (1 − p + 1e-8)    nor through the denominator

    with ``p`` the probability, at temperature ``t``, to find the positive among the rows of both
    views (Huang et al. 2023). ``A`` is the mean over the batch and, of more than two views, over
    the pairs of views. No large ``B × B`` matrix is stored.

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32,
    and ``1 − p`` keeps its digits where ``p`` is near 1.

    Args:
        temperature: At least 1e-8.
        alpha: How much the temperature changes, in [0, 1].
        A_0: The agreement at which it does not, in [0, 1].
        gather_distributed: The negatives, and what ``A`` is the mean of, are the rows of all
            processes, whose batches must be of equal size.
        negatives: Of more than two views: an anchor's negatives are the rows of the ``"pairs"``
            two views, or of ``"all_views"``.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: An argument is out of range, an option unknown, or ``gather_distributed``
            without torch.distributed.
    """

    view_name = "z"

    @property
    def _plain(self) -> bool:
        return False

    def __init__(
        self,
        temperature: float = 0.1,
        alpha: float = 0.5,
        A_0: float = 0.0,
        *,
        gather_distributed: bool = False,
        negatives: Negatives = "pairs",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, gather_distributed, negatives, reduction)
        self.alpha = require_number("alpha", alpha, 0, 1)
        self.A_0 = require_number("A_0", A_0, 0, 1)
        self.eps = 1e-8
        if self.temperature < self.eps:
            raise ValueError(f"temperature must be at least {self.eps}, got {temperature}")

    @explains_types
    def forward(self, z0: Tensor, z1: Tensor, *views: Tensor) -> Tensor:
        """The loss of two or more views.

        Args:
            z0: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or (CPU) float64.
            z1: Embeddings of another view, like ``z0``.
            *views: Of more views.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes or devices differ, there is no image to take the mean over, the
                processes' batches differ in size, or the views disagree so much that ``t`` is not
                positive (looked at on the CPU only).
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        return super().forward(z0, z1, *views)

    def _blocks(self, views: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            cosines = functional.subspace_similarity(views)[0]
            pairs = mean_over_pairs(cosines) if len(views) > 1 else cosines[0, 0]
            total = torch.stack((pairs.sum(), pairs.new_tensor(pairs.numel())))
            if self.gather_distributed and world_size() > 1:
                total = all_reduce(total)
            factor = 1 + self.alpha * (total[0] / total[1].clamp_min(1) - self.A_0)
        temperature = self.temperature * factor
        lse, positive = contrast_views(
            views, temperature=temperature, gather=self.gather_distributed
        )
        return lse.squeeze(0), positive.squeeze(0)

    def _pairs(self, lse: Tensor, positive: Tensor, reduction: Literal["none", "mean"]) -> Tensor:
        negatives = log_negatives(lse, positive, self.negatives)
        missed = positive_cross_entropy(negatives, positive)  # −log p
        return reduce_pairs(missed / (self.eps - torch.expm1(-missed.detach())), reduction)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}, A_0={self.A_0}"
