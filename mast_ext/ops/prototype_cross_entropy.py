"""Shape-only kernel and gradient of ``prototype_cross_entropy``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, refuse_second_derivative

op = torch.ops.mast_ext.prototype_cross_entropy.default
backward_op = torch.ops.mast_ext.prototype_cross_entropy_backward.default


@torch.library.register_fake("mast_ext::prototype_cross_entropy")
def _(student, teacher, center, student_temperature, teacher_temperature, with_mean):
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
def _(
    grad,
    student,
    teacher,
    center,
    student_stats,
    teacher_stats,
    student_temperature,
    teacher_temperature,
):
    return student.new_empty(student.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.student_temperature, ctx.teacher_temperature, _with_mean = inputs
    _, *rest = output
    ctx.save_for_backward(*tensors, *rest[1:])
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    if grad is None or not ctx.needs_input_grad[0]:
        return (None,) * 6
    temperatures = ctx.student_temperature, ctx.teacher_temperature
    return backward_op(grad, *ctx.saved_tensors, *temperatures), *(None,) * 5


torch.library.register_autograd(
    "mast_ext::prototype_cross_entropy", _backward, setup_context=_setup_context
)
refuse_second_derivative("prototype_cross_entropy")
