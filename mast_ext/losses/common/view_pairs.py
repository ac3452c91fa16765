"""Pairs of views from the blocks of `contrast_views`: NT-Xent and its decoupled form.

A loss of two views needs, per anchor, one sum over the rows of both. The blocks are summed already,
so that every pair of any number of views follows without another pass over the similarities: by
`mast_ext.functional.contrastive_loss` for a mean in one process, by `view_pair_cross_entropy` where
a pair's rows are all there is, in plain torch otherwise.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types
from mast_ext.distributed import require_distributed, world_size
from mast_ext.losses.common.contrast import contrast_views, positive_cross_entropy
from mast_ext.losses.common.inputs import (
    Negatives,
    Reduction,
    in_one_dtype,
    require_alike,
    require_images,
    require_option,
    require_temperature,
    require_views,
)


def log_negatives(lse: Tensor, positive: Tensor | None, negatives: Negatives = "pairs") -> Tensor:
    """Log of the sum that anchor ``i`` tells its positive in view ``j`` from.

    Args:
        lse: ``[..., V, V, N]``, of sums without positives.
        positive: Like ``lse``. Of all views, those in other views than ``i`` and ``j`` are among
            the negatives. ``None``: decoupled, none is.
        negatives: Whose rows are summed: those of views ``i`` and ``j``, or of all views.

    Returns:
        ``[..., V, V, N]``; of ``"pairs"`` for ``j = i`` that of a view with a second, equal view.
    """
    if negatives == "pairs":
        within = lse.diagonal(dim1=-3, dim2=-2).movedim(-1, -2).unsqueeze(-2)
        return torch.logaddexp(within, lse)
    if positive is None:
        return lse.logsumexp(-2, keepdim=True).expand_as(lse)
    same = torch.eye(lse.shape[-2], dtype=torch.bool, device=lse.device)
    of_pair = (same[:, None, :] | same[None, :, :]).unsqueeze(-1)  # [i, j, view, 1]
    whole = torch.logaddexp(lse, positive)
    return torch.where(of_pair, lse.unsqueeze(-3), whole.unsqueeze(-3)).logsumexp(-2)


def both_ways(terms: Tensor) -> Tensor:
    """Mean of ``[..., i, j, N]`` and ``[..., j, i, N]``."""
    return (terms + terms.transpose(-3, -2)) / 2


def mean_over_pairs(terms: Tensor) -> Tensor:
    """Mean of ``[V, V, N]`` over the ordered pairs of different views, ``[N]``."""
    views = terms.shape[0]
    same = torch.eye(views, dtype=torch.bool, device=terms.device).unsqueeze(-1)
    return terms.masked_fill(same, 0.0).sum((0, 1)) / (views * (views - 1))


def reduce_pairs(terms: Tensor, reduction: Literal["none", "mean"]) -> Tensor:
    """Reduces terms ``[V, V, N]`` as `functional.view_pair_cross_entropy` reduces its own."""
    return mean_over_pairs(terms).mean() if reduction == "mean" else both_ways(terms)


class ViewPairLoss(nn.Module):
    """Base of the losses whose anchors and positives are all pairs of views of an image."""

    decoupled = False  # the positive is not in its own denominator
    view_name = "out"  # of the arguments of `forward`, for errors

    def __init__(
        self,
        temperature: float,
        gather_distributed: bool,
        negatives: Negatives,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        self.temperature = require_temperature(temperature)
        self.gather_distributed = require_distributed(gather_distributed)
        self.negatives: Negatives = require_option("negatives", negatives, Negatives)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(self, out0: Tensor, out1: Tensor, *views: Tensor) -> Tensor:
        """The loss of two or more views.

        Args:
            out0: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or (CPU) float64.
            out1: Embeddings of another view, like ``out0``.
            *views: Of more views.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes or devices differ, there is no image to take the mean over, or
                the processes' batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        views = (out0, out1, *views)
        require_alike(**{f"{self.view_name}{i}": view for i, view in enumerate(views)})
        mean = self.reduction == "mean"
        if mean and self._plain and self.negatives == "pairs" and not self._many():
            require_images(out0.shape[0], f"{self.view_name}0")
            self._require_negatives(out0.shape[0])
            return functional.contrastive_loss(
                in_one_dtype(*views), temperature=self.temperature, decoupled=self.decoupled
            )
        lse, positive = self._blocks(torch.stack(views))
        if mean:
            require_images(lse.shape[-1], f"{self.view_name}0")
            return self._pairs(lse, positive, "mean")
        per_image = mean_over_pairs(self._pairs(lse, positive, "none"))
        return per_image.sum() if self.reduction == "sum" else per_image

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """The loss of every pair of views of every image.

        With ``negatives="pairs"`` this is the loss of training on that pair alone, so that
        ``pair_losses(views)[i, j].mean() == forward(views[i], views[j])``.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, symmetric in the views, float32 (float64 for float64 inputs). The pair
            of a view with itself counts as one of two equal views.

        Raises:
            ValueError: ``views`` has another shape, or the processes' batches differ in size.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        return self._pairs(*self._blocks(require_views(views)), "none")

    def _pairs(self, lse: Tensor, positive: Tensor, reduction: Literal["none", "mean"]) -> Tensor:
        """The loss of every pair of views, ``[V, V, B]``, or the mean over different views."""
        if self.negatives == "pairs":
            return functional.view_pair_cross_entropy(
                lse, positive, decoupled=self.decoupled, reduction=reduction
            )
        negatives = log_negatives(lse, None if self.decoupled else positive, "all_views")
        if self.decoupled:
            return reduce_pairs(negatives - positive, reduction)
        return reduce_pairs(positive_cross_entropy(negatives, positive), reduction)

    def _blocks(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """``lse`` without positives and weighted ``positive``, ``[V, V, B]``."""
        self._require_negatives(views.shape[1] * (world_size() if self._many() else 1))
        lse, positive = contrast_views(
            views,
            temperature=self.temperature,
            gather=self.gather_distributed,
        )
        return lse.squeeze(0), self._weighted(positive.squeeze(0), views)

    @property
    def _plain(self) -> bool:
        """Whether blocks and terms are those of this class, of which an operator makes the mean."""
        return True

    def _many(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _require_negatives(self, images: int) -> None:
        """Refuses fewer images than a loss takes, of all processes."""

    def _weighted(self, positive: Tensor, views: Tensor) -> Tensor:
        return positive

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, negatives={self.negatives!r}"
