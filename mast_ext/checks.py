"""Checks of what users pass, for all modules: options, and whether tensors are on one device.

What is no number (a string, None, a bool, a tensor of several) is a TypeError, and a number that an
option does not take (NaN, one out of range) an OptionError, which is a ValueError; both name the
option. Numbers of Python and NumPy are taken, and scalar tensors without a gradient. Compiled code
is not checked: there a number may stand for any value, and operators check theirs.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral, Number, Real
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

P = ParamSpec("P")
T = TypeVar("T")
_PLAIN = frozenset((float, int))
_INT64 = range(-(2**63), 2**63)


class OptionError(ValueError):
    """An option has a value that it does not take, or that does not fit the others.

    Programs tell it from other errors of values, which no option mends.
    """


def as_number(name: str, value: Any) -> float:
    """The value as a float, or as the int that it is; for what an operator checks the range of.

    Raises:
        TypeError: It is not a number.
        ValueError: It is an integer, or a fraction, too large for a float.
    """
    if type(value) is float or torch.compiler.is_compiling():
        return value
    return _number(name, value, Real, "a number")


def as_integer(name: str, value: Any) -> int:
    """The value as an int of 64 bits; for what an operator checks the range of.

    Raises:
        TypeError: It is not an integer (2.0 is none).
        ValueError: It has more than 64 bits.
    """
    if torch.compiler.is_compiling() or (type(value) is int and value in _INT64):
        return value
    number = _integer(name, value)
    if isinstance(number, int) and number not in _INT64:
        raise OptionError(f"{name} must fit into 64 bits, got {_described(number)}")
    return number


def require_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    expected: str | None = None,
) -> float:
    """The value as a float, or as the int that it is.

    Args:
        name: The option, for the error.
        value: What it was given.
        low: The least that it takes.
        high: The most.
        expected: What it takes, in other words than these two.

    Raises:
        TypeError: It is not a number.
        ValueError: It is NaN, infinite, or not from ``low`` to ``high``.
    """
    if torch.compiler.is_compiling():
        return value
    number = as_number(name, value)
    if low <= number <= high and not math.isinf(number):
        return number
    if expected is None:
        expected = _range(low, high) + " and finite" * (low > -math.inf and math.isinf(number))
    raise OptionError(f"{name} must be {expected}, got {number}")


def require_positive(name: str, value: Any, *, finite: bool = True) -> float:
    """Like `require_number`, for numbers above 0; ``finite=False`` allows infinity."""
    if torch.compiler.is_compiling():
        return value
    number = as_number(name, value)
    if not number > 0:
        raise OptionError(f"{name} must be positive, got {number}")
    if finite and math.isinf(number):
        raise OptionError(f"{name} must be positive and finite, got {number}")
    return number


def require_integer(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> int:
    """The value as an int.

    Args:
        name: The option, for the error.
        value: What it was given.
        low: The least that it takes.
        high: The most.

    Raises:
        TypeError: It is not an integer (2.0 is none).
        ValueError: It is not from ``low`` to ``high``.
    """
    if torch.compiler.is_compiling():
        return value
    number = _integer(name, value)
    if not low <= number <= high:
        raise OptionError(f"{name} must be {_range(low, high)}, got {number}")
    return number


def require_numbers(name: str, values: Any, count: int | None = None) -> tuple[float, ...]:
    """Several finite numbers, from a list, a tuple or an array of one dimension.

    Args:
        name: The option, for the error.
        values: What it was given.
        count: How many it takes, or any number.

    Raises:
        TypeError: They are not listed, or one is not a number.
        ValueError: One is not finite, or they are not ``count``.
    """
    if torch.compiler.is_compiling():
        return tuple(values)
    plain = type(values) is tuple and _PLAIN.issuperset(map(type, values))
    try:
        usual = plain and math.isfinite(sum(values))  # the usual case, in a tenth of the time
    except OverflowError:  # of an integer too large for a float
        usual = False
    if usual:
        numbers = values
    else:
        numbers = tuple(require_number(name, value) for value in _listed(name, values))
    if count is not None and len(numbers) != count:
        raise OptionError(f"{name} must be {count} numbers, got {len(numbers)}")
    return numbers


def require_range(
    name: str, values: Any, most: float = math.inf, *, from_zero: bool = False
) -> tuple[float, float]:
    """A range ``(low, high)`` of finite numbers above 0, or from 0 on, up to ``most``.

    Raises:
        TypeError: They are not listed, or one is not a number.
        ValueError: They are not two, not in order, or out of range.
    """
    low, high = numbers = require_numbers(name, values, 2)
    if not (low >= 0 if from_zero else low > 0) or not low <= high <= most:
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise OptionError(
            f"{name} must be (low, high) with 0 {'<=' if from_zero else '<'} low <= high{limit},"
            f" got {numbers}"
        )
    return float(low), float(high)


def require_integers(
    name: str, values: Any, count: int | None = None, *, low: float = -math.inf
) -> tuple[int, ...]:
    """Like `require_numbers`, for integers of at least ``low``."""
    if torch.compiler.is_compiling():
        return tuple(values)
    integers = tuple(require_integer(name, value, low) for value in _listed(name, values))
    if count is not None and len(integers) != count:
        raise OptionError(f"{name} must be {count} integers, got {len(integers)}")
    return integers


def require_option(name: str, value: Any, options: Any) -> Any:
    """Returns ``value``.

    Raises:
        ValueError: It is not one of the literals in ``options``.
    """
    *others, last = map(repr, get_args(options))
    if value not in get_args(options):
        raise OptionError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")
    return value


def _listed(name: str, values: Any) -> list[Any]:
    """The elements of a list, a tuple or an array; a TypeError of what is none of these."""
    if getattr(values, "ndim", 0) == 1:  # of NumPy or torch
        return list(values.tolist())
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return list(values)
    raise TypeError(f"{name} must be a list or tuple of numbers, got {_described(values)}")


def require_one_device(**named: Any) -> None:
    """Compares tensors, and lists of them; their names are for the error. Others are left out.

    Raises:
        ValueError: One is on another device than the first.
    """
    first: Tensor | None = None
    for name, value in named.items():
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(tensor, Tensor):
                continue
            if first is None:
                first, first_name = tensor, name
            elif tensor.device != first.device:
                like = "" if name == first_name else f" like {first_name}"
                raise ValueError(f"{name} must be on {first.device}{like}, got {tensor.device}")


def explains_types(
    function: Callable[P, T], *, out_of_inference: Callable[[Tensor], Tensor] | None = None
) -> Callable[P, T]:
    """Decorator: where a call fails because an argument is no tensor, its error says so.

    Nothing is looked at before: what PyTorch's dispatcher or an attribute's lookup says of such an
    argument is put in words afterwards, by the annotations.

    Args:
        function: What takes tensors.
        out_of_inference: Of a function that changes nothing: where autograd would have to keep a
            tensor that was made under `torch.inference_mode`, it is called once more, with what
            this makes of its tensors.

    Raises:
        TypeError: An argument has another type than its annotation, and the call failed.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            if out_of_inference is not None and "Inference tensors" in str(error):
                copies, options = tree_map_only(Tensor, out_of_inference, (args, kwargs))
                return function(*copies, **options)
            if not isinstance(error, torch.OutOfMemoryError) and (
                told := _first_misfit(function, args, kwargs)
            ):
                raise TypeError(told) from error
            raise

    # Code of its own, since torch.compile keeps only a few programs for a piece of code.
    call.__code__ = call.__code__.replace(co_name=function.__name__)
    return functools.wraps(function)(call)


