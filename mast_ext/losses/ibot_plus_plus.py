"""iBOT's loss of all patches (TIPSv2, arXiv 2604.12012), a drop-in for lightly's class."""

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.losses.common.center import Center, CenterMode, CenterUpdate
from mast_ext.losses.common.inputs import Reduction, require_images, require_option, require_tensors


class IBOTPlusPlusPatchLoss(nn.Module):
    r"""Cross entropy of all of the student's patch tokens, masked and visible, with the teacher's::

        CE_bn = − Σ_c softmax_c((teacher_bnc − center_c) / τ_t) · log softmax_c(student_bnc / τ_s)
        loss  = mean over images b of   mean of CE_bn over masked tokens n
                                          + visible_loss_weight · mean of CE_bn over visible tokens

    and without a mask the mean over all tokens. A mean over no token is 0. The loss is computed
    with the center of the batches before. No tensor of probabilities is made.

    Values, the center and ``state_dict`` equal those of lightly 1.6.0 to float32 accuracy, with
    these differences: 16-bit logits give a float32 loss, the teacher gets no gradient, and a
    temperature below 0 is an error. When processes train together, the center is that of the tokens
    of all of them (lightly averages the processes' means).

    Args:
        output_dim: ``C``, the number of prototypes.
        teacher_temp: ``τ_t``.
        student_temp: ``τ_s``.
        center_mode: ``"mean"``, or ``"sinkhorn"``: the teacher's probabilities are the assignments
            of three Sinkhorn-Knopp iterations over its tokens, and the moving center is neither
            used nor changed.
        center_momentum: Weight of the past in the center.
        center_update: ``"now"`` or ``"deferred"``; see `IBOTPatchLoss`.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Attributes:
        center: The center, as that of `IBOTPatchLoss`.

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
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.teacher_temp = require_positive("teacher_temp", teacher_temp)
        self.student_temp = require_positive("student_temp", student_temp)
        width = require_integer("output_dim", output_dim, 0)
        self.center = Center((1, width), center_mode, center_momentum, center_update=center_update)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor | None = None,
        teacher_temp: float | None = None,
        visible_loss_weight: float = 1.0,
        *,
        update_center: bool = True,
    ) -> Tensor:
        """The loss of a batch; moves the center afterwards.

        Args:
            teacher_out: The teacher's logits of all tokens, ``[B, N, C]``, or ``[B·N, C]`` with a
                mask: float32, float16, bfloat16 or (CPU) float64. Gets no gradient.
            student_out: The student's logits, of the same shape.
            mask: bool ``[B, H, W]`` with ``H·W = N``, or ``[B, N]``; set for masked tokens.
            teacher_temp: ``τ_t`` of this batch.
            visible_loss_weight: Weight of the visible tokens beside a mask; 0 is iBOT.
            update_center: False leaves the center.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, there is no image or (without a mask) no token to take
                the mean over, or a temperature is not positive.
            TypeError: A dtype is not supported or the mask not bool.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its center.
        """
        center = self.center.center
        require_tensors(teacher_out=teacher_out, student_out=student_out, center=center)
        images, tokens = self._sizes(teacher_out, student_out, mask)
        temperature = self.teacher_temp if teacher_temp is None else teacher_temp
        require_positive("teacher_temp", temperature)
        visible_loss_weight = require_number("visible_loss_weight", visible_loss_weight)
        shares = self._shares(teacher_out, mask, images, tokens, visible_loss_weight)
        if self.reduction == "mean":
            shares = shares / max(images, 1)
        summed = self.reduction != "none"
        loss = self.center.cross_entropy(
            self._rows(student_out),
            self._rows(teacher_out),
            student_temperature=self.student_temp,
            teacher_temperature=temperature,
            update=update_center,
            weights=shares.flatten() if summed else None,
        )
        if self.reduction == "mean":
            require_images(images, "teacher_out")
        if images and mask is None:
            require_images(tokens, "the second dimension of teacher_out")
        return loss if summed else (loss.view(images, tokens) * shares.to(loss)).sum(1)

    @staticmethod
    def _rows(logits: Tensor) -> Tensor:
        """As one view, ``[1, B·N, C]``."""
        return logits.flatten(0, -2)[None]

    @staticmethod
    def _shares(
        logits: Tensor, mask: Tensor | None, images: int, tokens: int, visible: float
    ) -> Tensor:
        """What every token's cross entropy is multiplied by in its image's loss: ``[B, N]``."""
        if mask is None:
            share = torch.full((), 1 / max(tokens, 1), dtype=torch.double, device=logits.device)
            return share.expand(images, tokens)
        masked = mask.reshape(images, tokens).to(logits.device)
        counts = masked.sum(1, keepdim=True)
        of_masked = counts.clamp_min(1).double().reciprocal()
        of_visible = visible * (tokens - counts).clamp_min(1).double().reciprocal()
        return torch.where(masked, of_masked, of_visible)

    @staticmethod
    def _sizes(teacher: Tensor, student: Tensor, mask: Tensor | None) -> tuple[int, int]:
        """``B`` and ``N``; raises what `forward` says."""
        if teacher.shape != student.shape or teacher.ndim not in (2, 3):
            raise ValueError(
                "teacher_out and student_out must have one shape [B, N, C] or [B·N, C], got "
                f"{list(teacher.shape)} and {list(student.shape)}"
            )
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask is not None and mask.ndim not in (2, 3):
            raise ValueError(f"mask must have shape [B, H, W] or [B, N], got {list(mask.shape)}")
        if teacher.ndim == 3:
            images, tokens = teacher.shape[:2]
        elif mask is None:
            raise ValueError(
                f"teacher_out must have shape [B, N, C] without a mask, got {list(teacher.shape)}"
            )
        else:
            images = len(mask)
            tokens = mask.numel() // max(images, 1)
        if mask is not None and (len(mask), mask.numel()) != (images, images * tokens):
            raise ValueError(
                f"mask must have shape [{images}, H, W] with H·W = {tokens}, or "
                f"{[images, tokens]}, got {list(mask.shape)}"
            )
        if teacher.ndim == 2 and len(teacher) != images * tokens:
            raise ValueError(
                f"teacher_out must hold the {images * tokens} tokens of the mask, "
                f"got {len(teacher)}"
            )
        return images, tokens

    def extra_repr(self) -> str:
        return f"teacher_temp={self.teacher_temp}, student_temp={self.student_temp}"
