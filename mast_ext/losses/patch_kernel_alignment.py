"""Patch-level kernel alignment (PaKa, arXiv 2509.05606), a drop-in for lightly's class."""

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_integer
from mast_ext.distributed import all_reduce, require_distributed, world_size
from mast_ext.losses.common.inputs import Reduction, require_option, require_tensors
from mast_ext.losses.common.linear_algebra import gram, product, widen


class PatchKernelAlignmentLoss(nn.Module):
    r"""Aligns which patches of an image are alike to the student with those alike to the teacher::

        loss = mean over images of  1 − ⟨K_s, K_t⟩_F / (‖K_s‖_F · ‖K_t‖_F)        K = Z Zᵀ

    with ``Z [N, D]`` the tokens of an image that are not masked, less their mean: centered kernel
    alignment (Kornblith et al., ICML 2019). Squared norms below 1e-6 count as 1e-6. The teacher
    gets no gradient. Plain torch: no kernel of ours is in it.

    Up to ``N = 1.5 D`` it is computed as ``½ ‖K_s / ‖K_s‖_F − K_t / ‖K_t‖_F‖²_F``, which keeps its
    digits where student and teacher are nearly aligned. Of more tokens ``D × D`` products take
    fewer operations, as ``⟨K_s, K_t⟩ = ‖Z_sᵀ Z_t‖²_F``: of a loss near 1e-5 some thousandths are
    rounding then, and below 1e-7 it is nothing else.

    Values equal those of lightly 1.6.0 to float32 accuracy: tokens are centered before they are
    multiplied, which loses fewer digits. A GPU is not waited for.

    Args:
        max_tokens: Of more tokens, as many are drawn at random, masked ones last; at least 2.
        gather_distributed: Images count alike whatever process they are on, where the processes
            have different numbers of images with two tokens.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image, 0 for one with
            fewer than two tokens.

    Raises:
        ValueError: ``max_tokens`` is below 2, ``reduction`` unknown, or ``gather_distributed``
            without torch.distributed.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        *,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.max_tokens = None
        if max_tokens is not None:
            self.max_tokens = require_integer("max_tokens", max_tokens, 2)
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self, student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            student_features: Tokens ``[B, N, D]``: float32, float16, bfloat16 or float64.
            teacher_features: Tokens of the same places, like ``student_features``.
            mask: bool ``[B, N]``, set for tokens to leave out.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).
            The mean is over images with two or more tokens, and 0 where there is none.

        Raises:
            ValueError: A shape does not fit, or the mask is not bool (the type lightly raises).
            RuntimeError: Another process died or is late.
        """
        self._require_shapes(student_features, teacher_features, mask)
        require_tensors(student_features=student_features, teacher_features=teacher_features)
        student, teacher = student_features, teacher_features.detach()
        kept = None if mask is None else ~mask.to(student.device)
        if self.max_tokens is not None and student.shape[1] > self.max_tokens:
            student, teacher, kept = self._sample(student, teacher, kept)
        tokens = student.new_full((len(student),), student.shape[1], dtype=torch.long)
        tokens = tokens if kept is None else kept.sum(1)
        misaligned = _misalignment(*(_centered(x, kept) for x in (student, teacher)))
        per_image = misaligned * (tokens >= 2)
        if self.reduction == "none":
            return per_image
        if self.reduction == "sum":
            return per_image.sum()
        count = (tokens >= 2).sum().to(per_image.dtype)
        if self.gather_distributed:
            count = all_reduce(count) / world_size()
        # Per process the mean count may be below 1 although some process has an image.
        return per_image.sum() / count.clamp_min(1 / world_size())

    def _sample(
        self, student: Tensor, teacher: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scores = torch.rand(student.shape[:2], device=student.device)
        if kept is not None:
            scores = scores.masked_fill(~kept, torch.inf)
        chosen = scores.topk(self.max_tokens or 0, dim=1, largest=False).indices
        rows = chosen.unsqueeze(-1).expand(-1, -1, student.shape[2])
        kept = None if kept is None else kept.gather(1, chosen)
        return student.gather(1, rows), teacher.gather(1, rows), kept

    @staticmethod
    def _require_shapes(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        """Raises what `forward` says."""
        if student.ndim != 3 or student.shape != teacher.shape:
            raise ValueError(
                "student_features and teacher_features must have one shape [B, N, D], got "
                f"{list(student.shape)} and {list(teacher.shape)}"
            )
        if mask is not None and (mask.shape != student.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be bool of shape {list(student.shape[:2])}, got {mask.dtype} of "
                f"{list(mask.shape)}"
            )

    def extra_repr(self) -> str:
        return f"max_tokens={self.max_tokens}"


def _centered(x: Tensor, kept: Tensor | None) -> Tensor:
    """Tokens ``[B, N, D]`` less the mean of those that are kept; the others are 0."""
    x = widen(x)
    if kept is None:
        return x - x.sum(1, keepdim=True) / max(x.shape[1], 1)
    weights = kept.unsqueeze(-1).to(x.dtype)
    mean = (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
    return (x - mean) * weights


def _misalignment(s: Tensor, t: Tensor) -> Tensor:
    """Of centered tokens ``[B, N, D]``, by products of ``N × N`` or ``D × D``: ``[B]``."""
    small = 2 * s.shape[1] <= 3 * s.shape[2]
    kernel_s, kernel_t = (gram(z if small else z.mT) for z in (s, t))
    squares = [kernel.square().sum((1, 2)) for kernel in (kernel_s, kernel_t)]
    square_s, square_t = (square.clamp_min(1e-6) for square in squares)
    if not small:
        both = product(s.mT, t).square().sum((1, 2))
        return 1 - both / (square_s.sqrt() * square_t.sqrt())
    ratio = (square_s / square_t).sqrt()[:, None, None]
    difference = torch.addcmul(kernel_s, kernel_t, ratio, value=-1).square().sum((1, 2))
    # What clamping the norms has added; exactly 0 where none was clamped.
    missing = 2 - squares[0] / square_s - squares[1] / square_t
    return (difference / square_s + missing) / 2
