"""Barlow Twins: the views' cross-correlation is to be the identity (Zbontar et al. 2021)."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.checks import OptionError
from mast_ext.losses import BarlowTwinsLoss
from mast_ext.methods.method import GATHER, Encoded, Method, MethodOptions, register, require_views
from mast_ext.models import Projector


@dataclass(frozen=True)
class BarlowTwinsOptions(MethodOptions):
    """Settings of Barlow Twins.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
            The paper's are 8192, 8192, 8192.
        redundancy: Weight of the squared off-diagonal correlations (the paper's λ, 0.005).
        chunks: How hard views are judged, which the loss cannot do image by image: 0 takes an
            image's share of the diagonal; a number cuts the batch into so many parts, each of which
            takes the pair with the largest loss of the part (4 in the published code).
    """

    group: ClassVar[str] = "barlow_twins"

    projector: tuple[int, ...] = (256, 256, 256)
    redundancy: float = 5e-3
    chunks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "redundancy", "chunks")


@register
class BarlowTwins(Method):
    """Independent views of an image; the loss is the mean over all pairs of views.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; ``recipe.views`` says how many views there are.
        options: See `BarlowTwinsOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2.
    """

    name = "barlow_twins"
    Options: ClassVar[type[BarlowTwinsOptions]] = BarlowTwinsOptions

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: BarlowTwinsOptions
    ) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.projector = Projector(num_features, options.projector)
        self.loss = BarlowTwinsLoss(options.redundancy, GATHER)
        self.chunks = options.chunks or None

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        views = self.embed(encoded.features)
        pairs = [self.loss(views[i], views[j]) for i, j in combinations(range(len(views)), 2)]
        return {"loss": torch.stack(pairs).mean()}

    def require_images(self, images: int) -> None:
        if self.chunks is not None and 2 * self.chunks > images:
            raise OptionError(
                f"barlow_twins.chunks must be at most {images // 2}, got {self.chunks}: a process"
                f" has {images} images at a time (train.batch_size by train.devices and"
                " train.accumulate), and each part takes two"
            )

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.loss.pair_losses(self.embed(encoded.features), chunks=self.chunks)
