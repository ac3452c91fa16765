"""LeJEPA: views of an image are drawn together, and embeddings to a normal distribution.

The latter keeps them from collapsing: there is no teacher and no stop-gradient.

Balestriero & LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"
(arXiv 2511.08544).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mast_ext import functional
from mast_ext.augment import AugmentationRecipe, MultiCropPolicy, ViewBatch
from mast_ext.checks import require_number
from mast_ext.losses import LeJEPALoss
from mast_ext.methods.method import GATHER, Encoded, Method, MethodOptions, register, require_views
from mast_ext.models import Projector


@dataclass(frozen=True)
class LeJEPAOptions(MethodOptions):
    """Settings of LeJEPA. The defaults are made for a small network on small images.

    The random directions of a step are the same in runs of different seeds.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        regularization: Weight of the distance from a normal distribution; views are drawn together
            with 1 minus it. The authors' are 0.02 to 0.05.
        slices: Random directions that distributions are compared along, at every step. The
            authors' are 256 to 1024.
        local_views: Local views beside the full-size ones that `augment` describes, at least 1. The
            authors' are 6.
        local_size: Side of a local view in pixels. The authors' is 98, of 224.
        local_scale: Area of a local view's crop relative to the image's. The authors' is 0.05 to
            0.3 (and 0.3 to 1 for the full-size ones).
    """

    group: ClassVar[str] = "lejepa"

    projector: tuple[int, ...] = (256, 256, 64)
    regularization: float = 0.05
    slices: int = 256
    local_views: int = 4
    local_size: int = 16
    local_scale: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(1, "local_views", "slices")
        require_number(f"{self.group}.regularization", self.regularization, 0, 1)


@register
class LeJEPA(Method):
    """Squared distance of all views from the mean of the full-size ones, and SIGReg of every view.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations of full-size views; ``recipe.views`` of them.
        options: See `LeJEPAOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2, or an option lies out of range.
    """

    name = "lejepa"
    Options: ClassVar[type[LeJEPAOptions]] = LeJEPAOptions
    multi_crop = True

    def __init__(
        self, num_features: int, recipe: AugmentationRecipe, options: LeJEPAOptions
    ) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.options = options
        self.local_views = options.local_views
        self.local_share = (options.local_size / recipe.size) ** 2
        self.projector = Projector(num_features, options.projector)
        self.loss = LeJEPALoss(
            options.regularization,
            gather_distributed=GATHER,
            sigreg_num_vectors=options.slices,
            sigreg_seed=0,  # the same directions in every process, and after a resumption
        )

    def policy(self, recipe: AugmentationRecipe) -> MultiCropPolicy:
        return MultiCropPolicy(
            recipe,
            local_views=self.options.local_views,
            local_size=self.options.local_size,
            local_scale=self.options.local_scale,
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        views = self.embed(encoded.features)
        full = len(views) - self.local_views
        return {"loss": self.loss(global_proj=views[:full], local_proj=views[full:])}

    def crop_losses(self, encoded: Encoded) -> Tensor:
        """See `Method.crop_losses`: mean squared distances of views.

        Their sum over a tuple is not quite its training loss, in which the distance between the
        two full-size views has another weight.
        """
        views = self.embed(encoded.features)
        return functional.subspace_similarity(views, metric="sqeuclidean")[0] / views.shape[2]

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.crop_losses(encoded)
