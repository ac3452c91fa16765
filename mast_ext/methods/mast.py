"""MAST: one embedding, and a mask for every augmentation that views may have in common.

After Huang et al., "MAST: Masked Augmentation Subspace Training" (ICLR 2023); the definition is
ours (see `mast_ext.losses.MASTLoss`). An augmentation's mask says which dimensions are invariant to
it; it frees the others. Two views of an image that differ by some augmentations are compared on the
dimensions that are invariant to all of these, so that freed ones keep what an augmentation changes:
they are compared only where the views share it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from mast_ext.augment import (
    COLUMNS,
    AugmentationParameters,
    AugmentationRecipe,
    SharedPolicy,
    Sharing,
    ViewBatch,
)
from mast_ext.checks import OptionError, require_number, require_positive
from mast_ext.losses import AugmentationMasks, MASTLoss
from mast_ext.losses.masks import SMALLEST
from mast_ext.methods.method import (
    GATHER,
    Encoded,
    Method,
    MethodOptions,
    Subspaces,
    register,
    require_two_views,
)
from mast_ext.methods.vicreg import VICRegOptions
from mast_ext.models import PairUncertainty, Projector


class SharedOptions(TypedDict, total=False):
    """Settings of one augmentation that the views of an image may have in common.

    Attributes:
        share: Probability that the views of an image have it in common, drawn independently of the
            other augmentations (0.5).
        freed: Fraction of the embedding's dimensions that are compared only in pairs which share
            it. With 0, the default, sharing makes pairs easier, and the whole embedding is
            invariant to it.
        start: Fraction of the run's epochs, rounded to whole ones, from which on views share it
            (0). Geometry is best shared late, when the freed dimensions of other augmentations
            have learned what they are to keep.
    """

    share: float
    freed: float
    start: float


_SHARED: SharedOptions = {"share": 0.5, "freed": 0.0, "start": 0.0}


@dataclass(frozen=True)
class MASTOptions(MethodOptions):
    """Settings of MAST.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        shared: What the two views of an image may have in common: ``crop``, ``flip``, ``geometry``
            (both), ``brightness``, ``contrast``, ``saturation``, ``hue``, ``blur``. Of each,
            ``share`` is the probability that they have (0.5), ``freed`` the share of dimensions
            that keep what it changes (0), and ``start`` the fraction of the epochs (rounded to
            whole ones) after which it is shared (0). Example:
            ``{hue: {freed: 0.125}, geometry: {start: 0.33}}``.
        masks: Which dimensions are freed: ``learned``, or fixed ``blocks`` of them.
        price: With a price, how many are freed is learned, too, starting with ``freed``: those
            where it lowers the views' mean squared difference by more than the price, in units of
            a dimension's variance (``vicreg`` and learned masks). By default exactly ``freed`` are.
        base: What keeps the embedding from collapsing: variance and covariance (``vicreg``), or
            the other images of the batch (``nt_xent``).
        uncertainty: Whether pairs are weighted by a learned uncertainty, which is large where two
            views were changed so much that they are hardly alike.
        softness: How strongly uncertainty counts: pairs have weights
            ``exp(-softness * log_variance)``.
        invariance: Weight of the pairs' distance; by default 5 on ``vicreg`` (see `VICRegOptions`)
            and 1 on ``nt_xent``.
        variance: Weight of the hinge on every dimension's standard deviation (``vicreg``).
        covariance: Weight of the squared off-diagonal covariances (``vicreg``).
        temperature: Temperature of the cosine similarities (``nt_xent``).
        epochs: What ``start`` is a fraction of; by default the run's epochs.
    """

    group: ClassVar[str] = "mast"

    projector: tuple[int, ...] = (256, 256, 256)
    shared: dict[str, SharedOptions] = field(
        default_factory=lambda: {
            "hue": SharedOptions(freed=0.125),
            "geometry": SharedOptions(start=1 / 3),
        }
    )
    masks: Literal["learned", "blocks"] = "learned"
    price: float | None = None
    base: Literal["vicreg", "nt_xent"] = "vicreg"
    uncertainty: bool = False
    softness: float = 1.0
    invariance: float | None = None
    variance: float = 25.0
    covariance: float = 1.0
    temperature: float = 0.2
    epochs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "invariance", "variance", "covariance")
        if self.epochs is not None:
            require_positive("mast.epochs", self.epochs)
        if self.price is not None and (self.base != "vicreg" or self.masks != "learned"):
            raise OptionError(
                "mast.price is for mast.base vicreg and mast.masks learned, got"
                f" {self.base} and {self.masks}"
            )
        if not isinstance(self.shared, dict) or not self.shared:
            raise OptionError(
                "mast.shared must map at least one augmentation to its settings, got "
                f"{self.shared!r}"
            )
        # With all settings, so that what a run writes down does not depend on defaults.
        complete = {name: _completed(name, shared) for name, shared in self.shared.items()}
        object.__setattr__(self, "shared", complete)


def _completed(name: str, shared: SharedOptions) -> SharedOptions:
    if not isinstance(shared, dict):
        raise OptionError(f"mast.shared: {name} takes share, freed and start, got {shared!r}")
    unknown = sorted(shared.keys() - _SHARED.keys())
    if unknown:
        raise OptionError(f"mast.shared: {name} takes share, freed and start, got {unknown[0]!r}")
    found: SharedOptions = {**_SHARED, **shared}
    for option, value in found.items():
        require_number(f"mast.shared: {option} of {name}", value, 0, 1)
    freed = found["freed"]
    if freed != 0 and not SMALLEST <= freed <= 1 - SMALLEST:
        raise OptionError(
            f"mast.shared: freed of {name} must be 0, or from {SMALLEST:g} to {1 - SMALLEST:g}, got"
            f" {freed!r}: an augmentation that frees everything leaves nothing to compare"
        )
    return found


@register
class MAST(Method):
    """Masked augmentation subspaces.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; it must vary what is shared.
        options: See `MASTOptions`.

    Raises:
        ValueError: An option lies out of range, ``recipe.views`` is not 2, or the recipe does not
            vary what is shared.
    """

    name = "mast"
    baseline = "vicreg"
    Options: ClassVar[type[MASTOptions]] = MASTOptions

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: MASTOptions) -> None:
        super().__init__()
        require_two_views(self.name, recipe)
        self.options = options
        self.recipe = recipe
        self.shared = self.policy(recipe).shared
        self.projector = Projector(num_features, options.projector)
        invariance = options.invariance
        if invariance is None and options.base == "vicreg":
            invariance = VICRegOptions().invariance
        masks = AugmentationMasks(
            [options.shared[name]["freed"] for name in self.shared],
            self.projector.dim,
            learned=options.masks == "learned",
            price=options.price,
        )
        self.loss = MASTLoss(
            masks,
            base=options.base,
            invariance=invariance,
            variance=options.variance,
            covariance=options.covariance,
            temperature=options.temperature,
            softness=options.softness,
            gather_distributed=GATHER,
        )
        self.learns_uncertainty = options.uncertainty
        self.uncertainty: PairUncertainty | None = None
        if options.uncertainty:
            self.uncertainty = PairUncertainty(len(COLUMNS) + 3 + len(self.shared))

    @classmethod
    def complete(cls, options: MASTOptions, epochs: float) -> MASTOptions:
        return options if options.epochs is not None else replace(options, epochs=epochs)

    def policy(self, recipe: AugmentationRecipe) -> SharedPolicy:
        epochs = self.options.epochs or 0.0
        sharing = {
            name: Sharing(shared["share"], round(shared["start"] * epochs))
            for name, shared in self.options.shared.items()
        }
        return SharedPolicy(recipe, shared=sharing)

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        x, y = self.embed(encoded.features)
        terms = self.loss(x, y, self._changed(batch), self.pair_uncertainty(batch))
        return {"loss": terms.loss, **terms.logs}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.loss.pair_losses(self.embed(encoded.features), self._changed(batch))

    def pair_uncertainty(self, batch: ViewBatch) -> Tensor | None:
        if self.uncertainty is None:
            return None
        parameters = AugmentationParameters(batch.parameters[:2])
        pairs = parameters.pair_differences(0, 1, self.recipe)
        return self.uncertainty(torch.cat((pairs, self._changed(batch).to(pairs)), dim=1)).float()

    def _changed(self, batch: ViewBatch) -> Tensor:
        if batch.changed is None:
            raise ValueError("mast needs views of a SharedPolicy, got a batch without `changed`")
        return batch.changed

    @torch.no_grad()
    def subspaces(self) -> Subspaces | None:
        """None where nothing is freed: the embedding is one."""
        if not any(shared["freed"] for shared in self.options.shared.values()):
            return None
        masks = self.loss.masks
        return Subspaces(self.shared, masks().float().cpu(), masks.overlap().float().cpu())

    def no_weight_decay(self) -> set[str]:
        """The masks: decay would pull every dimension towards the same mask."""
        return {name for name, _ in self.named_parameters() if name.startswith("loss.")}
