"""Operators whose temperatures are tensors, for those that change while a compiled loop trains.

A number that is given to an operator is a constant of what torch.compile makes of a function: it
compiles anew for another one, and gives up after a few. A tensor is an input. These take numbers as
scalar tensors in float64 on the CPU, whose values are read without waiting for a GPU; apart from
that they are the operators of their names.
"""

import torch
from torch import Tensor

from mast_ext.ops import prototype_column_logsumexp as columns
from mast_ext.ops import prototype_cross_entropy as prototypes


@torch.library.custom_op("mast_ext_scheduled::prototype_cross_entropy", mutates_args=())
def prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    with_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``mast_ext::prototype_cross_entropy``."""
    numbers = student_temperature.item(), teacher_temperature.item()
    return prototypes.op(student, teacher, center, *numbers, with_mean)


@torch.library.custom_op("mast_ext_scheduled::prototype_cross_entropy_backward", mutates_args=())
def prototype_cross_entropy_backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    student_stats: Tensor,
    teacher_stats: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
) -> Tensor:
    """``mast_ext::prototype_cross_entropy_backward``."""
    saved = student, teacher, center, student_stats, teacher_stats
    numbers = student_temperature.item(), teacher_temperature.item()
    return prototypes.backward_op(grad, *saved, *numbers)


@torch.library.custom_op("mast_ext_scheduled::prototype_column_logsumexp", mutates_args=())
def prototype_column_logsumexp(
    logits: Tensor, center: Tensor | None, temperature: Tensor, normalize_rows: bool
) -> Tensor:
    """``mast_ext::prototype_column_logsumexp``."""
    return columns.op(logits, center, temperature.item(), normalize_rows)


prototype_cross_entropy.register_fake(prototypes.shapes)
prototype_cross_entropy_backward.register_fake(prototypes.backward_shapes)
prototype_column_logsumexp.register_fake(columns.shapes)


def _save(ctx, inputs, output):
    student, teacher, center, *temperatures, _ = inputs
    _, _, student_stats, teacher_stats = output
    ctx.save_for_backward(student, teacher, center, student_stats, teacher_stats, *temperatures)


def _gradients(ctx, grad, *_):
    return prototype_cross_entropy_backward(grad, *ctx.saved_tensors), *[None] * 5


prototype_cross_entropy.register_autograd(_gradients, setup_context=_save)
