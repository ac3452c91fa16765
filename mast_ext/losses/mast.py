"""MAST's objective, on a VICReg or a contrastive base.

"MAST: Masked Augmentation Subspace Training" (Huang et al., ICLR 2023) learns one embedding in
which a mask per augmentation selects the dimensions that are invariant to it, and reweights
ambiguous samples by their uncertainty. The objective here is *our* definition of that idea, not the
paper's equations.
"""

from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.distributed import all_reduce, gather_batch, require_distributed, world_size
from mast_ext.losses.common.contrast import contrast_views
from mast_ext.losses.common.inputs import require_option, require_temperature
from mast_ext.losses.common.view_pairs import nt_xent_pairs
from mast_ext.losses.masks import SubspaceMasks

Base = Literal["vicreg", "nt_xent"]
Uncertainty = Literal["none", "subspace", "diagonal"]


class MASTTerms(NamedTuple):
    """The loss, a scalar with gradient, and detached scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor]


class MASTLoss(nn.Module):
    """Invariance inside every subspace, and what keeps the embedding from collapsing::

        vicreg    invariance · mean_d inv_d + variance · mean_v v(z_v)
                    + covariance · 2 mean_v c(z_v) + sparsity · ‖M‖₁ / (K·D)
        nt_xent   invariance · mean_k inv_k + sparsity · ‖M‖₁ / (K·D)

    Every pair of views belongs to a subspace (``pair_subspace``), and is compared on the dimensions
    that this one's mask lets through.

    * ``vicreg``: a dimension's ``inv_d = Σ_n w_kd (x_nd − y_nd)² / Σ_n w_kd`` is its own mean over
      the pairs ``n`` that compare it, ``k`` being the pair's subspace and ``w = masks²``: one that
      few pairs compare is held as firmly as one that all do. Under an ``uncertainty`` other than
      ``"none"`` the squared difference is replaced by a negative log-likelihood
      ``½ ((x − y)² / σ² + log σ²)`` (see :func:`mast_ext.functional.subspace_nll`), which discounts
      pairs of high variance. ``v`` and ``c`` are VICReg's terms on the whole embedding: with two
      views in one subspace of all ones the loss is that of :class:`mast_ext.losses.VICRegLoss`.
    * ``nt_xent``: ``inv_k`` is the mean over the pairs of subspace ``k`` of NT-Xent of the masked
      views (:class:`mast_ext.losses.NTXentLoss` of embeddings times mask ``k``), with the whole
      batch's rows of both views as negatives. They keep every subspace from collapsing, so that
      variance and covariance are left out. A subspace without pairs is left out of the mean.

    This is our definition, not the paper's equations. The program's is this one with
    masks in ``blocks``, a joint subspace for independent views and one for every augmentation that
    the views of some images share (:class:`mast_ext.augment.SharedPolicy`), which that subspace so
    learns to keep; from a third of the training on, these views are also crops of one place. It
    departs from the paper in that these masks are not learned: learned ones ran to where invariance
    is cheap, onto few dimensions or to zero. Sharing a whole color jitter instead of its hue shift
    kept no hue; a subspace for geometry crowded the hue out of its own, and so did sharing hue and
    geometry from the start. The uncertainty of a view knows nothing of how ambiguous its pairs are.

    Args:
        masks: The masks ``[K, D]``, a submodule of the loss.
        base: ``"vicreg"`` or ``"nt_xent"``.
        invariance: Weight of the pair terms; 25 on ``vicreg`` and 1 on ``nt_xent`` by default.
        variance: Weight of the hinge on every dimension's standard deviation (``vicreg``).
        covariance: Weight of the squared off-diagonal covariances (``vicreg``).
        sparsity: Weight of the masks' mean.
        uncertainty: ``"none"``, or the form of the log-variances that `forward` then needs: one
            per subspace (``"subspace"``) or one per dimension (``"diagonal"``). ``vicreg`` only.
        eps: Added to the variances inside the root (``vicreg``).
        temperature: Divides the cosines (``nt_xent``); above 0.
        gather_distributed: Takes statistics, means and negatives over the batches of all
            processes, which must be of equal size.

    Raises:
        ValueError: ``base`` or ``uncertainty`` is unknown, they do not go together,
            ``temperature`` is not positive, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        masks: SubspaceMasks,
        *,
        base: Base = "vicreg",
        invariance: float | None = None,
        variance: float = 25.0,
        covariance: float = 1.0,
        sparsity: float = 0.0,
        uncertainty: Uncertainty = "none",
        eps: float = 1e-4,
        temperature: float = 0.2,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.base: Base = require_option("base", base, Base)
        self.uncertainty: Uncertainty = require_option("uncertainty", uncertainty, Uncertainty)
        if base == "nt_xent" and uncertainty != "none":
            raise ValueError(f"uncertainty must be 'none' with base='nt_xent', got {uncertainty!r}")
        self.masks = masks
        self.invariance = (25.0 if base == "vicreg" else 1.0) if invariance is None else invariance
        self.variance = variance
        self.covariance = covariance
        self.sparsity = sparsity
        self.eps = eps
        self.temperature = require_temperature(temperature)
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
            ``loss``, and ``logs`` with ``invariance``, ``variance``, ``covariance`` (on the
            ``vicreg`` base), ``sparsity`` (each before its weight) and ``invariance/<k>``, the mean
            over the pairs of subspace ``k``, 0 for a subspace without pairs.

        Raises:
            ValueError: A shape does not fit, ``B < 2`` on the ``vicreg`` base, ``log_var`` is
                missing or not wanted, the processes' batches differ in size, or (checked on the
                CPU) ``pair_subspace`` names a subspace that does not exist.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        masks = self.masks()
        per_subspace, invariance = self._invariance(views, masks, pair_subspace, log_var)
        parts = {"invariance": invariance}
        if self.base == "vicreg":
            if self.gather_distributed:
                views = gather_batch(views, 1)
            variance, covariance = functional.variance_covariance(views, eps=self.eps)
            parts |= {"variance": variance.mean(), "covariance": 2 * covariance.mean()}
        parts["sparsity"] = masks.mean()
        loss = reduce(torch.add, (getattr(self, name) * part for name, part in parts.items()))
        logs = {name: part.detach() for name, part in parts.items()}
        logs.update({f"invariance/{k}": term for k, term in enumerate(per_subspace.detach())})
        return MASTTerms(loss, logs)

    def pair_losses(
        self, views: Tensor, log_var: Tensor | None = None, *, subspace: int | None = None
    ) -> Tensor:
        """What the loss says about every pair of views of every image.

        Variance, covariance and sparsity belong to the batch, so this is the invariance term
        alone. On the ``nt_xent`` base the pair of a view with itself counts as one of two equal
        views.

        Args:
            views: Embeddings ``[V, B, D]``.
            log_var: As in `forward`.
            subspace: The one that all pairs are compared in; by default the mean over all.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs).
        """
        terms = self._pair_terms(views, self.masks(), log_var)
        return self.invariance * (terms.mean(0) if subspace is None else terms[subspace])

    def _pair_terms(self, views: Tensor, masks: Tensor, log_var: Tensor | None) -> Tensor:
        """The summands of every ``inv_k``: ``[K, V, V, B]``."""
        if self.base == "nt_xent":
            if log_var is not None:
                raise ValueError("log_var is not used with base='nt_xent'")
            blocks = contrast_views(
                views,
                masks,
                temperature=self.temperature,
                gather=self.gather_distributed,
            )
            return nt_xent_pairs(*blocks)
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
        self, views: Tensor, masks: Tensor, pair_subspace: Tensor, log_var: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Means over the pairs of each subspace ``[K]``, and the whole."""
        subspaces, pairs = len(masks), (len(views), *views.shape[:2])
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
        if self.base == "vicreg":
            # With w_kd / Σ_n w_kd in place of w_kd, sums over pairs are the dimensions' means.
            # As a matrix product it would be rounded to 16 bit under autocast.
            compared = (count[:, None] * masks.square()).sum(0)
            masks = masks / compared.clamp_min(1e-30).sqrt()
        terms = self._pair_terms(views, masks, log_var)
        # A sum of selected terms: one that is not selected may be NaN.
        sums = terms.where(belongs, 0.0).sum((1, 2, 3)) * share
        per_subspace = sums / count.clamp_min(1)
        if self.base == "vicreg":
            return per_subspace, (sums * masks.square().mean(1)).sum()
        return per_subspace, per_subspace.sum() / (count > 0).sum().clamp_min(1)
