"""Decoupled contrastive learning (Yeh et al., ECCV 2022), drop-ins for lightly's classes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mast_ext.checks import require_positive
from mast_ext.distributed import world_size
from mast_ext.losses.common.contrast import gather_last
from mast_ext.losses.common.inputs import Negatives, Reduction
from mast_ext.losses.common.view_pairs import ViewPairLoss


class DCLLoss(ViewPairLoss):
    """NT-Xent without the positive in the denominator (eq. 6)::

        mean over anchors a, with positive p:  log Σ_{r of other images} exp(s(a, r)) − w s(a, p)

    with ``s`` the cosine over ``temperature`` and ``r`` over the rows of both views. Values equal
    those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32.

    Args:
        temperature: Divides the cosines; above 0.
        weight_fn: Gives ``w [B]`` from the anchors ``[B, D]`` and their positives, both of norm 1
            and of the loss's dtype; 1 by default. It is called for every ordered pair of views, a
            view with itself included.
        gather_distributed: The negatives are the rows of all processes, whose batches must be of
            equal size. ``weight_fn`` is given this process's rows.
        negatives: Of more than two views: an anchor's negatives are the rows of the ``"pairs"``
            two views, or of ``"all_views"``, always without the anchor's own image.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``temperature`` is not positive, an option is unknown, or
            ``gather_distributed`` without torch.distributed.
    """

    decoupled = True

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
        *,
        negatives: Negatives = "pairs",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, gather_distributed, negatives, reduction)
        self.weight_fn = weight_fn

    @property
    def _plain(self) -> bool:
        return self.weight_fn is None

    def _require_negatives(self, images: int) -> None:
        if images == 1:
            raise ValueError(
                "views must be of 2 or more images to be contrasted decoupled, as a single "
                "image has no negatives, got 1"
            )

    def _weighted(self, positive: Tensor, views: Tensor) -> Tensor:
        if self.weight_fn is None:
            return positive
        units = F.normalize(views.to(positive.dtype), dim=2)
        weights = [self.weight_fn(anchor, other) for anchor in units for other in units]
        for weight in weights:
            if weight.shape != views.shape[1:2]:
                raise ValueError(
                    f"weight_fn must return shape {list(views.shape[1:2])}, "
                    f"got {list(weight.shape)}"
                )
        return positive * torch.stack(weights).view_as(positive)


class DCLWLoss(DCLLoss):
    """`DCLLoss` with weights of a negative von Mises-Fisher density (section 3.3 of the paper)::

        w_b = 2 − B · softmax_b(cos(a_b, p_b) / sigma)

    Pairs that agree already count less. No gradient flows through the weights. Values equal those
    of lightly 1.6.0 to float32 accuracy, with one difference: with ``gather_distributed`` the
    softmax is over the images of all processes, as it is in one process.

    Args:
        temperature: See `DCLLoss`.
        sigma: Divides the cosines in the weights; above 0.
        gather_distributed: See `DCLLoss`.
        negatives: See `DCLLoss`.
        reduction: See `DCLLoss`.

    Raises:
        ValueError: As `DCLLoss`, or ``sigma`` is not positive.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        *,
        negatives: Negatives = "pairs",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature,
            gather_distributed=gather_distributed,
            negatives=negatives,
            reduction=reduction,
        )
        self.sigma = require_positive("sigma", sigma)

    @property
    def _plain(self) -> bool:
        return False

    def _weighted(self, positive: Tensor, views: Tensor) -> Tensor:
        with torch.no_grad():  # a learned temperature has no gradient from here, either
            similarity = positive * self.temperature / self.sigma
        if not self.gather_distributed or world_size() == 1:
            return positive * (2 - similarity.shape[-1] * similarity.softmax(-1))
        every = gather_last(similarity)
        share = (similarity - every.logsumexp(-1, keepdim=True)).exp()
        return positive * (2 - every.shape[-1] * share)
