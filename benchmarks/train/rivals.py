"""Two other ways to keep what augmentations destroy, as methods of the program.

    python benchmarks/train/rivals.py pretrain --method looc ...

is `mast-ext pretrain` with them added. They are here to be compared with, small and on VICReg:

* ``looc``: a head for every augmentation that is left out ("What Should Not Be Contrastive in
  Contrastive Learning", Xiao et al., ICLR 2021): one head is invariant to everything, and one for
  each shared augmentation compares the pairs that share it alone.
* ``augself``: besides VICReg, the differences of the augmentation parameters are predicted from
  both views' features ("Improving Transferability of Representations via Augmentation-Aware
  Self-Supervision", Lee et al., NeurIPS 2021).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mast_ext.augment import (
    COLUMNS,
    AugmentationParameters,
    AugmentationRecipe,
    SharedPolicy,
    Sharing,
    ViewBatch,
)
from mast_ext.losses import VICRegLoss
from mast_ext.methods.method import Encoded, Method, register
from mast_ext.methods.vicreg import VICReg, VICRegOptions
from mast_ext.models import Projector


@dataclass(frozen=True)
class LooCOptions(VICRegOptions):
    """Settings: those of VICReg, for every head.

    Attributes:
        left_out: The augmentations that have a head of their own.
        share: Probability that the views of an image share each of them.
    """

    left_out: tuple[str, ...] = ("hue",)
    share: float = 0.5


@register
class LooC(Method):
    """VICReg with a head for everything, and one per augmentation that is left out."""

    name = "looc"
    Options: ClassVar[type[LooCOptions]] = LooCOptions

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: LooCOptions) -> None:
        super().__init__()
        self.options = options
        self.projector = Projector(num_features, options.projector)
        self.heads = nn.ModuleList(
            Projector(num_features, options.projector) for _ in options.left_out
        )
        self.loss = VICRegLoss(options.invariance, options.variance, options.covariance)

    def policy(self, recipe: AugmentationRecipe) -> SharedPolicy:
        sharing = {name: Sharing(self.options.share) for name in self.options.left_out}
        return SharedPolicy(recipe, shared=sharing)

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        assert batch.changed is not None
        terms = [self.loss(*self.embed(encoded.features))]
        for head, changed in zip(self.heads, batch.changed.T, strict=True):
            flat = head(encoded.features.flatten(0, 1))
            x, y = flat.unflatten(0, encoded.features.shape[:2])
            # All images in the batch's statistics, those that share in the distance.
            distance = ((x - y).square().mean(1) * ~changed).sum() / (~changed).sum().clamp_min(1)
            plain = self.loss(x, y) - self.options.invariance * (x - y).square().mean()
            terms.append(plain + self.options.invariance * distance)
        return {"loss": torch.stack(terms).mean()}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.loss.pair_losses(self.embed(encoded.features))


@dataclass(frozen=True)
class AugSelfOptions(VICRegOptions):
    """Settings: those of VICReg, and the prediction's.

    Attributes:
        weight: Weight of the mean squared error of the standardized differences.
        hidden: Width of the predictor's hidden layers.
    """

    weight: float = 1.0
    hidden: int = 256


@register
class AugSelf(VICReg):
    """VICReg, and a predictor of how one view was made differently from the other."""

    name = "augself"
    Options: ClassVar[type[AugSelfOptions]] = AugSelfOptions

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: AugSelfOptions
    ) -> None:
        super().__init__(num_features, recipe, options)
        self.recipe, self.weight = recipe, options.weight
        self.predictor = nn.Sequential(
            nn.Linear(2 * num_features, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, len(COLUMNS)),
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        found = super().forward(encoded, batch)
        rows = AugmentationParameters(batch.parameters[:2]).standardized(self.recipe)
        features = encoded.features[:2]
        # Both orders of the views, as published.
        pairs = torch.cat((features, features.flip(0)), 2).flatten(0, 1)
        differences = (rows - rows.flip(0)).flatten(0, 1)
        error = (self.predictor(pairs) - differences).square().mean()
        return {"loss": found["loss"] + self.weight * error, "prediction": error.detach()}


def program(arguments: Sequence[str] | None = None) -> int:
    """``mast-ext`` with these methods; returns the exit status."""
    from mast_ext.cli.main import main  # after `register`: the program's settings list all methods

    return main(arguments)


if __name__ == "__main__":
    sys.exit(program())
