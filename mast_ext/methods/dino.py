"""DINO: a student learns an EMA teacher's assignment of images to prototypes.

The teacher sees two full-size views of an image; the student is to give every view, local ones
too, the same assignment.
Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, BlockMasks, MultiCropPolicy, ViewBatch
from mast_ext.checks import OptionError, require_positive
from mast_ext.losses import DINOLoss, GramAnchoringLoss
from mast_ext.methods.method import (
    Encoded,
    GramTeacherSpec,
    Method,
    MethodOptions,
    TeacherMethod,
    TeacherSpec,
    register,
    require_views,
)
from mast_ext.models import (
    BatchNormMode,
    DINOHead,
    NormalizedLinear,
    PatchLayout,
    patch_layout,
)


@dataclass(frozen=True)
class DINOOptions(MethodOptions):
    """Settings of DINO. The defaults are made for a small network on small images.

    Attributes:
        prototypes: Number of prototypes. The paper's is 65536.
        head: Width of the head's hidden layers. The paper's are 2048, 2048.
        bottleneck: Width of the embedding before the prototypes. The paper's is 256.
        head_batch_norm: Batch norm in the head. The authors take it for ResNets only; it tells
            images apart from the first step on, which a short run gains by.
        norm_last_layer: Fix the norm of every prototype to 1. The authors do so but for ViT-S.
        freeze_last_layer: Epochs (fractions allowed) in which the prototypes do not change. The
            paper's is 1, of 100 and more.
        student_temperature: The paper's.
        teacher_temperature: The paper's is 0.07 after a warm-up, 0.04 without; in a short run that
            leaves the teacher next to undecided.
        warmup_teacher_temperature: Where the teacher's temperature starts from (0.04).
        temperature_warmup: Epochs (fractions allowed) of its linear change, at most those of the
            training. The paper's is 30.
        center_mode: What keeps the teacher from collapsing onto few prototypes: ``mean`` takes a
            moving average off its scores (the paper's), ``sinkhorn`` balances every batch (Caron
            et al. 2020; DINOv2).
        center_momentum: Momentum of that average (the paper's).
        momentum: The teacher's momentum at the first step, from where it rises to 1 by half a
            cosine. The paper's is 0.996; a short run takes fewer steps to be followed in.
        batch_norm: Batch norm of the teacher, ``own`` (the paper's) or ``ema`` (see
            `mast_ext.models.EMATeacher`).
        local_views: Local views beside the full-size ones that `augment` describes. The paper's
            are 8 to 10.
        local_size: Side of a local view in pixels. The paper's is 96, of 224.
        local_scale: Area of a local view's crop relative to the image's. The paper's is 0.05 to
            0.4 (and 0.4 to 1 for the full-size ones).
        asymmetric: Blur and solarize as published, whatever `augment` says of both: the first view
            is always blurred, the second one with probability 0.1 and solarized with 0.2, local
            ones blurred with 0.5.
        gram_weight: Weight of Gram anchoring (DINOv3, Siméoni et al. 2025): how alike the patches
            of a full-size view are to each other stays as the teacher had it at an earlier step.
            0 leaves it out; the paper's is 2.
        gram_start: The step from which on patches are anchored, to the teacher of that step; has to
            be given with a weight. The paper's is about a million: it is for long runs, whose
            patches lose their places. 0 anchors them to a network that has learned nothing yet,
            unless it starts from weights.
        gram_every: Steps after which the teacher is taken anew. The paper's is 10000.
    """

    group: ClassVar[str] = "dino"
    warmups: ClassVar[dict[str, str]] = {
        "temperature_warmup": "the teacher's temperature changes to the end"
    }
    waits: ClassVar[dict[str, str]] = {"freeze_last_layer": "the prototypes never change"}

    prototypes: int = 512
    head: tuple[int, ...] = (256, 256)
    bottleneck: int = 64
    head_batch_norm: bool = True
    norm_last_layer: bool = True
    freeze_last_layer: float = 0.0
    student_temperature: float = 0.1
    teacher_temperature: float = 0.02
    warmup_teacher_temperature: float = 0.02
    temperature_warmup: float = 0.0
    center_mode: Literal["mean", "sinkhorn"] = "mean"
    center_momentum: float = 0.9
    momentum: float = 0.98
    batch_norm: BatchNormMode = "own"
    local_views: int = 4
    local_size: int = 16
    local_scale: tuple[float, float] = (0.05, 0.4)
    asymmetric: bool = False
    gram_weight: float = 0.0
    gram_start: int | None = None
    gram_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "gram_weight", "gram_start")
        self._require_at_least(1, "gram_every", "prototypes", "bottleneck")
        if self.gram_weight > 0 and self.gram_start is None:
            raise OptionError(f"{self.group}.gram_start must be given with gram_weight")
        self._require_at_least(0, "freeze_last_layer", "temperature_warmup", "local_views")
        for name in ("teacher_temperature", "warmup_teacher_temperature", "student_temperature"):
            require_positive(f"{self.group}.{name}", getattr(self, name))


@register
class DINO(TeacherMethod):
    """Cross-entropy of every student view to every full-size view of the teacher but itself.

    With Gram anchoring it logs its loss, too, before its weight: ``gram``, NaN before it starts.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations of full-size views; ``recipe.views`` of them.
        options: See `DINOOptions`.

    Raises:
        ValueError: ``recipe.views`` is below 2, or an option lies out of range.
    """

    name = "dino"
    Options: ClassVar[type[DINOOptions]] = DINOOptions
    multi_crop = True
    masks: BlockMasks | None = None

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: DINOOptions) -> None:
        super().__init__()
        require_views(self.name, recipe)
        self.options = options
        self.local_views = options.local_views
        self.local_share = (options.local_size / recipe.size) ** 2
        self.head = self._make_head(num_features)
        self.loss = DINOLoss(
            options.prototypes,
            teacher_temp=options.teacher_temperature,
            student_temp=options.student_temperature,
            center_momentum=options.center_momentum,
            center_mode=options.center_mode,
            center_update="deferred",
        )
        self.teacher_spec = TeacherSpec(
            self.head,
            views=slice(0, recipe.views),
            momentum=options.momentum,
            batch_norm=options.batch_norm,
        )
        self.gram_loss = GramAnchoringLoss(remove_neg=False)
        self._gram_spec: GramTeacherSpec | None = None
        if options.gram_weight > 0 and options.gram_start is not None:
            self._gram_spec = GramTeacherSpec(options.gram_start, options.gram_every, recipe.views)
        self._epoch, self._epochs = 0.0, math.inf

    @classmethod
    def create(
        cls, backbone: nn.Module, num_features: int, recipe: AugmentationRecipe, options: Any
    ) -> Method:
        if options.gram_weight > 0:
            try:
                layout = patch_layout(backbone, recipe.size)
            except ValueError as error:
                raise OptionError(f"gram_weight: {error}") from error
            require_patches(layout)
        return cls(num_features, recipe, options)

    def _make_head(self, num_features: int) -> DINOHead:
        options = self.options
        return DINOHead(
            num_features,
            options.head,
            options.bottleneck,
            options.prototypes,
            batch_norm=options.head_batch_norm,
            fixed_gain=options.norm_last_layer,
        )

    def policy(self, recipe: AugmentationRecipe) -> MultiCropPolicy:
        return MultiCropPolicy(
            recipe,
            local_views=self.options.local_views,
            local_size=self.options.local_size,
            local_scale=self.options.local_scale,
            asymmetric=self.options.asymmetric,
            masks=self.masks,
        )

    def at_step(self, step: int, steps_per_epoch: int, total_steps: int) -> None:
        self._epoch, self._epochs = step / steps_per_epoch, total_steps / steps_per_epoch

    def before_update(self) -> None:
        if self._epoch >= self.options.freeze_last_layer:
            return
        for module in self.head.modules():
            if isinstance(module, NormalizedLinear):
                for parameter in module.parameters():
                    parameter.grad = None  # then the optimizer does not decay it either

    def _warm(self, start: float, end: float) -> float:
        """A temperature at the current step, which the warm-up changes linearly."""
        warmup = min(self.options.temperature_warmup, self._epochs)
        return end if self._epoch >= warmup else start + (end - start) * self._epoch / warmup

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature at the current step."""
        options = self.options
        return self._warm(options.warmup_teacher_temperature, options.teacher_temperature)

    def embed(self, features: Tensor) -> Tensor:
        return self.head.embed(features)

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        terms = {"loss": self._view_loss(self.head(encoded.features), encoded)}
        return self._with_anchors(terms, encoded)

    def gram_teacher(self) -> GramTeacherSpec | None:
        return self._gram_spec

    def _with_anchors(self, terms: dict[str, Tensor], encoded: Encoded) -> dict[str, Tensor]:
        """The terms of a loss, to which Gram anchoring adds its own if it is on."""
        if self._gram_spec is None:
            return terms
        if encoded.anchored is None:  # not yet; a log has the same columns from the first step on
            return {**terms, "gram": terms["loss"].new_full((), math.nan)}
        gram = self.gram_loss(encoded.anchored.student, encoded.anchored.teacher)
        loss = terms["loss"] + self.options.gram_weight * gram
        return {**terms, "loss": loss, "gram": gram.detach()}

    def _view_loss(self, scores: Tensor, encoded: Encoded) -> Tensor:
        return self.loss(
            self.targets_of(encoded),
            scores,
            teacher_temp=self.teacher_temperature,
            update_center=self.training,
        )

    def crop_losses(self, encoded: Encoded) -> Tensor:
        return self._crop_losses(self.head(encoded.features), encoded)

    def _crop_losses(self, scores: Tensor, encoded: Encoded) -> Tensor:
        targets = self.targets_of(encoded)
        return self.loss.crop_losses(targets, scores, teacher_temp=self.teacher_temperature)

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        return self.crop_losses(encoded).transpose(0, 1)


def require_patches(layout: PatchLayout) -> None:
    """Raises a ValueError unless a view has two patches, which Gram anchoring compares."""
    height, width = layout.grid
    if height * width < 2:
        raise OptionError(
            f"gram_weight: a view must have at least 2 patches, got a grid of {height} x {width}"
        )
