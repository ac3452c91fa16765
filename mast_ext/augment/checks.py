"""Checks of numbers that users pass, shared by the modules of this package."""

import math
from numbers import Integral, Real


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as an int.

    Raises:
        ValueError: It is not an integer (a bool is none), or it is out of range.
    """
    expected = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not integer or value < low or (high is not None and value > high):  # type: ignore[operator]
        raise ValueError(f"{name} must be an integer {expected}, got {value!r}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_number(name: str, value: object, low: float, high: float, expected: str) -> float:
    """The value as a float.

    Raises:
        ValueError: It is not a finite number in ``[low, high]``; the message says ``expected``.
    """
    if not is_finite(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def is_finite(value: object) -> bool:
    """Whether the value is a finite real number (a bool is none)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