def _first_misfit(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """What is wrong with the first argument that is not as annotated; empty if there is none."""
    signature, hints = inspect.signature(function), get_type_hints(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # an argument too many or too few, which the call itself says best
        return ""
    for name, value in given.items():
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        every = {f"{name}[{i}]": x for i, x in enumerate(value)} if several else {name: value}
        for each, x in every.items():
            if told := _misfit(each, x, hints.get(name)):
                return told
    return ""


def _misfit(name: str, value: Any, kind: Any) -> str:
    """What is wrong with an argument that shall be a tensor, a list of them, a name or a switch.

    Empty if nothing is, and of other annotations.
    """
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if bool in parts:
        taken = "" if isinstance(value, bool) else "True or False"
    elif get_origin(kind) is Literal:
        taken = "" if isinstance(value, str) else "a string"
    else:
        lists = any(get_args(part) == (Tensor,) for part in parts)
        if not (Tensor in parts or lists) or (value is None and NoneType in parts):
            return ""
        if isinstance(value, Tensor) or (float in parts and isinstance(value, Real)):
            return ""
        if lists and isinstance(value, Sequence) and not isinstance(value, str):
            wrong = ((i, x) for i, x in enumerate(value) if not isinstance(x, Tensor))
            return next(
                (f"{name}[{i}] must be a tensor, got {_described(x)}" for i, x in wrong), ""
            )
        names = {
            "a tensor": Tensor in parts,
            "a number": float in parts,
            "a list of tensors": lists,
        }
        taken = " or ".join(name for name, fits in names.items() if fits)
    return f"{name} must be {taken}, got {_described(value)}" if taken else ""


def require_field_types(settings: Any, prefix: str = "") -> None:
    """Checks fields of a frozen dataclass against their annotations.

    Numbers, bools, strings, literals, tuples of numbers, and unions of these with None or strings;
    others are left alone. NumPy's numbers become Python's, and a list of numbers becomes a tuple.

    Args:
        settings: The dataclass.
        prefix: What comes before a field's name in errors.

    Raises:
        TypeError: A field has another type than its annotation.
        ValueError: A number is NaN, a literal is none of those that there are, or a tuple has
            another length.
    """
    hints = _hints(type(settings))  # type: ignore[arg-type]
    for field in fields(settings):
        value = getattr(settings, field.name)
        taken = _as_annotated(prefix + field.name, value, hints[field.name])
        if taken is not value:
            object.__setattr__(settings, field.name, taken)


@functools.cache
def _hints(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def _as_annotated(name: str, value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is float:
        number = as_number(name, value)
        if math.isnan(number):
            raise OptionError(f"{name} must be a number, got {number}")
        return number
    if kind is int:
        return _integer(name, value)
    if kind is str:
        if isinstance(value, PathLike):
            value = fspath(value)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {_described(value)}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {_described(value)}")
        return value
    if origin is Literal:
        return require_option(name, value, kind)
    if origin in (Union, UnionType):
        if isinstance(value, tuple(part for part in parts if part in (NoneType, str))):
            return value
        others = [part for part in parts if part not in (NoneType, str)] or [str]
        of_lists = [part for part in others if get_origin(part) is tuple]
        many = of_lists and not isinstance(value, (Number, Tensor, NoneType))
        return _as_annotated(name, value, of_lists[0] if many else others[-1])
    if origin is tuple and parts[0] in (int, float):
        values = _listed(name, value)
        count = None if parts[-1] is Ellipsis else len(parts)
        if count not in (None, len(values)):
            raise OptionError(f"{name} must be {count} numbers, got {value!r}")
        return tuple(_as_annotated(name, each, parts[0]) for each in values)
    return value


def _integer(name: str, value: Any) -> int:
    return value if type(value) is int else _number(name, value, Integral, "an integer")


def _number(name: str, value: Any, kind: type, what: str) -> Any:
    """A Python number from one of a kind; what is made of symbols stands for one."""
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value
    number = value
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad:
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, kind):
        raise TypeError(f"{name} must be {what}, got {_described(value)}")
    if kind is Integral:
        return int(number)  # type: ignore[call-overload]
    try:
        as_float = float(number)  # type: ignore[arg-type]
    except OverflowError:
        raise OptionError(
            f"{name} must fit into a float of 64 bits, got {_described(number)}"
        ) from None
    return int(number) if isinstance(number, Integral) else as_float


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        grad = " that requires a gradient" if value.requires_grad else ""
        return f"a tensor of shape {list(value.shape)}{grad}"
    text = repr(value)
    return text if len(text) <= 60 else f"a value of type {type(value).__name__}"


def _range(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return "from {} to {}".format(*(n if isinstance(n, int) else f"{n:g}" for n in (low, high)))
    if math.isfinite(low):
        return f"at least {low:g}"
    if math.isfinite(high):
        return f"at most {high if isinstance(high, int) else f'{high:g}'}"
    return "a finite number"
