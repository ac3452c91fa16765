"""Structure of dense representations (arXiv 2510.17299), a drop-in for lightly's regularizer."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.losses.common.inputs import require_tensors
from mast_ext.losses.common.linear_algebra import singular_values, widen, without_autocast


class DSERegularizer(nn.Module):
    r"""Makes clusters of patches compact and far from each other, and uses all dimensions::

        loss = −weight · [ (inter − ½ intra − ½ image) / spread + dimensions ]
        inter       mean distance of a patch to the nearest center that is not its cluster's
        intra       mean of n(cluster) over clusters of all patches of a group of images
        image       mean over images of the mean of n(cluster) over clusters of its patches
        spread      mean distance of a patch to the mean of all
        dimensions  exp(entropy of the singular values of all patches) / min(B·N, D)

    with ``n`` of ``m`` patches less their mean the nuclear norm over ``√max(m − 1, D)``: the Dense
    representation Structure Estimator as a regularizer ("Exploring Structural Degradation in Dense
    Representations for Self-supervised Learning", 2025). Clusters are found by k-means from
    k-means++, without gradient. A group is of ``global_clusters // local_clusters`` images. The
    singular values are those of ``torch.linalg``: no kernel of ours is in it.

    Values and random draws (from torch's default generator) are those of lightly 1.6.0; 16-bit
    inputs work (theirs raises) and are computed in float32. Images are those of this process.

    Args:
        weight: Weight of the result, at least 0.
        normalize: Divides patches by their norms.
        local_clusters: Clusters of the patches of an image.
        global_clusters: Clusters of the patches of a group of images.
        max_kmeans_iters: Steps of k-means at most.
        tol: How far the centers, as one vector, have to move for another step; above 0.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        weight: float = 1.0,
        normalize: bool = True,
        local_clusters: int = 3,
        global_clusters: int = 24,
        max_kmeans_iters: int = 20,
        tol: float = 1e-4,
    ) -> None:
        super().__init__()
        self.weight = require_number("weight", weight, 0)
        self.normalize = normalize
        self.local_clusters = require_integer("local_clusters", local_clusters, 1)
        self.global_clusters = require_integer("global_clusters", global_clusters, 1)
        self.max_kmeans_iters = require_integer("max_kmeans_iters", max_kmeans_iters, 1)
        self.tol = require_positive("tol", tol)

    @explains_types
    def forward(self, representations: Tensor) -> Tensor:
        """The regularizer of a batch.

        Args:
            representations: Patches ``[B, N, D]``: float32, float16, bfloat16 or float64.

        Returns:
            A scalar, float32 (float64 for float64 inputs); 0 without gradient if ``weight`` is 0.

        Raises:
            ValueError: The shape does not fit, or has a 0.
        """
        if representations.ndim != 3 or not all(representations.shape):
            raise ValueError(
                "representations must have shape [B, N, D], none of them 0, got "
                f"{list(representations.shape)}"
            )
        require_tensors(representations=representations)
        images = widen(representations)
        if self.weight == 0:
            return images.new_zeros(())
        if self.normalize:
            images = F.normalize(images, dim=-1)
        patches = images.flatten(0, 1)
        spread = (patches - patches.mean(0)).norm(dim=1).mean() + 1e-12
        image = _mean(images, [self._compactness(x) for x in images])
        inter, intra = self._structure(images)
        structure = (inter - 0.5 * (intra + image)) / spread
        return -self.weight * (structure + _dimensions(patches))

    def _compactness(self, image: Tensor) -> Tensor | None:
        """Of the clusters of an image ``[N, D]``; none if all are of one patch."""
        _, labels = self._clusters(image, self.local_clusters)
        norms = _norms(image, labels)
        return torch.stack(norms).mean() if norms else None

    def _structure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``inter`` and ``intra`` of ``[B, N, D]``."""
        inter: list[Tensor | None] = []
        intra: list[Tensor | None] = []
        for group in images.split(max(self.global_clusters // self.local_clusters, 1)):
            patches = group.flatten(0, 1)
            centers, labels = self._clusters(patches, self.global_clusters)
            if len(centers) > 1:
                with torch.no_grad():
                    distances = _distances(patches, centers)
                    others = distances.scatter(1, labels[:, None], torch.inf).argmin(1)
                inter.append((patches - centers[others]).norm(dim=1).mean())
            intra += _norms(patches, labels)
        return _mean(images, inter), _mean(images, intra)

    @torch.no_grad()
    def _clusters(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Centers ``[k, D]`` of ``x [n, D]``, and the nearest to each row, ``[n]``."""
        number = min(number, len(x))
        centers = self._first_centers(x, number)
        for _ in range(self.max_kmeans_iters):
            labels = _distances(x, centers).argmin(1)
            means = []
            for cluster in range(number):
                rows = x[labels == cluster]
                if not len(rows):  # starts anew at any row
                    rows = x[torch.randint(len(x), (1,), device=x.device)]
                means.append(rows.mean(0))
            before, centers = centers, torch.stack(means)
            if (centers - before).norm() < self.tol:
                break
        return centers, _distances(x, centers).argmin(1)

    @staticmethod
    def _first_centers(x: Tensor, number: int) -> Tensor:
        """k-means++: each next one a row that is drawn by its squared distance to the others."""
        centers = x[torch.randint(len(x), (1,), device=x.device)]
        for _ in range(number - 1):
            square = _distances(x, centers).min(1).values.square()
            chances = square / (square.sum() + 1e-12)
            chances = chances.where(chances.sum() > 0, 1 / len(x))
            centers = torch.cat((centers, x[torch.multinomial(chances, 1)]))
        return centers

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, local_clusters={self.local_clusters}, "
            f"global_clusters={self.global_clusters}"
        )


def _distances(x: Tensor, centers: Tensor) -> Tensor:
    with without_autocast(x):
        return torch.cdist(x, centers)


def _norms(x: Tensor, labels: Tensor) -> list[Tensor]:
    """The nuclear norm of every cluster of two or more rows of ``x [n, D]``."""
    norms = []
    for cluster in labels.unique():
        rows = x[labels == cluster]
        if len(rows) > 1:
            values = singular_values(rows - rows.mean(0))
            norms.append(values.sum() / math.sqrt(max(len(rows) - 1, x.shape[1])))
    return norms


def _dimensions(x: Tensor) -> Tensor:
    values = singular_values(x)
    share = values / (values.sum() + 1e-12)
    return torch.exp(-(share * (share + 1e-12).log()).sum()) / min(x.shape)


def _mean(like: Tensor, terms: list[Tensor | None]) -> Tensor:
    """Of the terms that there are; 0 of none."""
    found = [term for term in terms if term is not None]
    return torch.stack(found).mean() if found else like.new_zeros(())
