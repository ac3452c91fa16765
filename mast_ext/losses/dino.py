"""DINO (Caron et al., "Emerging Properties in Self-Supervised ViTs", ICCV 2021), as lightly's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.losses.common.center import Center, CenterMode, CenterUpdate
from mast_ext.losses.common.inputs import (
    Reduction,
    reduce,
    require_option,
    require_tensors,
    shape_of_views,
)


class DINOLoss(Center):
    r"""Cross entropy of the student's views with the teacher's other views, over prototypes::

        CE[t,s,b] = − Σ_c softmax_c((teacher_tbc − center_c) / τ_t) log softmax_c(student_sbc / τ_s)
        loss      = mean over images b and pairs t ≠ s of CE[t,s,b]

    Views are told apart by their number: the first views of the student must be those of the
    teacher, in its order (Caron et al. 2021, eq. 3; the center: eq. 4). A loss is computed with the
    center of the batches before. No tensor of probabilities is made.

    Values, the center and its place in ``state_dict`` (for which the loss is itself a `Center`)
    equal those of lightly 1.6.0 to float32 accuracy, with these differences: 16-bit logits work and
    give a float32 loss, the teacher gets no gradient, and a temperature below 0 is an error.

    When processes train together, the center and Sinkhorn-Knopp's sums are those of the global
    batch. A temperature that changes from step to step does not make torch.compile compile anew.

    Args:
        output_dim: ``C``, the number of prototypes.
        warmup_teacher_temp: ``τ_t`` of epoch 0.
        teacher_temp: ``τ_t`` after the warm-up, and where no epoch is given.
        warmup_teacher_temp_epochs: Epochs over which ``τ_t`` goes linearly from the one to the
            other.
        student_temp: ``τ_s``.
        center_momentum: Weight of the past in the center.
        center_mode: ``"mean"``, or ``"sinkhorn"``: the teacher's probabilities are the assignments
            of three Sinkhorn-Knopp iterations over all its views (Oquab et al. 2024), and the
            moving center is neither used nor changed.
        center_update: ``"now"``, or ``"deferred"`` to let the center's sum over processes overlap
            the backward pass; see `Center`. Losses and checkpoints are the same.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: A temperature is not positive, the number of epochs negative, or an option
            unknown.
    """

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: CenterMode = "mean",
        *,
        center_update: CenterUpdate = "now",
        reduction: Reduction = "mean",
    ) -> None:
        width = require_integer("output_dim", output_dim, 0)
        super().__init__((1, 1, width), center_mode, center_momentum, center_update=center_update)
        self.warmup_teacher_temp = require_positive("warmup_teacher_temp", warmup_teacher_temp)
        self.teacher_temp = require_positive("teacher_temp", teacher_temp)
        self.warmup_teacher_temp_epochs = require_number(
            "warmup_teacher_temp_epochs", warmup_teacher_temp_epochs, 0
        )
        self.student_temp = require_positive("student_temp", student_temp)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @property
    def center_momentum(self) -> float:
        """Weight of the past in the center."""
        return self.momentum

    @center_momentum.setter
    def center_momentum(self, momentum: float) -> None:
        self.momentum = momentum

    @explains_types
    def forward(
        self,
        teacher_out: Tensor | Sequence[Tensor],
        student_out: Tensor | Sequence[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
        *,
        update_center: bool = True,
    ) -> Tensor:
        """The loss of a batch; moves the center afterwards.

        Args:
            teacher_out: Logits of the teacher's views, ``[T, B, C]`` or a list of ``[B, C]``:
                float32, float16, bfloat16 or (CPU) float64. Gets no gradient.
            student_out: Logits of the student's views, ``[S, B, C]`` or a list, the teacher's
                views first. Lists of up to 32 views are not copied.
            teacher_temp: ``τ_t``; takes precedence over ``epoch``.
            epoch: Epoch from 0, by which ``τ_t`` follows its schedule.
            update_center: False leaves the center.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, no view of the student differs from one of the
                teacher, there is no image to take the mean over, a temperature is not positive, or
                the epoch is negative.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its center.
        """
        *views, images = self._require_views(teacher_out, student_out)
        terms = views[0] * views[1] - min(views)
        if not terms:
            raise ValueError(
                "DINOLoss compares different views, but teacher_out and student_out hold the same "
                "single one"
            )
        device = (student_out if isinstance(student_out, Tensor) else student_out[0]).device
        others = ~torch.eye(*views, dtype=torch.bool, device=device).unsqueeze(-1)
        summed = self.reduction != "none" and images > 0
        share = terms * (images if self.reduction == "mean" else 1)
        ce = self.cross_entropy(
            student_out,
            teacher_out,
            student_temperature=self.student_temp,
            teacher_temperature=self.teacher_temperature(teacher_temp, epoch),
            update=update_center,
            weights=others.double() / share if summed else None,
        )
        if summed:
            return ce
        return reduce(ce.where(others, 0.0).sum((0, 1)) / terms, self.reduction, "student_out")

    @explains_types
    def crop_losses(
        self,
        teacher_out: Tensor | Sequence[Tensor],
        student_out: Tensor | Sequence[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """Cross entropies of every pair of crops of every image, to choose hard ones by.

        Args:
            teacher_out: Logits of the ``G`` global crops, ``[G, B, C]`` or a list of ``[B, C]``.
            student_out: Logits of the same global and then ``L`` local crops, ``[G+L, B, C]`` or a
                list.
            teacher_temp: As in `forward`.
            epoch: As in `forward`.

        Returns:
            ``CE [G, G+L, B]``, float32 (float64 for float64 inputs), a crop with itself included.
            The center is used, and left as it is.

        Raises:
            ValueError: A shape does not fit, a temperature is not positive, or the epoch is
                negative.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        self._require_views(teacher_out, student_out)
        return self.cross_entropy(
            student_out,
            teacher_out,
            student_temperature=self.student_temp,
            teacher_temperature=self.teacher_temperature(teacher_temp, epoch),
            update=False,
        )

    @explains_types
    def update_center(self, teacher_out: Tensor) -> None:
        """Moves the center towards the mean of the teacher's logits ``[T, B, C]``."""
        self.update(teacher_out)

    def teacher_temperature(
        self, teacher_temp: float | None = None, epoch: int | None = None
    ) -> float:
        """The ``τ_t`` that `forward` takes for these arguments.

        Raises:
            ValueError: It is not positive, or the epoch is negative.
            TypeError: One of them is not a number.
        """
        if teacher_temp is not None:
            return require_positive("teacher_temp", teacher_temp)
        if epoch is None or require_number("epoch", epoch, 0) >= self.warmup_teacher_temp_epochs:
            return self.teacher_temp
        progress = epoch / max(self.warmup_teacher_temp_epochs - 1, 1)
        start = self.warmup_teacher_temp
        return start + (self.teacher_temp - start) * progress

    def _require_views(
        self, teacher_out: Tensor | Sequence[Tensor], student_out: Tensor | Sequence[Tensor]
    ) -> tuple[int, int, int]:
        """The teacher's and the student's views, and the images."""
        require_tensors(teacher_out=teacher_out, student_out=student_out, center=self.center)
        teachers, *of_teacher = shape_of_views(teacher_out, "teacher_out")
        students, *of_student = shape_of_views(student_out, "student_out")
        if of_teacher != of_student:
            raise ValueError(
                "teacher_out and student_out must hold views of one shape [B, C], got "
                f"{of_teacher} and {of_student}"
            )
        return teachers, students, of_student[0]

    def extra_repr(self) -> str:
        return (
            f"{self.size[-1]}, teacher_temp={self.teacher_temp}, student_temp={self.student_temp}, "
            f"center_momentum={self.momentum}, center_mode={self.mode!r}"
        )
