"""MAST's objective, on a VICReg or a contrastive base.

"MAST: Masked Augmentation Subspace Training" (Huang et al., ICLR 2023) learns one embedding in
which a mask per augmentation selects the dimensions that are invariant to it, and reweights
ambiguous samples by their uncertainty. We could not read the paper's full text: the objective here
is our definition of what its abstract says.
"""

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import OptionError, explains_types, require_number, require_one_device
from mast_ext.compiling import out_of_inference
from mast_ext.distributed import (
    all_reduce,
    all_reduce_logsumexp,
    gather_batch,
    require_distributed,
    sum_over_processes,
    world_size,
)
from mast_ext.losses.common.contrast import contrast_views
from mast_ext.losses.common.inputs import (
    in_one_dtype,
    require_alike,
    require_images,
    require_option,
    require_temperature,
    require_tensors,
    require_views,
)
from mast_ext.losses.masks import AugmentationMasks, masks_of

Base = Literal["vicreg", "nt_xent"]


class MASTTerms(NamedTuple):
    """The loss, a scalar with gradient, and detached scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor]


class MASTLoss(nn.Module):
    """Invariance under the masks of the augmentations by which two views differ.

    A pair of views that differs by the augmentations ``A`` is compared under the mask
    ``Π_{k∈A} m_k`` (:class:`AugmentationMasks`), so with the weights ``w_nd = Π_{k∈A_n} m_kd²`` of
    the squared differences::

        vicreg    invariance · mean_d inv_d + variance · ½ [v(x) + v(y)]
                    + covariance · [c(x) + c(y)]
                  inv_d = Σ_n p_n w_nd (x_nd − y_nd)² / Σ_n p_n w_nd
        nt_xent   invariance · mean_n p_n NT-Xent_n

    * ``vicreg``: a dimension's ``inv_d`` is its own mean over the pairs ``n`` that compare it: one
      that few pairs compare is held as firmly as one that all do. (The denominator is at least 1:
      what not even one whole pair compares is held less.) ``v`` and ``c`` are VICReg's terms on the
      whole embedding: without masks the loss is that of :class:`mast_ext.losses.VICRegLoss`.
    * ``nt_xent``: NT-Xent of the masked views of a pair (:class:`mast_ext.losses.NTXentLoss`),
      whose negatives, the rows of both views of the whole batch, are under the pair's mask. They
      keep every subspace from collapsing, so that variance and covariance are left out. All images
      are contrasted under the masks of all ``2^F`` groups (see `AugmentationMasks`), in one pass.

    Masks with a price, on the ``vicreg`` base, add ``invariance · price · Σ_k mean_d (1 − m_kd)``.
    They learn from the difference of ``inv_d`` between a mask of 1 and of 0, rather than from its
    slope, which depends on where the mask is, and is none at 0.

    ``p`` are weights of the pairs, 1 unless their uncertainty is given: with the log-variance
    ``s_n`` that a network predicts of a pair, say from how its views were augmented
    (:class:`mast_ext.models.PairUncertainty`)::

        p_n = exp(−softness · s_n) / mean          and  mean_n ½ (r_n exp(−s_n) + s_n)

    is added to the loss: the likelihood by which the network learns, ``r_n`` being the pair's mean
    squared difference under its mask (its loss on ``nt_xent``), without gradient; nor do the
    weights have one. So pairs that are ambiguous for a known reason count less. Means are over the
    pairs whose mask leaves at least one dimension; others have no weight (and count as 0 in the
    mean of ``nt_xent``).

    Args:
        masks: The masks, a submodule of the loss.
        base: ``"vicreg"`` or ``"nt_xent"``.
        invariance: Weight of the pair terms; 25 on ``vicreg`` and 1 on ``nt_xent`` by default.
        variance: Weight of the hinge on every dimension's standard deviation (``vicreg``).
        covariance: Weight of the squared off-diagonal covariances (``vicreg``).
        temperature: Divides the cosines (``nt_xent``); above 0.
        softness: The power of the precision that weights a pair: 1 is the likelihood's own weight,
            0 none.
        eps: Added to the variances inside the root (``vicreg``).
        gather_distributed: Takes statistics, means and negatives over the batches of all
            processes, which must be of equal size.

    Raises:
        ValueError: ``base`` is unknown, ``temperature`` is not positive, ``softness`` is negative,
            masks have a price on ``nt_xent``, or ``gather_distributed`` without torch.distributed.
        TypeError: ``masks`` are others, or a number is none.
    """

    def __init__(
        self,
        masks: AugmentationMasks,
        *,
        base: Base = "vicreg",
        invariance: float | None = None,
        variance: float = 25.0,
        covariance: float = 1.0,
        temperature: float = 0.2,
        softness: float = 1.0,
        eps: float = 1e-4,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.base: Base = require_option("base", base, Base)
        if not hasattr(masks, "group_weights"):  # compiled, they are of another class
            raise TypeError(f"masks must be AugmentationMasks, got {type(masks).__name__}")
        if masks.price is not None and base == "nt_xent":
            # A price is compared with a mean over dimensions, which a contrast is not.
            raise OptionError(f"masks must have no price on the nt_xent base, got {masks.price}")
        self.masks = masks
        if invariance is None:
            invariance = 25.0 if base == "vicreg" else 1.0
        self.invariance = require_number("invariance", invariance)
        self.variance = require_number("variance", variance)
        self.covariance = require_number("covariance", covariance)
        self.temperature = require_temperature(temperature)
        self.softness = require_number("softness", softness, 0)
        self.eps = require_number("eps", eps, 0)
        self.gather_distributed = require_distributed(gather_distributed)

    @explains_types
    def forward(
        self, x: Tensor, y: Tensor, changed: Tensor, log_variance: Tensor | None = None
    ) -> MASTTerms:
        """The loss of a batch of pairs of views.

        Args:
            x: Embeddings of one view, ``[N, D]``.
            y: Embeddings of the other view, like ``x``.
            changed: The augmentations by which each pair differs, ``[N, K]`` bool, such as
                `ViewBatch.changed` of :class:`mast_ext.augment.SharedPolicy`.
            log_variance: The log-variance predicted of every pair, ``[N]`` float32.

        Returns:
            ``loss``, and ``logs`` with ``invariance``, ``variance``, ``covariance`` (on the
            ``vicreg`` base) and, with ``log_variance``, ``uncertainty``, each before its weight;
            for masks with a price ``freed``, the sum of the shares that augmentations free.

        Raises:
            ValueError: A shape does not fit, there is no pair or, on the ``vicreg`` base, a single
                one (of all processes, with ``gather_distributed``), or the processes' batches
                differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_alike(x=x, y=y)
        require_tensors(log_variance=log_variance)
        require_one_device(x=x, changed=changed, log_variance=log_variance, masks=self.masks.blocks)
        x, y = in_one_dtype(x, y)
        if x.shape[1] != self.masks.dim:
            raise ValueError(
                f"x must have {self.masks.dim} dimensions, those of the masks, got {list(x.shape)}"
            )
        group = self.masks.group(changed)
        if len(group) != len(x):
            raise ValueError(
                f"changed must have a row for each of the {len(x)} pairs, got {list(changed.shape)}"
            )
        weights = self.masks.group_weights()
        weight, likelihood = None, None
        if log_variance is not None:
            log_variance = log_variance.to(torch.promote_types(x.dtype, torch.float32))
            # Pairs that differ by so much that not a dimension is left say nothing.
            comparable = weights.detach().sum(1)[group] >= 1
            # At most what float32 can take the exponential of; where nothing counts, nothing.
            log_variance = log_variance.clamp(-80, 80)
            weight, likelihood = self._precision(log_variance, comparable)
            log_variance = log_variance.where(comparable, 0.0)
        residual: Tensor | None = None
        if self.base == "vicreg":
            names: tuple[str, ...] = ("invariance", "variance", "covariance")
            loss, terms, residual = self._vicreg(x, y, group, weights, weight)
        else:
            names = ("invariance",)
            invariance, residual = self._nt_xent(x, y, group, weights, weight)
            loss, terms = functional.weighted_terms(
                invariance, scales=(1 / len(x),), weights=(self.invariance,)
            )
        logs = dict(zip(names, terms.unbind(), strict=True))
        if self.masks.price is not None:
            freed = self.masks.freed_share().sum()
            logs["freed"] = freed.detach()
            loss = loss + self.invariance * self.masks.price * freed
        if log_variance is not None and likelihood is not None and residual is not None:
            # Gaussian, up to a constant (Kendall & Gal, 2017).
            each = residual.detach() * (-log_variance).exp() + log_variance
            uncertainty = (likelihood * each).sum() / 2
            logs["uncertainty"] = uncertainty.detach()
            loss = loss + uncertainty
        return MASTTerms(loss, logs)

    @explains_types
    def pair_losses(self, views: Tensor, changed: Tensor) -> Tensor:
        """What the loss says about every pair of views of every image.

        Variance and covariance belong to the batch, so this is the invariance term alone: the mean
        squared difference under the pair's mask, or its NT-Xent. On the ``nt_xent`` base the pair
        of a view with itself counts as one of two equal views.

        Args:
            views: Embeddings ``[V, B, D]``.
            changed: The augmentations by which all pairs of an image's views differ, ``[B, K]``
                bool.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        require_one_device(views=views, changed=changed, masks=self.masks.blocks)
        if require_views(views).shape[2] != self.masks.dim:
            raise ValueError(
                f"views must have the width of the masks, {self.masks.dim}, got {list(views.shape)}"
            )
        group = self.masks.group(changed)
        if len(group) != views.shape[1]:
            raise ValueError(
                f"changed must have a row for each of the {views.shape[1]} images, "
                f"got {list(changed.shape)}"
            )
        weights = self.masks.group_weights()
        if self.base == "nt_xent":
            return self.invariance * self._nt_xent_of_groups(views, group, weights)
        each = weights[group]  # [B, D]
        masked = out_of_inference(views) * masks_of(each)
        distance = functional.subspace_similarity(masked, metric="sqeuclidean")[0]
        return self.invariance * distance / each.sum(1).clamp_min(1e-30)

    def _precision(self, log_variance: Tensor, comparable: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the pairs, with mean 1 over all that can be compared; without gradient.

        And their weights in the likelihood's mean, so that the mean over processes is that of all
        pairs.
        """
        pairs = len(comparable)
        if log_variance.shape != (pairs,):
            raise ValueError(
                f"log_variance must have shape [{pairs}], one number for each pair, got "
                f"{list(log_variance.shape)}"
            )
        log_weight = -self.softness * log_variance.detach()
        log_total = log_weight.masked_fill(~comparable, -torch.inf).logsumexp(0)
        count, share = comparable.sum(), 1.0
        if self._shares:
            log_total, count = all_reduce_logsumexp(log_total), all_reduce(count)
            share = float(world_size())
        one = comparable.to(log_weight)
        weight = ((log_weight - log_total).exp() * count).where(comparable, 0.0)
        return weight, one * share / count.clamp_min(1)

    @property
    def _shares(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _vicreg(
        self, x: Tensor, y: Tensor, group: Tensor, weights: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss, its terms and, with weights, every pair's own mean squared difference."""
        every_x, every_y = (gather_batch(z, 0) if self.gather_distributed else z for z in (x, y))
        require_images(len(every_x), "x", least=2)
        terms_of = functools.partial(
            functional.vicreg_terms,
            every_x,
            every_y,
            scales=(1 / x.shape[1], 0.5, 1.0),
            weights=(self.invariance, self.variance, self.covariance),
            eps=self.eps,
        )
        if weight is None and self.masks.price is None and not self._shares:
            widened = weights.to(torch.promote_types(x.dtype, torch.float32))
            return *terms_of(group=group, group_weights=widened), None
        means, residual = self._means_of_pairs(x, y, group, weights, weight)
        return *terms_of(means), residual

    def _means_of_pairs(
        self, x: Tensor, y: Tensor, group: Tensor, weights: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Every dimension's mean and, with weights, every pair's own mean squared difference."""
        residual = None
        if weight is None:
            sums, counts = functional.grouped_squared_difference(x, y, group, len(weights))
        else:
            fixed = weights.detach().to(weight.dtype)
            sums, counts, residual = functional.grouped_squared_difference_with_residual(
                x, y, group, fixed, weight=weight
            )
            residual = residual / fixed.sum(1).clamp_min(1e-30)[group]
        if self._shares:
            both = sum_over_processes(torch.cat((sums, counts[:, None]), 1))
            sums, counts = both[:, :-1], both[:, -1]
        counts = counts.detach()  # the pairs' weights have no gradient
        if self.masks.price is None:
            return functional.grouped_means(weights.to(sums.dtype), sums, counts), residual
        # The masks learn from what freeing a dimension saves in all, and the embedding from the
        # masks as they are.
        freed = 1 - masks_of(weights[self.masks.bits])
        saved = (freed * self._savings(weights.detach(), sums.detach(), counts)).sum(0)
        means = functional.grouped_means(weights.detach().to(sums.dtype), sums, counts)
        return means - (saved - saved.detach()), residual

    def _savings(self, weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """How much smaller a dimension's mean is if an augmentation frees it, ``[F, D]``."""
        groups = torch.arange(len(weights), device=weights.device)
        bits = self.masks.bits[:, None]
        kept = weights[groups & ~bits]  # [F, G, D], as if the mask were 1
        freed = kept * ((groups & bits) == 0)[:, :, None]  # as if it were 0
        savings = _means(kept, sums, counts) - _means(freed, sums, counts)
        # Unknown, so 0, where freeing would leave less than one pair to compare the dimension.
        return savings.where((freed * counts[:, None]).sum(1) >= 1, 0.0)

    def _nt_xent(
        self, x: Tensor, y: Tensor, group: Tensor, weights: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Every pair's weighted NT-Xent, and without its weight."""
        terms = self._nt_xent_of_groups(torch.stack((x, y)), group, weights)[0, 1]
        require_images(len(terms), "x")
        return terms if weight is None else terms * weight, terms

    def _nt_xent_of_groups(self, views: Tensor, group: Tensor, weights: Tensor) -> Tensor:
        """NT-Xent of every pair of views under its group's mask, ``[V, V, N]``."""
        blocks = contrast_views(
            views,
            masks_of(weights.to(torch.promote_types(views.dtype, torch.float32))),
            temperature=self.temperature,
            gather=self.gather_distributed,
        )
        terms = functional.view_pair_cross_entropy(*blocks)
        return terms[group, :, :, torch.arange(len(group), device=group.device)].movedim(0, -1)


def _means(weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Every dimension's mean over the pairs that compare it, ``[..., D]``, of sums over groups."""
    compared = (weights * counts[:, None]).sum(-2)
    return (weights * sums).sum(-2) / compared.clamp_min(1)
