"""What the losses ask of their arguments and inputs."""

from typing import Any, Literal, get_args

from torch import Tensor

Negatives = Literal["pairs", "all_views"]
Reduction = Literal["mean", "sum", "none"]


def reduce(per_image: Tensor, reduction: Reduction) -> Tensor:
    """``[N]`` to what the caller of a loss asked for."""
    if reduction == "none":
        return per_image
    return per_image.mean() if reduction == "mean" else per_image.sum()


def require_alike(**named: Tensor) -> None:
    """Compares embeddings ``[N, D]``; their names are for the error.

    Raises:
        ValueError: One has another shape or is on another device.
    """
    (first_name, first), *_ = named.items()
    for name, view in named.items():
        if view.ndim != 2 or view.shape != first.shape:
            raise ValueError(
                f"{first_name} and {name} must have one shape [N, D], got {list(first.shape)} and "
                f"{list(view.shape)}"
            )
        if view.device != first.device:
            raise ValueError(
                f"{first_name} and {name} must be on one device, got {first.device} and "
                f"{view.device}"
            )


def require_views(views: Tensor, name: str = "views") -> Tensor:
    """Returns ``views``.

    Raises:
        ValueError: They are not ``[V, B, D]``.
    """
    if views.ndim != 3:
        raise ValueError(f"{name} must have shape [V, B, D], got {list(views.shape)}")
    return views


def require_temperature(temperature: float) -> float:
    """Returns ``temperature``.

    Raises:
        ValueError: It is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return temperature


def require_option(name: str, value: Any, options: Any) -> Any:
    """Returns ``value``.

    Raises:
        ValueError: It is not one of the literals in ``options``.
    """
    *others, last = map(repr, get_args(options))
    if value not in get_args(options):
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")
    return value
