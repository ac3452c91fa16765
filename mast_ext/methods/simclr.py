"""SimCLR: views of one image attract each other, the batch's others repel (Chen et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.losses import NTXentLoss
from mast_ext.methods.method import GATHER, Encoded, Method, MethodOptions, register, require_views
from mast_ext.models import Projector


@dataclass(frozen=True)
class SimCLROptions(MethodOptions):
    """Settings of SimCLR.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        temperature: Temperature of the cosine similarities. The paper trains CIFAR-10 with 0.5
            (appendix B.9); on the defaults' short run on small images 0.2, as in MoCo v2, leaves
            more of every factor in the features.
        negatives: With more than two views: ``pairs`` takes NT-Xent of every pair of views by
            itself, ``all_views`` has the other images' views of all kinds in every denominator.
    """

    group: ClassVar[str] = "simclr"

    projector: tuple[int, ...] = (256, 128)
    temperature: float = 0.2
    negatives: Literal["pairs", "all_views"] = "pairs"


@register
class SimCLR(Method):
    """Independent views of an image, contrasted by NT-Xent.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; ``recipe.views`` says how many views there are.
        options: See `SimCLROptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2, or an option lies out of range.
    """

    name = "simclr"
    Options: ClassVar[type[SimCLROptions]] = SimCLROptions

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: SimCLROptions
    ) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.projector = Projector(num_features, options.projector, last_norm=True)
        self.loss = NTXentLoss(
            options.temperature, gather_distributed=GATHER, negatives=options.negatives
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        return {"loss": self.loss(*self.embed(encoded.features))}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.loss.pair_losses(self.embed(encoded.features))
