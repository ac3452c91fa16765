"""Checks of the losses' arguments and inputs, and what becomes of their results."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mast_ext.checks import require_one_device, require_positive
from mast_ext.checks import require_option as require_option

Negatives = Literal["pairs", "all_views"]
Reduction = Literal["mean", "sum", "none"]


def require_images(images: int, name: str, least: int = 1) -> None:
    """Refuses what is too small for a mean, or for a statistic over the batch.

    To be called after what processes do together, as the others would wait for one that raises.

    Args:
        images: How many there are; of all processes, if the statistic is over theirs.
        name: The argument that holds them, for the error.
        least: How many are needed.

    Raises:
        ValueError: There are fewer.
    """
    if images < least:
        raise ValueError(f"{name} must hold {least} or more images, got {images}")


def reduce(per_image: Tensor, reduction: Reduction, name: str) -> Tensor:
    """``[N]`` to what the caller of a loss asked for.

    Args:
        per_image: A loss of every image.
        reduction: What of them.
        name: The argument that holds the images, for the error.

    Raises:
        ValueError: A mean is asked for of no image. (The sum is 0.)
    """
    if reduction == "none":
        return per_image
    if reduction == "sum":
        return per_image.sum()
    require_images(per_image.numel(), name)
    return per_image.mean()


def require_tensors(**named: Tensor | Sequence[Tensor] | None) -> None:
    """Refuses what is no tensor of floating point, and tensors of several devices.

    `widen` and `torch.stack` would take integers for numbers of a network.

    Args:
        **named: The inputs of a loss by their names, for the errors; None for one left out.

    Raises:
        TypeError: One, or one of a list, is no tensor, or not of floating point.
        ValueError: One is on another device than the first.
    """
    device = getattr(next(iter(named.values())), "device", None)
    for x in named.values():
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.device == device):
            break
    else:  # the usual case, in half of the time
        return
    for name, given in named.items():
        if given is None:
            continue
        for x in given if isinstance(given, (list, tuple)) else (given,):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
            if not x.is_floating_point():
                raise TypeError(f"{name} must be floating point, got {x.dtype}")
    require_one_device(**named)


def in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of different floating-point dtypes in one that holds the numbers of all.

    Under autocast one view may come from a layer that computes in 16 bits and another from one
    that does not: bfloat16 beside float32 or float16 becomes float32. The gradient of each is in
    its own dtype. Other dtypes are left as they are, for the operators to refuse.
    """
    dtype = tensors[0].dtype
    if all(x.dtype == dtype for x in tensors):  # the usual case, in a tenth of the time
        return tensors
    if not all(x.is_floating_point() for x in tensors):
        return tensors
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in tensors)


def require_alike(**named: Tensor) -> None:
    """Compares embeddings ``[N, D]``; their names are for the error.

    Raises:
        ValueError: One has another shape, no dimension, or is on another device.
        TypeError: One is not of floating point.
    """
    require_tensors(**named)
    (first_name, first), *others = named.items()
    if first.ndim != 2 or not first.shape[1]:
        raise ValueError(
            f"{first_name} must have shape [N, D] with D >= 1, got {list(first.shape)}"
        )
    for name, view in others:
        if view.shape != first.shape:
            raise ValueError(
                f"{first_name} and {name} must have one shape [N, D], got {list(first.shape)} and "
                f"{list(view.shape)}"
            )


def require_first_call(state: str) -> None:
    """Refuses to compute a loss again in a backward pass, as activation checkpoints do.

    For losses that move a state: the first call has moved it, so that the gradient would be that of
    another loss, and it would move once more.

    Args:
        state: What the loss moves, for the error.

    Raises:
        RuntimeError: A backward pass is under way.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{state} has moved since the loss was computed, which is computed again in the "
            "backward pass: leave the loss out of activation checkpoints"
        )


def require_views(views: Tensor, name: str = "views") -> Tensor:
    """Returns ``views``.

    Raises:
        ValueError: They are not ``[V, B, D]``, or there is no view.
        TypeError: They are not of floating point.
    """
    if views.ndim != 3 or not views.shape[0]:
        raise ValueError(f"{name} must have shape [V, B, D] with V >= 1, got {list(views.shape)}")
    require_tensors(**{name: views})
    return views


def shape_of_views(views: Tensor | Sequence[Tensor], name: str) -> tuple[int, int, int]:
    """``(V, B, C)`` of a tensor ``[V, B, C]``, or of a list of ``[B, C]``.

    Raises:
        ValueError: There is no view, or they are not of one shape or on one device.
    """
    if isinstance(views, Tensor):
        if views.ndim != 3 or not views.shape[0]:
            raise ValueError(
                f"{name} must have shape [V, B, C] with V >= 1, got {list(views.shape)}"
            )
        count, batch, width = views.shape
        return count, batch, width
    shapes = [list(view.shape) for view in views]
    if not shapes or any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"{name} must hold views of one shape [B, C], at least one, got {shapes}")
    require_one_device(**{name: views})
    return len(shapes), *views[0].shape


def stack_views(views: Tensor | Sequence[Tensor], name: str) -> Tensor:
    """Views ``[V, B, C]``: a list of ``[B, C]`` is stacked, a tensor taken as it is.

    Raises:
        ValueError: There is no view, or they are not of one shape or on one device.
        TypeError: They are not of floating point.
    """
    shape_of_views(views, name)
    require_tensors(**{name: views})
    return views if isinstance(views, Tensor) else torch.stack(tuple(views))


def views_in_one_dtype(
    *groups: Tensor | Sequence[Tensor],
) -> tuple[Tensor | Sequence[Tensor], ...]:
    """As `in_one_dtype`, of tensors and of lists of them."""
    every = [x for group in groups for x in ([group] if isinstance(group, Tensor) else group)]
    if all(x.dtype == every[0].dtype for x in every):
        return groups
    alike = iter(in_one_dtype(*every))
    return tuple(
        next(alike) if isinstance(group, Tensor) else [next(alike) for _ in group]
        for group in groups
    )


def require_temperature(temperature: float, name: str = "temperature") -> float:
    """The temperature as a number; a scalar tensor with a gradient stays one, which is learned.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not positive, or not finite.
    """
    given: Any = temperature
    if isinstance(given, Tensor) and given.ndim == 0 and given.requires_grad:
        require_positive(name, given.detach())
        return temperature
    return require_positive(name, given)
