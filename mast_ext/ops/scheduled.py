"""Operators whose temperatures and weights are tensors, for those that change in a compiled loop.

A number that is given to an operator is a constant of what torch.compile makes of a function: it
compiles anew for another one, and gives up after a few. A tensor is an input. These take numbers as
scalar tensors in float64 on the CPU, whose values are read without waiting for a GPU; apart from
that they are the operators of their names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mast_ext.ops import cross_correlation_penalty as correlations
from mast_ext.ops import nearest_neighbor_distance as neighbors
from mast_ext.ops import prototype_column_logsumexp as columns
from mast_ext.ops import prototype_cross_entropy as prototypes
from mast_ext.ops.common import one_by_one


@torch.library.custom_op("mast_ext_scheduled::prototype_cross_entropy", mutates_args=())
def prototype_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
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
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor | None,
    student_stats: Tensor,
    teacher_stats: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
) -> list[Tensor]:
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


@torch.library.custom_op("mast_ext_scheduled::cross_correlation_penalty", mutates_args=())
def cross_correlation_penalty(
    a: Tensor, b: Tensor, lambda_: Tensor, variant: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``mast_ext::cross_correlation_penalty``."""
    return correlations.op(a, b, lambda_.item(), variant)


@torch.library.custom_op("mast_ext_scheduled::cross_correlation_penalty_backward", mutates_args=())
def cross_correlation_penalty_backward(
    grad: Tensor, saved: Sequence[Tensor], lambda_: Tensor, variant: str, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """``mast_ext::cross_correlation_penalty_backward``; ``saved`` are its tensors from ``a`` on."""
    return correlations.backward_op(grad, *saved, lambda_.item(), variant, wanted)


@torch.library.custom_op("mast_ext_scheduled::nearest_neighbor_distance", mutates_args=())
def nearest_neighbor_distance(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """``mast_ext::nearest_neighbor_distance``."""
    return neighbors.op(x, eps.item())


@torch.library.custom_op("mast_ext_scheduled::nearest_neighbor_distance_backward", mutates_args=())
def nearest_neighbor_distance_backward(
    grad: Tensor, x: Tensor, distance: Tensor, index: Tensor, eps: Tensor
) -> Tensor:
    """``mast_ext::nearest_neighbor_distance_backward``."""
    return neighbors.backward_op(grad, x, distance, index, eps.item())


prototype_cross_entropy.register_fake(prototypes.shapes)
prototype_cross_entropy_backward.register_fake(prototypes.backward_shapes)
prototype_column_logsumexp.register_fake(columns.shapes)
cross_correlation_penalty.register_fake(correlations.shapes)
nearest_neighbor_distance.register_fake(neighbors.shapes)
nearest_neighbor_distance_backward.register_fake(neighbors.backward_shapes)


@cross_correlation_penalty_backward.register_fake
def _(grad, saved, lambda_, variant, wanted):
    return correlations.backward_shapes(grad, *saved, lambda_, variant, wanted)


def _save(ctx, inputs, output):
    student, teacher, center, *temperatures, _ = inputs
    _, _, *stats = output
    ctx.views = len(student), len(teacher)
    ctx.save_for_backward(center, *stats, *temperatures, *student, *teacher)


def _gradients(ctx, grad, *_):
    center, *rest = ctx.saved_tensors
    others, views = rest[:4], rest[4:]
    students, teachers = ctx.views
    student, teacher = views[:students], views[students:]
    grads = prototype_cross_entropy_backward(grad, student, teacher, center, *others)
    return grads, [None] * teachers, *[None] * 4


prototype_cross_entropy.register_autograd(_gradients, setup_context=_save)
for operator in (prototype_cross_entropy, prototype_cross_entropy_backward):
    operator.register_vmap(one_by_one(operator))


def _save_correlations(ctx, inputs, output):
    a, b, lambda_, ctx.variant = inputs
    ctx.save_for_backward(a, b, *output[1:], lambda_)


def _gradients_of_correlations(ctx, grad, *_):
    *saved, lambda_ = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    grads = cross_correlation_penalty_backward(grad, saved, lambda_, ctx.variant, wanted)
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None


cross_correlation_penalty.register_autograd(
    _gradients_of_correlations, setup_context=_save_correlations
)


def _save_neighbors(ctx, inputs, output):
    x, eps = inputs
    ctx.save_for_backward(x, *output, eps)


def _gradient_of_neighbors(ctx, grad, _):
    return nearest_neighbor_distance_backward(grad, *ctx.saved_tensors), None


nearest_neighbor_distance.register_autograd(_gradient_of_neighbors, setup_context=_save_neighbors)
