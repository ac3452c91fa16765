"""Shape-only kernels and gradients of ``prototype_cross_entropy``; schemas in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, refuse_second_derivative

# Images that the weighted sum shares out among threads; fewer are quicker in two passes.
WEIGHTED_IMAGES = 16

op = torch.ops.mast_ext.prototype_cross_entropy.default
backward_op = torch.ops.mast_ext.prototype_cross_entropy_backward.default
weighted_op = torch.ops.mast_ext.weighted_prototype_cross_entropy.default
weighted_backward_op = torch.ops.mast_ext.weighted_prototype_cross_entropy_backward.default


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


@torch.library.register_fake("mast_ext::weighted_prototype_cross_entropy")
def _(student, teacher, center, weights, student_temperature, teacher_temperature, with_mean):
    total = student.new_empty((), dtype=accumulation_dtype(student))
    mean = total.new_empty((student.shape[2] if with_mean else 0,))
    return total, mean, student.new_empty(student.shape)


@torch.library.register_fake("mast_ext::weighted_prototype_cross_entropy_backward")
def _(grad, grad_student):
    return grad_student.new_empty(grad_student.shape)


def _setup_context_weighted(ctx, inputs, output):
    _, mean, grad_student = output
    ctx.save_for_backward(grad_student)
    ctx.mark_non_differentiable(mean, grad_student)
    ctx.set_materialize_grads(False)


def _backward_weighted(ctx, grad, *_):
    if grad is None or not ctx.needs_input_grad[0]:
        return (None,) * 7
    (grad_student,) = ctx.saved_tensors
    # A loss that is differentiated itself has the gradient 1: then there is nothing left to do.
    if type(grad) is not torch.Tensor or grad.requires_grad or grad.item() != 1:
        grad_student = weighted_backward_op(grad, grad_student)
    return grad_student, *(None,) * 6


torch.library.register_autograd(
    "mast_ext::weighted_prototype_cross_entropy",
    _backward_weighted,
    setup_context=_setup_context_weighted,
)
refuse_second_derivative("weighted_prototype_cross_entropy")
