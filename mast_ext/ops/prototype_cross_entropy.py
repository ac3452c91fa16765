"""Shape-only kernels of ``mast_ext::prototype_cross_entropy``; schemas in library.cpp.

The weighted sum has none: it is made of the others (csrc/binding/composites.cpp).
"""

import torch
from torch import Tensor

from mast_ext.ops.common import accumulation_dtype, one_by_one, shape_only

# Views that the operators take as a list (kernels/common/listed_views.h).
MOST_LISTED = 32

op = torch.ops.mast_ext.prototype_cross_entropy.default
backward_op = torch.ops.mast_ext.prototype_cross_entropy_backward.default
weighted_op = torch.ops.mast_ext.weighted_prototype_cross_entropy.default
with_grad_op = torch.ops.mast_ext.prototype_cross_entropy_with_grad.default
with_grad_backward_op = torch.ops.mast_ext.prototype_cross_entropy_with_grad_backward.default


def _views(tensors: list[Tensor]) -> int:
    """How many there are: in one tensor ``[V, B, C]``, or a list of ``[B, C]``."""
    return tensors[0].shape[0] if len(tensors) == 1 else len(tensors)


def _like(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


@shape_only("mast_ext::prototype_cross_entropy")
def shapes(student, teacher, center, student_temperature, teacher_temperature, with_mean):
    """What the operator returns, without values."""
    students, teachers = _views(student), _views(teacher)
    batch, prototypes = student[0].shape[-2:]
    cross_entropy = student[0].new_empty(
        (teachers, students, batch), dtype=accumulation_dtype(student[0])
    )
    return (
        cross_entropy,
        cross_entropy.new_empty((prototypes if with_mean else 0,)),
        cross_entropy.new_empty((2, students, batch)),
        cross_entropy.new_empty((2, teachers, batch)),
    )


@torch.library.register_fake("mast_ext::prototype_cross_entropy_backward")
def backward_shapes(
    grad,
    student,
    teacher,
    center,
    student_stats,
    teacher_stats,
    student_temperature,
    teacher_temperature,
):
    """What the backward operator returns, without values."""
    return _like(student)


@shape_only("mast_ext::prototype_cross_entropy_with_grad")
def _(student, teacher, center, weights, student_temperature, teacher_temperature, with_mean):
    total = student[0].new_empty((), dtype=accumulation_dtype(student[0]))
    mean = total.new_empty((student[0].shape[-1] if with_mean else 0,))
    return total, mean, _like(student)


@torch.library.register_fake("mast_ext::prototype_cross_entropy_with_grad_backward")
def _(grad, grad_student):
    return _like(grad_student)


for each in (op, backward_op, weighted_op, with_grad_op, with_grad_backward_op):
    torch.library.register_vmap(each, one_by_one(each))
