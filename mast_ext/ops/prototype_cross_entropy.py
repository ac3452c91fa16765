"""Shape-only kernels of ``mast_ext::prototype_cross_entropy``; schemas in library.cpp.

The weighted sum has none: it is made of the others (csrc/binding/composites.cpp).
"""

import torch

from mast_ext.ops.common import accumulation_dtype

op = torch.ops.mast_ext.prototype_cross_entropy.default
backward_op = torch.ops.mast_ext.prototype_cross_entropy_backward.default
weighted_op = torch.ops.mast_ext.weighted_prototype_cross_entropy.default
with_grad_op = torch.ops.mast_ext.prototype_cross_entropy_with_grad.default
with_grad_backward_op = torch.ops.mast_ext.prototype_cross_entropy_with_grad_backward.default


@torch.library.register_fake("mast_ext::prototype_cross_entropy")
def shapes(student, teacher, center, student_temperature, teacher_temperature, with_mean):
    """What the operator returns, without values."""
    students, batch, prototypes = student.shape
    teachers = teacher.shape[0]
    cross_entropy = student.new_empty(
        (teachers, students, batch), dtype=accumulation_dtype(student)
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
    return student.new_empty(student.shape)


@torch.library.register_fake("mast_ext::prototype_cross_entropy_with_grad")
def _(student, teacher, center, weights, student_temperature, teacher_temperature, with_mean):
    total = student.new_empty((), dtype=accumulation_dtype(student))
    mean = total.new_empty((student.shape[2] if with_mean else 0,))
    return total, mean, student.new_empty(student.shape)


@torch.library.register_fake("mast_ext::prototype_cross_entropy_with_grad_backward")
def _(grad, grad_student):
    return grad_student.new_empty(grad_student.shape)
