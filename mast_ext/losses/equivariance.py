"""EquiMod's equivariance loss (Devillers & Lefort, ICLR 2023).

A predictor moves the embedding of the plain image to where a view's augmentation should take it.
The loss pulls that prediction and the view's actual embedding together, and pushes everything else
away, the other views of the same image included: embeddings that ignore the augmentation lose.
"""

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_one_device
from mast_ext.distributed import require_distributed
from mast_ext.losses.common.contrast import contrast_views, positive_cross_entropy
from mast_ext.losses.common.inputs import (
    Reduction,
    reduce,
    require_option,
    require_temperature,
    require_tensors,
    require_views,
)
from mast_ext.losses.common.view_pairs import both_ways


class EquivarianceLoss(nn.Module):
    """Contrast of actual with predicted embeddings, both ways, over all rows of all views::

        mean over rows r of [actual; predicted]:  log Σ_{q ≠ r} exp(s(r, q)) − s(r, r⁺)

    with ``s`` the cosine over ``temperature``, and ``r⁺`` the prediction of actual row ``r``, or
    the other way round (the paper's equivariance term; no gradient is stopped). The only view of a
    single image has no negatives, and loss 0.

    Args:
        temperature: Divides the cosines; above 0.
        gather_distributed: ``q`` runs over the rows of all processes, whose batches must be of
            equal size.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``temperature`` is not positive, ``reduction`` is unknown, or
            ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.temperature = require_temperature(temperature)
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(self, actual: Tensor, predicted: Tensor) -> Tensor:
        """The loss of a batch of views.

        Args:
            actual: Embeddings ``[V, B, D]`` of the views: float32, float16, bfloat16 or (CPU)
                float64.
            predicted: Their predictions, like ``actual``.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes do not fit, there is no image to take the mean over, or the
                processes' batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        lse, positive = self._contrast(actual, predicted)
        own, other = _sums_over_views(lse), _sums_over_views(torch.logaddexp(lse, positive))
        same = torch.eye(len(actual), dtype=torch.bool, device=lse.device).unsqueeze(-1)
        negatives = torch.where(same, own, other).logsumexp(2)
        terms = positive_cross_entropy(negatives, _partners(positive))
        return reduce(terms.mean((0, 1)), self.reduction, "actual")

    @explains_types
    def pair_losses(self, actual: Tensor, predicted: Tensor) -> Tensor:
        """The loss of training on a pair of views alone, for every pair and image.

        Args:
            actual: As in `forward`.
            predicted: As in `forward`.

        Returns:
            ``[V, V, B]``, symmetric in the views, float32 (float64 for float64 inputs). The pair
            of a view with itself counts as one of two equal views.

        Raises:
            ValueError: As in `forward`.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        lse, positive = self._contrast(actual, predicted)
        within = _sums_over_views(lse).diagonal(dim1=1, dim2=2).movedim(-1, 1).unsqueeze(2)
        across = _sums_over_views(torch.logaddexp(lse, positive))
        negatives = torch.logaddexp(within, across)
        terms = positive_cross_entropy(negatives, _partners(positive)[:, None])
        return both_ways(terms.mean(0))

    def _contrast(self, actual: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Of the actual, then predicted views: ``lse`` without positives, ``[2V, 2V, B]``."""
        if require_views(actual, "actual").shape != predicted.shape:
            raise ValueError(
                f"predicted must have the shape of actual, {list(actual.shape)}, got "
                f"{list(predicted.shape)}"
            )
        require_tensors(predicted=predicted)
        require_one_device(actual=actual, predicted=predicted)
        lse, positive = contrast_views(
            torch.cat((actual, predicted)),
            temperature=self.temperature,
            gather=self.gather_distributed,
        )
        return lse[0], positive[0]

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _partners(positive: Tensor) -> Tensor:
    """Similarities of each actual view and its prediction, ``[V, B]``, of ``[2V, 2V, B]``."""
    return positive.diagonal(len(positive) // 2).movedim(-1, 0)


def _sums_over_views(lse: Tensor) -> Tensor:
    """Of ``[2V, 2V, B]`` the sums over actual and predicted rows of a view, ``[2, V, V, B]``.

    Anchors are the first two axes, actual or predicted and its view; the third is summed over.
    """
    actual, predicted = lse.chunk(2, dim=1)
    return torch.logaddexp(actual, predicted).unflatten(0, (2, -1))
