"""Gram anchoring (DINOv3, Siméoni et al. 2025)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import explains_types
from mast_ext.distributed import all_gather_numbers, gather_batch, require_distributed, world_size
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_images,
    require_option,
    require_tensors,
)
from mast_ext.losses.common.linear_algebra import widen


class GramAnchoringLoss(nn.Module):
    r"""Keeps how alike the patches of an image are to each other as an earlier network had it::

        loss = mean over images of  ‖S Sᵀ − T Tᵀ‖²_F / N²

    with ``S, T [N, D]`` the normalized patch features of an image in the student and in the "Gram
    teacher", which is the student's teacher of an earlier step (Siméoni et al. 2025, "DINOv3",
    section 4.2). Only cosines count: the features themselves may turn. The teacher gets no
    gradient.

    Values equal those of the authors' code (``GramLoss``) to float32 accuracy. There, ``per_image``
    is ``img_level``, an argument of the call. The defaults are those of that class; the authors'
    settings for training leave negative cosines as they are (``remove_neg=False``). Without removal
    no ``N × N`` matrix is made where ``N > 2 D`` (see
    [`gram_difference`][mast_ext.functional.gram_difference]).

    Args:
        apply_norm: Features are normalized; else they are taken as they are.
        per_image: Patches are compared with those of the same image; else with those of all images
            of the batch, as if they were of one.
        remove_neg: Negative cosines count as 0, in student and teacher.
        remove_only_teacher_neg: Those of the teacher count as 0, and those of the student where the
            teacher's are negative, too.
        gather_distributed: The loss is that of the batch of all processes. Per image, they may
            have different numbers of images, which count alike; else they must be of equal size.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image; only per image.

    Raises:
        ValueError: Both kinds of removal are asked for, ``reduction`` is unknown or needs
            ``per_image``, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        apply_norm: bool = True,
        per_image: bool = True,
        remove_neg: bool = True,
        remove_only_teacher_neg: bool = False,
        *,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if remove_neg and remove_only_teacher_neg:
            raise ValueError("remove_neg and remove_only_teacher_neg exclude each other")
        self.apply_norm = apply_norm
        self.per_image = per_image
        self.remove_neg = remove_neg
        self.remove_only_teacher_neg = remove_only_teacher_neg
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)
        if not per_image and reduction != "mean":
            raise ValueError(f"reduction must be 'mean' unless per_image, got {reduction!r}")

    @explains_types
    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            student_features: Patch features ``[B, N, D]``: float32, float16, bfloat16 or (CPU)
                float64.
            teacher_features: Features of the same patches in the Gram teacher, like
                ``student_features``.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, there is no image to take the mean over, or the
                processes' batches differ in size where they must not.
            TypeError: The features are not of floating point.
            RuntimeError: Another process died or is late.
        """
        if student_features.ndim != 3 or 0 in student_features.shape[1:]:
            raise ValueError(
                "student_features must have shape [B, N, D] with N >= 1 and D >= 1, got "
                f"{list(student_features.shape)}"
            )
        if student_features.shape != teacher_features.shape:
            raise ValueError(
                f"teacher_features must have shape {list(student_features.shape)}, got "
                f"{list(teacher_features.shape)}"
            )
        require_tensors(student_features=student_features, teacher_features=teacher_features)
        features = in_one_dtype(student_features, teacher_features.detach())
        both = [widen(x) for x in features]
        student, teacher = (F.normalize(x, dim=2) for x in both) if self.apply_norm else both
        if self.per_image:
            return self._of_images(
                functional.gram_difference(student, teacher, remove_negative=self._removed)
            )
        if self.gather_distributed:
            student, teacher = gather_batch(student, 0), gather_batch(teacher, 0)
        require_images(len(student), "student_features")
        patches = (x.flatten(0, 1).unsqueeze(0) for x in (student, teacher))
        return functional.gram_difference(*patches, remove_negative=self._removed)[0]

    @property
    def _removed(self) -> Literal["teacher", "both"] | None:
        if self.remove_only_teacher_neg:
            return "teacher"
        return "both" if self.remove_neg else None

    def _of_images(self, per_image: Tensor) -> Tensor:
        if self.reduction != "mean" or not self.gather_distributed or world_size() == 1:
            return reduce(per_image, self.reduction, "student_features")
        images = sum(number for (number,) in all_gather_numbers((len(per_image),)))
        require_images(int(images), "student_features")
        return per_image.sum() * (world_size() / images)

    def extra_repr(self) -> str:
        return (
            f"apply_norm={self.apply_norm}, per_image={self.per_image}, "
            f"remove_neg={self.remove_neg}, "
            f"remove_only_teacher_neg={self.remove_only_teacher_neg}"
        )
