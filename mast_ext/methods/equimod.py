"""EquiMod: any method, and embeddings in which the effect of an augmentation can be predicted.

Devillers & Lefort 2023. A second projector embeds all views and the plain image; from the plain
image's embedding and the parameters of an augmentation a predictor says where the augmented view
lies. The wrapped method sees neither the plain image nor these heads.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.augment import (
    AUGMENTATIONS,
    COLUMNS,
    GROUPS,
    AugmentationParameters,
    AugmentationRecipe,
    ViewBatch,
    ViewPolicy,
)
from mast_ext.losses import EquivarianceLoss
from mast_ext.methods.method import GATHER, Encoded, Method, MethodOptions, TeacherSpec
from mast_ext.models import Projector


@dataclass(frozen=True)
class EquiModOptions(MethodOptions):
    """Settings of EquiMod.

    Attributes:
        weight: Weight of the equivariance loss. The method's own has weight 1; 0 leaves EquiMod
            out, 1 is the paper's.
        projector: Widths of the equivariance projector's layers. The paper's are 2048, 2048, 128.
        parameters: Width of the encoded augmentation parameters (the paper's).
        temperature: Temperature of the equivariance loss. The paper's is 0.2, for runs of hundreds
            of epochs; on the defaults' short run 0.1 gives twice the gain and better features.
    """

    group: ClassVar[str] = "equimod"

    weight: float = 0.0
    projector: tuple[int, ...] = (256, 256, 128)
    parameters: int = 128
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "weight")
        self._require_at_least(1, "parameters")


# EquiMod is used as a method, but does not inherit from `Method`: its defaults would hide what the
# wrapped method answers (see `EquiMod.__getattr__`).
if TYPE_CHECKING:
    _Base = Method
else:
    _Base = nn.Module


class EquiMod(_Base):
    """A method's loss plus ``weight`` times the equivariance loss.

    It is used as the wrapped method is, which answers for all that it does not define itself.

    Its logs beside the method's own: the method's loss under the method's name, ``equivariance``
    (the loss before its weight), and the gain ``cos(y, ŷ) − cos(y, y₀)``: how much nearer the
    prediction ``ŷ`` is to a view's embedding ``y`` than the plain image's ``y₀`` is. Its mean over
    all views is ``equivariance_gain``; ``equivariance_gain/<augmentation>`` is the mean over those
    views whose parameters of that augmentation are not the plain image's (a view that was not
    flipped does not count for the flip), NaN when the batch has none.

    Args:
        base: The method to wrap.
        num_features: Width of the backbone's features.
        recipe: The augmentations.
        options: See `EquiModOptions`.

    Raises:
        ValueError: An option lies out of range.
    """

    Options = EquiModOptions
    student_views = slice(None)
    with_center = True

    def __init__(
        self,
        base: Method,
        num_features: int,
        recipe: AugmentationRecipe,
        options: EquiModOptions,
    ) -> None:
        super().__init__()
        self.base = base
        self.name = f"{base.name}+equimod"
        self.weight = options.weight
        self.recipes = base.policy(recipe).recipes
        on = {name for each in self.recipes for name in each.augmentations}
        self.augmentations = tuple(name for name in AUGMENTATIONS if name in on)
        # Single layers behind the projector, so that it has to make the change a simple one.
        self.projector = Projector(num_features, options.projector, last_norm=True)
        dim = self.projector.dim
        self.encoder = nn.Sequential(
            nn.Linear(len(COLUMNS), options.parameters, bias=False),
            nn.BatchNorm1d(options.parameters),
        )
        self.predictor = Projector(dim + options.parameters, (dim,), last_norm=True)
        self.loss = EquivarianceLoss(options.temperature, gather_distributed=GATHER)

    def policy(self, recipe: AugmentationRecipe) -> ViewPolicy:
        """The views of the wrapped method, and the centers of their crops."""
        policy = self.base.policy(recipe)
        policy.with_center = True
        return policy

    def teacher(self) -> TeacherSpec | None:
        """The wrapped method's, which does not see the plain image."""
        spec = self.base.teacher()
        if spec is None:
            return None
        # Counted without the plain image, the last of the full-size views.
        views = len(self.recipes) - self.local_views
        return replace(spec, views=slice(*spec.views.indices(views)))

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        """The wrapped method's loss plus the weighted equivariance loss, and both for the log."""
        shown = replace(batch, images=batch.images[:-1], parameters=batch.parameters[:-1])
        own = replace(encoded, features=encoded.features[:-1][self.base.student_views])
        terms = self.base(own, shown)

        *_, center = embedded = _apply(self.projector, encoded.features)
        actual = embedded[:-1]
        parameters = AugmentationParameters(shown.parameters).standardized(*self.recipes)
        change = _apply(self.encoder, parameters)
        start = center.expand_as(actual)
        predicted = _apply(self.predictor, torch.cat((start, change), dim=-1))
        equivariance = self.loss(actual, predicted)
        return {
            **terms,
            "loss": terms["loss"] + self.weight * equivariance,
            self.base.name: terms["loss"].detach(),
            "equivariance": equivariance.detach(),
            **self._gains(actual, predicted, start, batch.parameters),
        }

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        """Those of the wrapped method: hard views are chosen by them."""
        return self.base.pair_losses(encoded, batch)

    forwards = Method.forwards  # by this class's views and teacher

    def no_weight_decay(self) -> set[str]:
        """Those of the wrapped method."""
        return {f"base.{name}" for name in self.base.no_weight_decay()}

    def __getattr__(self, name: str) -> Any:
        """What this class does not have: a submodule, or else the wrapped method's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # How to copy or pickle the wrapped method is not how to do so with this one.
            if name.startswith("_") or "base" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base, name)

    @torch.no_grad()
    def _gains(
        self, actual: Tensor, predicted: Tensor, start: Tensor, parameters: Tensor
    ) -> dict[str, Tensor]:
        # All views as one batch of images: each is compared with its own two candidates alone.
        candidates = torch.stack((predicted, start)).flatten(1, 2)
        cosine = functional.subspace_similarity(actual.flatten(0, 1)[None], candidates)[0, 0]
        gain = (cosine[0] - cosine[1]).view(actual.shape[:2])
        gains = {"equivariance_gain": gain.mean()}
        changed = parameters[:-1] != parameters[-1]
        for name in self.augmentations:
            applied = changed[..., GROUPS[name]].any(-1)
            total = gain.where(applied, 0.0).sum()
            gains[f"equivariance_gain/{name}"] = total / applied.sum()
        return gains


Method.register(EquiMod)  # isinstance(equimod, Method)


def _apply(head: nn.Module, rows: Tensor) -> Tensor:
    """A head on rows ``[V, B, F]``; batch norm sees all views together."""
    return head(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
