"""MAST's objective on a VICReg base.

"MAST: Masked Augmentation Subspace Training" (Huang et al., ICLR 2023) learns one embedding in
which a mask per augmentation selects the dimensions that are invariant to it, and reweights
ambiguous samples by their uncertainty. The paper's equations are not public: the objective here is
*our* definition of that idea.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.losses.gather import all_reduce, gather_batch, require_distributed, world_size
from mast_ext.losses.masks import SubspaceMasks

Uncertainty = Literal["none", "subspace", "diagonal"]


class MASTTerms(NamedTuple):
    """The loss, a scalar with gradient, and detached scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor]


class MASTLoss(nn.Module):
    """Invariance inside every subspace; variance and covariance on the whole embedding::

        invariance · mean_k inv_k + variance · mean_v v(z_v) + covariance · 2 mean_v c(z_v)
          + sparsity · ‖M‖₁ / (K·D)

    ``inv_k`` is the mean over the pairs of views that belong to subspace ``k`` (``pair_subspace``)
    of their distance ``Σ_d w_kd (x_d − y_d)² / Σ_d w_kd``, with ``w = masks²``; under an
    ``uncertainty`` other than ``"none"`` it is their negative log-likelihood instead (see
    :func:`mast_ext.functional.subspace_nll`), which discounts pairs of high variance. A subspace
    without a pair in the batch is left out of the mean over ``k``. ``v`` and ``c`` are VICReg's
    terms: with two views and the default weights the last three terms are those of
    :class:`mast_ext.losses.VICRegLoss`.

    This is our definition: the paper's equations are not public.

    Args:
        masks: The learned masks ``[K, D]``, a submodule of the loss.
        invariance: Weight of the masked distances.
        variance: Weight of the hinge on every dimension's standard deviation.
        covariance: Weight of the squared off-diagonal covariances.
        sparsity: Weight of the masks' mean.
        uncertainty: ``"none"``, or the form of the log-variances that `forward` then needs: one
            per subspace (``"subspace"``) or one per dimension (``"diagonal"``).
        eps: Added to the variances inside the root.
        gather_distributed: Takes statistics and means over the batches of all processes, which
            must be of equal size.

    Raises:
        ValueError: ``uncertainty`` is unknown, or ``gather_distributed`` without
            torch.distributed.
    """

    def __init__(
        self,
        masks: SubspaceMasks,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        sparsity: float = 0.0,
        uncertainty: Uncertainty = "none",
        eps: float = 1e-4,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if uncertainty not in get_args(Uncertainty):
            raise ValueError(
                f"uncertainty must be 'none', 'subspace' or 'diagonal', got {uncertainty!r}"
            )
        self.masks = masks
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance
        self.sparsity = sparsity
        self.uncertainty: Uncertainty = uncertainty
        self.eps = eps
        self.gather_distributed = require_distributed(gather_distributed)

    def forward(
        self, views: Tensor, pair_subspace: Tensor, log_var: Tensor | None = None
    ) -> MASTTerms:
        """The loss of a batch of views.

        Args:
            views: Embeddings ``[V, B, D]``.
            pair_subspace: Subspace of every pair of views, ``[V, V, B]`` int64, -1 where a pair
                is not used. Entries ``[i, j]`` with ``i < j`` are read.
            log_var: Log-variances ``[V, B, K]`` (``uncertainty="subspace"``) or ``[V, B, D]``
                (``"diagonal"``).

        Returns:
            ``loss``, and ``logs`` with ``invariance``, ``variance``, ``covariance``, ``sparsity``
            (each before its weight) and ``invariance/<k>``, 0 for a subspace without pairs.

        Raises:
            ValueError: A shape does not fit, ``B < 2``, ``log_var`` is missing or not wanted, or
                (checked on the CPU) ``pair_subspace`` names a subspace that does not exist.
            TypeError: A dtype is not supported.
        """
        masks = self.masks()
        terms = self._pair_terms(views, masks, log_var)
        per_subspace, invariance = self._invariance(terms, views, pair_subspace)
        if self.gather_distributed:
            views = gather_batch(views, 1)
        per_view = functional.variance_covariance(views, eps=self.eps)
        variance, covariance = per_view[0].mean(), 2 * per_view[1].mean()
        sparsity = masks.mean()
        loss = (
            self.invariance * invariance
            + self.variance * variance
            + self.covariance * covariance
            + self.sparsity * sparsity
        )
        logs = {
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
            "sparsity": sparsity.detach(),
        }
        per_subspace = per_subspace.detach()
        logs.update({f"invariance/{k}": per_subspace[k] for k in range(len(per_subspace))})
        return MASTTerms(loss, logs)

    def pair_losses(self, views: Tensor, log_var: Tensor | None = None) -> Tensor:
        """What the loss says about every pair of views of every image.

        Variance, covariance and sparsity belong to the batch, so this is the invariance term
        alone: the mean over all subspaces, as no pair is assigned to one of them here.

        Args:
            views: Embeddings ``[V, B, D]``.
            log_var: As in `forward`.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        return self.invariance * self._pair_terms(views, self.masks(), log_var).mean(0)

    def _pair_terms(self, views: Tensor, masks: Tensor, log_var: Tensor | None) -> Tensor:
        """The summands of every ``inv_k``: ``[K, V, V, B]``."""
        if self.uncertainty == "none":
            if log_var is not None:
                raise ValueError("log_var is not used with uncertainty='none'")
            distance = functional.subspace_similarity(views, masks=masks, metric="sqeuclidean")
            # A mask of zeros has distance 0, as in subspace_nll.
            return distance / masks.square().sum(1).clamp_min(1e-30)[:, None, None, None]
        if log_var is None:
            raise ValueError(f"log_var must be given with uncertainty={self.uncertainty!r}")
        return functional.subspace_nll(views, log_var, masks=masks, variance=self.uncertainty)

    def _invariance(
        self, terms: Tensor, views: Tensor, pair_subspace: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``inv_k`` as ``[K]``, and its mean over the subspaces that have pairs."""
        subspaces, pairs = terms.shape[0], terms.shape[1:]
        if pair_subspace.shape != pairs:
            raise ValueError(
                f"pair_subspace must have shape {list(pairs)} to fit views of shape "
                f"{list(views.shape)}, got {list(pair_subspace.shape)}"
            )
        if (
            pair_subspace.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and pair_subspace.numel() > 0
            and int(pair_subspace.max()) >= subspaces
        ):
            raise ValueError(
                f"pair_subspace must lie below {subspaces}, the number of subspaces, got "
                f"{int(pair_subspace.max())}"
            )
        order = torch.arange(max(subspaces, pairs[0]), device=views.device)
        upper = (order[: pairs[0], None] < order[None, : pairs[0]])[..., None]
        belongs = (pair_subspace == order[:subspaces, None, None, None]) & upper
        count = belongs.sum((1, 2, 3))
        share = 1.0  # of this process's sum in the mean over processes
        if self.gather_distributed:
            count, share = all_reduce(count), float(world_size())
        # A sum of selected terms: one that is not selected may be NaN.
        sums = terms.where(belongs, 0.0).sum((1, 2, 3))
        per_subspace = sums * share / count.clamp_min(1)
        return per_subspace, per_subspace.sum() / (count > 0).sum().clamp_min(1)
