"""VICRegL (Bardes, Ponce & LeCun, NeurIPS 2022), a drop-in for lightly's class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integers, require_number
from mast_ext.distributed import gather_batch
from mast_ext.losses.common.inputs import require_tensors, stack_views
from mast_ext.losses.common.linear_algebra import widen, without_autocast
from mast_ext.losses.vicreg import VICRegLoss

Features = Sequence[tuple[Tensor, Tensor]]


class VICRegLLoss(nn.Module):
    """VICReg of embeddings of whole views, and of positions that match in two views::

        loss   = alpha · global + (1 − alpha) · local
        global = lambda_param · mean (z_i − z_j)² + mu_param · mean v(z_i) + nu_param · mean c(z_i)
        local  = mean over pairs (i, j) of  ½ [V(i→j) + V(j→i)] by features
                                          + ½ [V(i→j) + V(j→i)] by places

    with ``v`` and ``c`` those of `VICRegLoss`, pairs of a global crop ``i`` and any other crop
    ``j``, and means over pairs and crops. ``V(i→j)`` is `VICRegLoss` (with half of ``nu_param``)
    between the positions of crop ``i`` that have the nearest partners in crop ``j`` and those
    partners. How many says ``num_matches``, first from ``i`` to ``j``, then back, as in the
    authors' code. Partners are near in the space of features, or of places in the image.

    The statistics and distances are our operators'; matching is plain torch, without gradient, with
    one matrix of distances per image.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the result is a
    scalar (theirs has shape ``[1]``), and float32 for 16-bit inputs.

    Args:
        lambda_param: Weight of the invariance terms.
        mu_param: Weight of the variance terms.
        nu_param: Weight of the covariance terms.
        alpha: Weight of the global loss.
        gather_distributed: Takes the statistics over the batches of all processes, which must be
            of equal size.
        eps: Added to the variances inside the root.
        num_matches: How many positions are matched, from a crop to another and back; -1, or more
            than there are: all.

    Raises:
        ValueError: ``gather_distributed`` without torch.distributed, or a number of matches is 0.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        alpha: float = 0.75,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        num_matches: tuple[int, int] = (20, 4),
    ) -> None:
        super().__init__()
        self.num_matches = require_integers("num_matches", num_matches, 2, low=-1)
        if 0 in self.num_matches:
            raise ValueError(f"num_matches must not be 0, got {num_matches}")
        self.lambda_param = require_number("lambda_param", lambda_param)
        self.mu_param = require_number("mu_param", mu_param)
        self.nu_param = require_number("nu_param", nu_param)
        self.alpha = require_number("alpha", alpha)
        self.gather_distributed = gather_distributed
        self.eps = require_number("eps", eps, 0)
        self.vicreg_loss = VICRegLoss(
            lambda_param, mu_param, 0.5 * self.nu_param, gather_distributed, eps
        )

    @explains_types
    def forward(
        self,
        global_view_features: Features,
        global_view_grids: Sequence[Tensor],
        local_view_features: Features | None = None,
        local_view_grids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            global_view_features: Of every global crop its embeddings ``[B, D]`` and its features
                ``[B, H, W, E]`` by position: float32, float16, bfloat16 or (CPU) float64.
            global_view_grids: Of every global crop the places ``[B, H, W, 2]`` of its positions in
                the image.
            local_view_features: Of every local crop, whose ``H`` and ``W`` may be others.
            local_view_grids: Of every local crop.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: There are not as many grids as crops, or only one of the two is given for
                local crops; there is no pair of crops; a shape does not fit; or the processes'
                batches differ in size.
            AssertionError: There are fewer than two images (the type lightly raises); of all
                processes, with ``gather_distributed``.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        if (local_view_features is None) != (local_view_grids is None):
            raise ValueError("local_view_features and local_view_grids must be given both or not")
        crops = [*global_view_features, *(local_view_features or ())]
        grids = [*global_view_grids, *(local_view_grids or ())]
        count = len(global_view_features)
        if len(grids) != len(crops) or len(global_view_grids) != count:
            raise ValueError(
                f"there must be a grid for every crop, got {len(global_view_grids)} for {count} "
                f"global and {len(grids) - len(global_view_grids)} for {len(crops) - count} local"
            )
        if not count or len(crops) < 2:
            raise ValueError(
                f"there must be a global crop and another crop, got {count} global and "
                f"{len(crops) - count} local"
            )
        named = {
            "global_view_features": [x for crop in global_view_features for x in crop],
            "global_view_grids": list(global_view_grids),
            "local_view_features": [x for crop in local_view_features or () for x in crop],
            "local_view_grids": list(local_view_grids or ()),
        }
        require_tensors(**named)
        for crop, grid in zip(crops, grids, strict=True):
            _require_located(crop, grid)
        if len({features.shape[3] for _, features in crops}) > 1:
            raise ValueError(
                "view_features must have features [B, H, W, E] of one width E, got "
                f"{[list(features.shape) for _, features in crops]}"
            )
        local = self._local_loss([features for _, features in crops], grids, count)
        embeddings = stack_views([embedding for embedding, _ in crops], "view_features")
        return self.alpha * self._global_loss(embeddings, count) + (1 - self.alpha) * local

    def _global_loss(self, embeddings: Tensor, count: int) -> Tensor:
        """VICReg's loss of embeddings ``[V, B, D]``, the first ``count`` of global crops."""
        distances = functional.subspace_similarity(
            embeddings[:count], embeddings, metric="sqeuclidean"
        )  # of a crop with itself 0
        pairs = count * (len(embeddings) - 1)
        invariance = distances.sum() / (pairs * embeddings[0].numel())
        batch = gather_batch(embeddings, 1) if self.gather_distributed else embeddings
        variance, covariance = functional.variance_covariance(batch, eps=self.eps)
        return (
            self.lambda_param * invariance
            + self.mu_param * variance.mean()
            + self.nu_param * covariance.mean()
        )

    def _local_loss(self, features: list[Tensor], grids: list[Tensor], count: int) -> Tensor:
        flat = [x.flatten(1, 2) for x in features]
        places = [grid.flatten(1, 2) for grid in grids]
        terms = []
        for i in range(count):
            for j in range(len(flat)):
                if i != j:
                    by_features = self._matched_loss(flat[i], flat[j], flat[i], flat[j])
                    by_places = self._matched_loss(flat[i], flat[j], places[i], places[j])
                    terms += [by_features, by_places]
        return torch.stack(terms).sum() / (len(terms) / 2)

    def _matched_loss(self, a: Tensor, b: Tensor, place_a: Tensor, place_b: Tensor) -> Tensor:
        """The loss of features ``[B, N, E]`` and ``[B, M, E]``, paired by nearest ``place``."""
        with torch.no_grad(), without_autocast(a):
            distances = torch.cdist(widen(place_a), widen(place_b))
        there, back = self.num_matches
        return 0.5 * (
            self.vicreg_loss(*_matches(a, b, distances, there))
            + self.vicreg_loss(*_matches(b, a, distances.mT, back))
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, num_matches={self.num_matches}"


def _require_located(crop: tuple[Tensor, Tensor], grid: Tensor) -> None:
    """Raises a ValueError unless a crop has embeddings, and a place for each of its features."""
    if isinstance(crop, Tensor) or len(crop) != 2:
        raise ValueError("view_features must be pairs (embeddings [B, D], features [B, H, W, E])")
    embeddings, features = crop
    fits = embeddings.ndim == 2 and features.ndim == 4 and len(features) == len(embeddings)
    if not fits or grid.shape != (*features.shape[:3], 2):
        raise ValueError(
            "view_features must be embeddings [B, D] and features [B, H, W, E], and view_grids "
            f"[B, H, W, 2], got {list(embeddings.shape)}, {list(features.shape)} and "
            f"{list(grid.shape)}"
        )


def _matches(x: Tensor, y: Tensor, distances: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The rows of ``x [B, N, E]`` with the nearest partners in ``y``, nearest first, and these."""
    nearest = distances.min(2)
    if number is None or not 0 <= number <= x.shape[1]:
        number = x.shape[1]
    chosen = nearest.values.topk(number, dim=1, largest=False).indices
    partners = nearest.indices.gather(1, chosen)
    return _rows(x, chosen), _rows(y, partners)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``[B, n, E]`` of ``x [B, N, E]`` at ``index [B, n]``."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
