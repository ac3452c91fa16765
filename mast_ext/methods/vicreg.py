"""VICReg: plain invariance to all augmentations composed (Bardes et al. 2022)."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.losses import VICRegLoss
from mast_ext.methods.method import GATHER, Encoded, Method, MethodOptions, register, require_views
from mast_ext.models import Projector


@dataclass(frozen=True)
class VICRegOptions(MethodOptions):
    """Settings of VICReg.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        invariance: Weight of the mean squared distance of two views. The paper's is 25, for long
            runs with large batches and wide embeddings; on the defaults' short run on small
            images 5 leaves more of every factor in the features.
        variance: Weight of the hinge on every dimension's standard deviation (25).
        covariance: Weight of the squared off-diagonal covariances (1).
    """

    group: ClassVar[str] = "vicreg"

    projector: tuple[int, ...] = (256, 256, 128)
    invariance: float = 5.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "invariance", "variance", "covariance")


@register
class VICReg(Method):
    """Independent views of an image; the loss is the mean over all pairs of views.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; ``recipe.views`` says how many views there are.
        options: See `VICRegOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2.
    """

    name = "vicreg"
    Options: ClassVar[type[VICRegOptions]] = VICRegOptions

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: VICRegOptions
    ) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.projector = Projector(num_features, options.projector)
        self.loss = VICRegLoss(
            options.invariance, options.variance, options.covariance, gather_distributed=GATHER
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        views = self.embed(encoded.features)
        pairs = [self.loss(views[i], views[j]) for i, j in combinations(range(len(views)), 2)]
        return {"loss": torch.stack(pairs).mean()}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.loss.pair_losses(self.embed(encoded.features))
