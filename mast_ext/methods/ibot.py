"""iBOT: DINO, and the student predicts the teacher's assignment of hidden patches.

The teacher sees all patches, those that are hidden from the student, too.
Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer" (ICLR 2022).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, BlockMasks, ViewBatch
from mast_ext.checks import require_number, require_positive, require_range
from mast_ext.losses import IBOTPatchLoss
from mast_ext.methods.dino import DINO, DINOOptions, require_patches
from mast_ext.methods.method import Encoded, HiddenPatches, Method, register
from mast_ext.models import DINOHead, PatchLayout, patch_layout


@dataclass(frozen=True)
class IBOTOptions(DINOOptions):
    """Settings of iBOT: those of DINO, and these. The defaults are made for small images.

    Attributes:
        shared_head: Views and patches have one head, which the paper finds best. A head of
            patches alone has no batch norm.
        view_weight: Weight of DINO's loss (the paper's).
        patch_weight: Weight of the loss of hidden patches (the paper's).
        patch_temperature: The teacher's temperature for patches. The paper's is 0.07 after a
            warm-up.
        warmup_patch_temperature: Where it starts from (0.04); it changes over
            ``temperature_warmup``.
        mask_probability: Share of the full-size views some of whose patches are hidden.
        mask_ratio: Range of the share of hidden patches of such a view (the paper's).
    """

    group: ClassVar[str] = "ibot"

    shared_head: bool = True
    view_weight: float = 1.0
    patch_weight: float = 1.0
    patch_temperature: float = 0.02
    warmup_patch_temperature: float = 0.02
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_at_least(0, "view_weight", "patch_weight")
        require_number(f"{self.group}.mask_probability", self.mask_probability, 0, 1)
        require_range(f"{self.group}.mask_ratio", self.mask_ratio, 1, from_zero=True)
        for name in ("patch_temperature", "warmup_patch_temperature"):
            require_positive(f"{self.group}.{name}", getattr(self, name))


class IBOTHead(DINOHead):
    """A `DINOHead` of views, and the same or another one of patches.

    Args:
        num_features: Width of the input.
        options: Widths, and whether the head is shared.
    """

    def __init__(self, num_features: int, options: IBOTOptions) -> None:
        widths = (num_features, options.head, options.bottleneck, options.prototypes)
        fixed_gain = options.norm_last_layer
        super().__init__(*widths, batch_norm=options.head_batch_norm, fixed_gain=fixed_gain)
        # Without batch norm: a batch may hide too few patches to normalize by.
        self.patches: DINOHead | None = None
        if not options.shared_head:
            self.patches = DINOHead(*widths, fixed_gain=fixed_gain)

    def both(self, features: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of views ``[V, B, F] -> [V, B, C]`` and patches ``[P, F] -> [P, C]``.

        To a shared head all of them are one batch.
        """
        if self.patches is not None:
            return self(features), self.patches(patches)
        views, batch = features.shape[:2]
        scores = self(torch.cat((features.flatten(0, 1), patches)))
        of_views, of_patches = scores.split((views * batch, len(patches)))
        return of_views.unflatten(0, (views, batch)), of_patches


@register
class IBOT(DINO):
    """DINO's loss, in which full-size views are masked, plus that of the hidden patches.

    Logs beside ``loss`` its two terms before their weights, ``views`` and ``patches``.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations of full-size views.
        options: See `IBOTOptions`.
        layout: The patches of a full-size view in the backbone.

    Attributes:
        token: Stands for hidden patches.

    Raises:
        ValueError: ``recipe.views`` is below 2, or an option lies out of range.
    """

    name = "ibot"
    Options: ClassVar[type[IBOTOptions]] = IBOTOptions
    options: IBOTOptions
    head: IBOTHead

    def __init__(
        self,
        num_features: int,
        recipe: AugmentationRecipe,
        options: IBOTOptions,
        layout: PatchLayout,
    ) -> None:
        super().__init__(num_features, recipe, options)
        self.masks = BlockMasks(layout.grid, options.mask_probability, options.mask_ratio)
        self.token = nn.Parameter(torch.empty(layout.token_dim))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.patch_loss = IBOTPatchLoss(
            options.prototypes,
            teacher_temp=options.patch_temperature,
            student_temp=options.student_temperature,
            center_mode=options.center_mode,
            center_momentum=options.center_momentum,
            center_update="deferred",
        )

    @classmethod
    def create(
        cls, backbone: nn.Module, num_features: int, recipe: AugmentationRecipe, options: Any
    ) -> Method:
        layout = patch_layout(backbone, recipe.size)
        if options.gram_weight > 0:
            require_patches(layout)
        return cls(num_features, recipe, options, layout)

    def _make_head(self, num_features: int) -> IBOTHead:
        return IBOTHead(num_features, self.options)

    def hidden_token(self) -> Tensor:
        return self.token

    @property
    def patch_temperature(self) -> float:
        """The teacher's temperature for patches at the current step."""
        return self._warm(self.options.warmup_patch_temperature, self.options.patch_temperature)

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        hidden = self._hidden_patches(encoded)
        scores, patch_scores = self.head.both(encoded.features, hidden.student)
        views = self._view_loss(scores, encoded)
        patches = self.patch_loss(
            hidden.teacher,
            patch_scores,
            hidden.masks.flatten(0, 1),
            teacher_temp=self.patch_temperature,
            update_center=self.training,
        )
        options = self.options
        terms = {
            "loss": options.view_weight * views + options.patch_weight * patches,
            "views": views.detach(),
            "patches": patches.detach(),
        }
        return self._with_anchors(terms, encoded)

    def crop_losses(self, encoded: Encoded) -> Tensor:
        """See `Method.crop_losses`. The sum over a tuple is proportional to its training loss.

        That is the mean of ``2 + 2 L`` terms of views plus the mean of two terms of patches: beside
        the sum of the former, the patches of a full-size view have weight ``1 + L``. They are added
        to its whole column, of which a tuple has one entry for another full-size view.
        """
        hidden = self._hidden_patches(encoded)
        scores, patch_scores = self.head.both(encoded.features, hidden.student)
        losses = self.options.view_weight * self._crop_losses(scores, encoded)
        patch_losses = self.patch_loss.patch_losses(
            hidden.teacher,
            patch_scores,
            hidden.masks,
            teacher_temp=self.patch_temperature,
        )
        weight = self.options.patch_weight * (1 + self.options.local_views)
        losses[:, : len(patch_losses)] += weight * patch_losses
        return losses

    def _hidden_patches(self, encoded: Encoded) -> HiddenPatches:
        if encoded.patches is None:
            raise ValueError("ibot needs patches, what both networks say of hidden ones")
        return encoded.patches
