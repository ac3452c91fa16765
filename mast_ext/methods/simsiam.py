"""SimSiam: every view predicts the others, whose embeddings get no gradient (Chen & He 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.losses import NegativeCosineSimilarity
from mast_ext.losses.common.view_pairs import mean_over_pairs
from mast_ext.methods.method import Encoded, Method, MethodOptions, register, require_views
from mast_ext.models import Projector


@dataclass(frozen=True)
class SimSiamOptions(MethodOptions):
    """Settings of SimSiam.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
            The paper's are 2048, 2048, 2048; a short run learns more with two (as the paper
            takes for CIFAR-10).
        predictor: Width of the predictor's hidden layer. The paper's is 512, a quarter of the
            embedding's dimension.
    """

    group: ClassVar[str] = "simsiam"

    projector: tuple[int, ...] = (256, 256)
    predictor: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(1, "predictor")


@register
class SimSiam(Method):
    """Negative cosine similarity of a view's prediction to another view's embedding.

    The loss is the mean over all ordered pairs of views: with two views equation 2 of the paper,
    in which the embedding that is predicted is a constant (stop-gradient).

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; ``recipe.views`` says how many views there are.
        options: See `SimSiamOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2, or a width below 1.
    """

    name = "simsiam"
    Options: ClassVar[type[SimSiamOptions]] = SimSiamOptions

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: SimSiamOptions
    ) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.projector = Projector(num_features, options.projector, last_norm=True)
        dim = self.projector.dim
        self.predictor = Projector(dim, (options.predictor, dim))
        self.loss = NegativeCosineSimilarity()

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        return {"loss": mean_over_pairs(self.pair_losses(encoded, batch)).mean()}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        embedded = self.embed(encoded.features)
        predicted = self.predictor(embedded.flatten(0, 1)).view_as(embedded)
        return self.loss.pair_losses(predicted, embedded.detach())
