"""BYOL: every view predicts an EMA teacher's embeddings of the others (Grill et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.losses import NegativeCosineSimilarity
from mast_ext.losses.common.view_pairs import mean_over_pairs
from mast_ext.methods.method import (
    Encoded,
    MethodOptions,
    TeacherMethod,
    TeacherSpec,
    register,
    require_views,
)
from mast_ext.models import BatchNormMode, Projector


@dataclass(frozen=True)
class BYOLOptions(MethodOptions):
    """Settings of BYOL.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
            The paper's are 4096, 256.
        predictor: Width of the predictor's hidden layer. The paper's is 4096.
        momentum: The teacher's momentum at the first step, from where it rises to 1 by half a
            cosine. The paper's is 0.996, for 300 epochs of ImageNet and more; a short run takes
            fewer steps to be followed in.
        batch_norm: Batch norm of the teacher, ``own`` (the paper's) or ``ema`` (see
            `mast_ext.models.EMATeacher`).
    """

    group: ClassVar[str] = "byol"

    projector: tuple[int, ...] = (256, 128)
    predictor: int = 256
    momentum: float = 0.98
    batch_norm: BatchNormMode = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(1, "predictor")


@register
class BYOL(TeacherMethod):
    """Negative cosine similarity of a view's prediction to the teacher's embedding of another.

    The loss is the mean over all ordered pairs of views. With two views it is the paper's
    (equation 2, made symmetric) but for constants: ``−cos`` where the paper takes the squared
    distance of unit vectors, ``2 − 2·cos``.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; ``recipe.views`` says how many views there are.
        options: See `BYOLOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2, or an option lies out of range.
    """

    name = "byol"
    Options: ClassVar[type[BYOLOptions]] = BYOLOptions

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: BYOLOptions) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.projector = Projector(num_features, options.projector)
        dim = self.projector.dim
        self.predictor = Projector(dim, (options.predictor, dim))
        self.loss = NegativeCosineSimilarity()
        self.teacher_spec = TeacherSpec(
            self.projector,
            views=slice(None),
            momentum=options.momentum,
            batch_norm=options.batch_norm,
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        return {"loss": mean_over_pairs(self.pair_losses(encoded, batch)).mean()}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        embedded = self.embed(encoded.features)
        predicted = self.predictor(embedded.flatten(0, 1)).view_as(embedded)
        return self.loss.pair_losses(predicted, self.targets_of(encoded))

    def teacher_pair_losses(self, targets: Tensor) -> Tensor:
        return self.loss.pair_losses(targets)
