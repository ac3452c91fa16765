"""iBOT's loss of masked patches (Zhou et al., "iBOT", ICLR 2022), as lightly's and DINOv2's."""

from typing import Literal

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_integer, require_one_device, require_positive
from mast_ext.distributed import all_reduce, world_size
from mast_ext.losses.common.center import Center, CenterMode, CenterUpdate
from mast_ext.losses.common.inputs import (
    Reduction,
    require_first_call,
    require_images,
    require_option,
    require_tensors,
)

Weighting = Literal["image", "token"]
CenterTokens = Literal["masked", "all"]


class IBOTPatchLoss(nn.Module):
    r"""Cross entropy of the student's masked patch tokens with the teacher's, which saw them::

        CE_n = − Σ_c softmax_c((teacher_nc − center_c) / τ_t) · log softmax_c(student_nc / τ_s)
        loss = mean over images of the mean of CE_n over the image's masked tokens n

    (Zhou et al. 2022). An image without a masked token counts as one of loss 0. A batch
    without any gives loss 0 and a gradient of 0, and leaves the center. The loss is computed with
    the center of the batches before. No tensor of probabilities is made.

    Values, the center and ``state_dict`` equal those of lightly 1.6.0 to float32 accuracy, with
    these differences: 16-bit logits work and give a float32 loss, the teacher gets no gradient, and
    a temperature below 0 is an error.

    When processes train together, the center is that of the tokens of all of them, whose numbers
    may differ (lightly averages the processes' means).

    Args:
        output_dim: ``C``, the number of prototypes.
        teacher_temp: ``τ_t``.
        student_temp: ``τ_s``.
        center_mode: ``"mean"``, or ``"sinkhorn"``: the teacher's probabilities are the assignments
            of three Sinkhorn-Knopp iterations over its masked tokens (Oquab et al. 2024), and the
            moving center is neither used nor changed.
        center_momentum: Weight of the past in the center.
        center_update: ``"now"``, or ``"deferred"`` to let the center's sum over processes overlap
            the backward pass; see `Center`. Losses and checkpoints are the same.
        center_tokens: The center is the mean of the ``"masked"`` tokens (DINOv2, lightly), or of
            ``"all"`` (iBOT's authors): ``teacher_out`` then has to hold all.
        weighting: Every ``"image"`` counts the same, however many tokens it has masked, or every
            masked ``"token"``.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Attributes:
        center: The `Center`.

    Raises:
        ValueError: A temperature is not positive or an option unknown.
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: CenterMode = "mean",
        center_momentum: float = 0.9,
        *,
        center_update: CenterUpdate = "now",
        center_tokens: CenterTokens = "masked",
        weighting: Weighting = "image",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.teacher_temp = require_positive("teacher_temp", teacher_temp)
        self.student_temp = require_positive("student_temp", student_temp)
        width = require_integer("output_dim", output_dim, 0)
        self.center = Center((1, width), center_mode, center_momentum, center_update=center_update)
        self.center_tokens: CenterTokens = require_option(
            "center_tokens", center_tokens, CenterTokens
        )
        self.weighting: Weighting = require_option("weighting", weighting, Weighting)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None = None,
        *,
        update_center: bool = True,
    ) -> Tensor:
        """The loss of a batch; moves the center afterwards.

        Args:
            teacher_out: The teacher's logits of the masked tokens, ``[P, C]`` in the order of the
                mask; with ``center_tokens="all"`` those of all tokens, ``[B·H·W, C]``. float32,
                float16, bfloat16 or (CPU) float64. Gets no gradient.
            student_out: The student's logits of the masked tokens, ``[P, C]``.
            mask: bool ``[B, H, W]``, set for ``P`` tokens.
            teacher_temp: ``τ_t`` of this batch.
            update_center: False leaves the center.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, the mask is set for another number of tokens (looked
                at on the CPU only: a GPU is not waited for, and returns NaN), there is no image to
                take the mean over, or a temperature is not positive.
            TypeError: A dtype is not supported or the mask not bool.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its center.
        """
        if mask.ndim != 3:
            raise ValueError(f"mask must have shape [B, H, W], got {list(mask.shape)}")
        self._require_shapes(teacher_out, student_out, mask)
        shares = self._shares(mask.sum((-2, -1)))
        if self.reduction == "none":
            sums = self._sums_per_image(
                teacher_out, student_out, mask, teacher_temp, update=update_center
            )
            return sums * shares.to(sums)
        if self.reduction == "mean":
            shares = shares / len(mask)
        loss = self._cross_entropy(
            teacher_out,
            student_out,
            mask,
            teacher_temp,
            update=update_center,
            weights=shares.repeat_interleave(mask.shape[1] * mask.shape[2]),
        )
        if self.reduction == "mean":
            require_images(len(mask), "mask")
        return loss

    @explains_types
    def patch_losses(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None = None,
    ) -> Tensor:
        """The mean cross entropy of the masked tokens of every image, to choose hard views by.

        The score of two global crops ``a`` and ``b`` in iBOT has the term
        ``(patch_losses[a] + patch_losses[b]) / 2``, beside those of `DINOLoss.crop_losses`.

        Args:
            teacher_out: As in `forward`.
            student_out: As in `forward`.
            mask: bool ``[..., H, W]``, such as ``[G, B, H, W]`` of ``G`` crops.
            teacher_temp: As in `forward`.

        Returns:
            ``[...]``, float32 (float64 for float64 inputs); 0 for an image without a masked token.
            The center is used, and left as it is.

        Raises:
            ValueError: A shape does not fit, or a temperature is not positive.
            TypeError: A dtype is not supported or the mask not bool.
            RuntimeError: Another process died or is late.
        """
        self._require_shapes(teacher_out, student_out, mask)
        sums = self._sums_per_image(teacher_out, student_out, mask, teacher_temp, update=False)
        return sums / mask.sum((-2, -1)).clamp_min(1)

    def _shares(self, counts: Tensor) -> Tensor:
        """Factors ``[B]`` of the sums over each image's ``counts [B]`` masked tokens."""
        if self.weighting == "image":
            return counts.clamp_min(1).double().reciprocal()
        # The processes' mean number of tokens, so that averaging their gradients weighs each alike.
        tokens = all_reduce(counts.sum()) / world_size()
        return (len(counts) / tokens.double().clamp_min(1 / world_size())).expand(len(counts))

    def _sums_per_image(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None,
        *,
        update: bool,
    ) -> Tensor:
        """Per image, the sum of its masked tokens' cross entropies."""
        ce = self._cross_entropy(teacher_out, student_out, mask, teacher_temp, update=update)
        tokens = ce.new_zeros(mask.numel())
        tokens = tokens.index_copy(0, self._masked_tokens(mask, len(ce)), ce)
        return tokens.view(mask.shape).sum((-2, -1))

    def _cross_entropy(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None,
        *,
        update: bool,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Of the masked tokens ``[P]``, or their sum by ``weights`` of all tokens."""
        temperature = self.teacher_temp if teacher_temp is None else teacher_temp
        require_positive("teacher_temp", temperature)
        every = self.center_tokens == "all"
        if update and every and self.center.mode == "mean":
            require_first_call("the center")
        masked = self._masked_tokens(mask, len(student_out))
        ce = self.center.cross_entropy(
            student_out[None],
            teacher_out[None, masked] if every else teacher_out[None],
            student_temperature=self.student_temp,
            teacher_temperature=temperature,
            update=update and not every,
            weights=None if weights is None else weights[masked],
        )
        if update and every and self.center.mode == "mean":
            self.center.update(teacher_out)
        fits = torch.where(mask.sum() == len(student_out), 1.0, torch.nan)
        return (ce[0, 0] if weights is None else ce) * fits.to(ce)

    @staticmethod
    def _masked_tokens(mask: Tensor, count: int) -> Tensor:
        """Places of the masked tokens in order, without a look at how many a GPU finds."""
        order = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        return order[:count]

    def _require_shapes(self, teacher: Tensor, student: Tensor, mask: Tensor) -> None:
        """Raises what `forward` says."""
        center = self.center.center
        require_tensors(teacher_out=teacher, student_out=student, center=center)
        require_one_device(teacher_out=teacher, mask=mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.ndim < 2:
            raise ValueError(f"mask must have shape [..., H, W], got {list(mask.shape)}")
        if student.ndim != 2:
            raise ValueError(f"student_out must have shape [P, C], got {list(student.shape)}")
        rows = mask.numel() if self.center_tokens == "all" else len(student)
        if teacher.shape != (rows, student.shape[1]):
            raise ValueError(
                f"teacher_out must have shape {[rows, student.shape[1]]}, got {list(teacher.shape)}"
            )
        looked_at = mask.device.type == "cpu" and not torch.compiler.is_compiling()
        found = int(mask.sum()) if looked_at else min(len(student), mask.numel())
        if found != len(student):
            raise ValueError(
                f"mask of shape {list(mask.shape)} must be set for the {len(student)} tokens of "
                f"student_out, is for {found}"
            )

    def extra_repr(self) -> str:
        return (
            f"teacher_temp={self.teacher_temp}, student_temp={self.student_temp}, "
            f"center_tokens={self.center_tokens!r}, weighting={self.weighting!r}"
        )
