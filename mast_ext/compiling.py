"""What torch.compile must leave alone, takes as an input, or may not make a second time.

And `Function`, for derivatives in Python.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def changes_between_calls(number: float) -> bool:
    """Whether torch.compile makes a program for any value of a number, not for this one alone.

    So it does with one that it has seen to change. The operators take constants.
    """
    if not torch.compiler.is_compiling() or not isinstance(number, (int, float)):
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # part of the compiler

    return not has_static_value(number)


def out_of_inference(x: Tensor) -> Tensor:
    """``x``, or a copy of what was made under `torch.inference_mode`.

    Autograd cannot keep such a tensor for a backward pass, and nothing outside of that mode can
    change it in place. Compilers cannot ask for it.
    """
    if torch.compiler.is_compiling() or not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()


def copy_of_state(x: Tensor) -> Tensor:
    """A copy for the backward pass of a buffer that then changes in place.

    Compilers make an ordinary copy once more in the backward pass rather than keep it, of a buffer
    that has changed by then (torch 2.11).
    """
    return _copy_of_state(x) if torch.compiler.is_compiling() else x.clone()


@torch.library.custom_op("mast_ext_compiled::copy_of_state", mutates_args=())
def _copy_of_state(x: Tensor) -> Tensor:
    return x.clone()


@_copy_of_state.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Function(torch.autograd.Function):
    """`torch.autograd.Function` with ``setup_context``, as torch.func needs it, at less cost.

    torch binds the arguments of every call to the signature of ``forward``, and inspects that anew
    unless it is written down, which takes longer than a small product.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keeps nothing for the backward pass, unless a function says otherwise."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def compiles_transform() -> bool:
    """Whether torch.compile traces a transform of torch.func.

    There a `Function` cannot be in vmap, and a derivative of its gradient leaves out, silently,
    what the gradient owes to the inputs (torch 2.11): a program has to do without it.
    """
    return torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def differentiable_once(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Of the backward of a `Function`: that differentiating its gradients again is an error.

    torch's ``once_differentiable`` refuses only the derivative with respect to what comes in. With
    respect to the inputs of the function, whose gradients would be constants, that would be zero.

    Args:
        name: Of whom the error speaks.

    Returns:
        A decorator of a backward that has saved an input or a differentiable output.
    """

    def decorate(backward: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(backward)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if not torch.is_grad_enabled():
                return backward(*args, **kwargs)
            ctx, *grads = args
            context: Any = _Context(ctx)
            with torch.no_grad():
                found = cast(Any, backward)(context, *grads, **kwargs)
            depends_on = (*grads, *context.saved_tensors)
            if isinstance(found, tuple):
                return cast(T, tuple(_constant(name, each, depends_on) for each in found))
            return cast(T, _constant(name, found, depends_on))

        return checked

    return decorate


class _Context:
    """A function's context that has unpacked what was saved: checkpoints let it be done once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _constant(name: str, gradient: Tensor | None, depends_on: tuple[Any, ...]) -> Tensor | None:
    return None if gradient is None else _NoSecondDerivative.apply(name, gradient, *depends_on)


class _NoSecondDerivative(Function):
    """A gradient, to autograd a function of what it depends on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, gradient: Tensor, *depends_on: Any) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(f"{ctx.name} has no second derivative: its gradient was differentiated")


def never_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compiler.disable`, which loads the compiler when something is compiled, not before.

    Loading it takes more than half as long as `import torch`.
    """
    disabled = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (disabled if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call
