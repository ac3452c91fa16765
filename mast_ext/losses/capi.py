"""CAPI (Darcet et al., arXiv 2502.08769, 2025), a drop-in for lightly's class."""

from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_one_device, require_positive
from mast_ext.distributed import require_distributed
from mast_ext.losses.common.assignments import sinkhorn_centers
from mast_ext.losses.common.inputs import (
    Reduction,
    reduce,
    require_images,
    require_option,
    require_tensors,
)
from mast_ext.losses.common.linear_algebra import widen


class CAPILoss(nn.Module):
    r"""Predicts the clusters of hidden patches, shared out evenly at every position of the image::

        CE_bm = − Σ_k q_bnk · log softmax_k(student_bmk / student_temperature)      n: place of m
        loss  = mean over images b and predicted tokens m of CE_bm

    where at every position ``n`` by itself the assignments ``q`` are the Sinkhorn-Knopp iterates of
    ``exp(teacher / teacher_temperature)`` over the images of the batch (Darcet et al. 2025). The
    teacher gets no gradient. Beside the logits, one tensor of the student's size is made, and no
    probabilities.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the loss of
    16-bit logits is float32; no sum is increased by 1e-8, as nothing overflows here (theirs are, as
    in the authors' code, which is felt where all of an image's logits over
    ``teacher_temperature`` lie 15 or more below other images'); without iterations ``q`` is the
    softmax (theirs does not add up to 1 then); and a temperature below 0 is an error.

    Args:
        teacher_temperature: Divides the teacher's logits; above 0.
        student_temperature: Divides the student's logits; above 0.
        sinkhorn_iterations: From 0.
        gather_distributed: Shares the clusters out over the images of all processes.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: A temperature is not positive, ``sinkhorn_iterations`` negative, ``reduction``
            unknown, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        teacher_temperature: float = 0.06,
        student_temperature: float = 0.12,
        sinkhorn_iterations: int = 3,
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.teacher_temperature = require_positive("teacher_temperature", teacher_temperature)
        self.student_temperature = require_positive("student_temperature", student_temperature)
        self.sinkhorn_iterations = require_integer("sinkhorn_iterations", sinkhorn_iterations, 0)
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        teacher_index: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            teacher_logits: ``[B, N, K]`` of all ``N`` tokens of every image: float32, float16,
                bfloat16 or (CPU) float64. Get no gradient.
            student_logits: ``[B, M, K]`` of the predicted tokens.
            teacher_index: int64 ``[B, M]``, the places of the predicted tokens among the teacher's.
                ``None``: ``M = N``, in order.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, or there is no image or no predicted token to take
                the mean over.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late, or ``teacher_index`` leads out of the
                teacher's tokens (on the CPU).
        """
        require_tensors(teacher_logits=teacher_logits, student_logits=student_logits)
        self._require_shapes(teacher_logits, student_logits, teacher_index)
        require_one_device(teacher_logits=teacher_logits, teacher_index=teacher_index)
        teacher = teacher_logits.detach()
        centers = sinkhorn_centers(
            teacher.transpose(0, 1),
            temperature=self.teacher_temperature,
            iterations=self.sinkhorn_iterations,
            gather=self.gather_distributed,
        )
        if teacher_index is not None:
            every = teacher_index.unsqueeze(-1).expand(-1, -1, teacher.shape[-1])
            teacher = teacher.gather(1, every)
            centers = centers[teacher_index]
        images, tokens, _ = student_logits.shape
        weight = 1 / max(tokens * (images if self.reduction == "mean" else 1), 1)
        centered = (teacher - centers).flatten(0, 1)[None]
        student = widen(student_logits).flatten(0, 1)[None].to(centered.dtype)
        summed = self.reduction != "none"
        cross_entropy = functional.prototype_cross_entropy(
            student,
            centered,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            weights=centered.new_full((1,), weight) if summed else None,
        )
        if images:
            require_images(tokens, "the second dimension of student_logits")
        if summed:
            if self.reduction == "mean":
                require_images(images, "student_logits")
            return cross_entropy
        return reduce(cross_entropy.view(images, tokens).mean(1), self.reduction, "student_logits")

    def _require_shapes(self, teacher: Tensor, student: Tensor, index: Tensor | None) -> None:
        """Raises what `forward` says."""
        if teacher.ndim != 3:
            raise ValueError(f"teacher_logits must have shape [B, N, K], got {list(teacher.shape)}")
        images, tokens, clusters = teacher.shape
        predicted = tokens
        if index is not None:
            if index.ndim != 2 or len(index) != images:
                raise ValueError(
                    f"teacher_index must have shape [{images}, M], got {list(index.shape)}"
                )
            predicted = index.shape[1]
        if student.shape != (images, predicted, clusters):
            raise ValueError(
                f"student_logits must have shape {[images, predicted, clusters]}, "
                f"got {list(student.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"teacher_temperature={self.teacher_temperature}, "
            f"student_temperature={self.student_temperature}, "
            f"sinkhorn_iterations={self.sinkhorn_iterations}"
        )
