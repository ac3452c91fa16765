"""An input of another device, dtype or shape than a loss takes is named, by one type of error.

Every tensor among the arguments of every call of `loss_calls` is replaced by a wrong one. The other
device is ``meta``, which is everywhere.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from loss_calls import CASES, inputs_of, tensors_in
from torch import Tensor

# They take a mask from any device, and draw or look at numbers, which tensors of meta have not.
ANYWHERE = {
    "DetConBLoss": set[str](),
    "IBOTPlusPlusPatchLoss": {"mask"},
    "PatchKernelAlignmentLoss": {"mask"},
}
# The types that lightly raises of a wrong shape.
OF_LIGHTLY = {
    "MMCRLoss": AssertionError,
    "NegativeCosineSimilarity": RuntimeError,
    "TiCoLoss": AssertionError,
    "VICRegLoss": AssertionError,
}
# They move what they keep to the inputs.
FOLLOW = {"SIGReg", "LeJEPALoss", "LeWMLoss"}


class FirstCall:
    """Stands for a loss, and notes which of its methods is called first, and with what."""

    def __init__(self, loss):
        self.loss, self.found = loss, None

    def __call__(self, *args, **kwargs):
        return self._note("forward", *args, **kwargs)

    def __getattr__(self, name):
        value = getattr(self.loss, name)
        if not inspect.ismethod(value):
            return value
        return lambda *args, **kwargs: self._note(name, *args, **kwargs)

    def _note(self, name, *args, **kwargs):
        if self.found is None:
            given = inspect.signature(getattr(self.loss, name)).bind(*args, **kwargs)
            self.found = name, given
        return getattr(self.loss, name)(*args, **kwargs)


def leaves(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where the tensors are in an argument, which may be a list of lists of them."""
    if isinstance(value, Tensor):
        yield path
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from leaves(part, (*path, i))


def replaced(value: Any, path: tuple[int, ...], change: Callable[[Tensor], Any]) -> Any:
    """An argument with one of its tensors changed."""
    if not path:
        return change(value)
    parts = list(value)
    parts[path[0]] = replaced(parts[path[0]], path[1:], change)
    return tuple(parts) if isinstance(value, tuple) else parts


def tensors_of(given: inspect.BoundArguments) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """Every tensor among the arguments: the argument's name, where it is in it, and itself."""
    found = []
    for argument, value in given.arguments.items():
        for path in leaves(value):
            tensor = value
            for i in path:
                tensor = tensor[i]
            found.append((argument, path, tensor))
    return found


def called_with(given: inspect.BoundArguments, argument: str, value: Any) -> inspect.BoundArguments:
    return inspect.BoundArguments(given.signature, {**given.arguments, argument: value})


def shown(given: inspect.BoundArguments, argument: str, path: tuple[int, ...]) -> str:
    """How errors call an argument, as a pattern."""
    several = given.signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
    if several:
        return rf"\b(out|z){2 + path[0]}\b|\b{argument}\[{path[0]}\]"
    return rf"\b{argument}\b"


EACH = [
    pytest.param(name, make, call, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, (make, call) in enumerate(cases)
]


def first_call(make, call):
    """The method that is called first, and its arguments."""
    x, y = inputs_of(torch.float32)
    first = FirstCall(make())
    call(first, x, y)
    if first.found is None:
        pytest.skip("has no inputs")
    return first.found


@pytest.mark.parametrize(("name", "make", "call"), EACH)
def test_another_device(name, make, call):
    method, given = first_call(make, call)
    tensors = tensors_of(given)
    for argument, path, _ in tensors:
        if len(tensors) == 1 or argument in ANYWHERE.get(name, ()):
            continue
        loss = make()
        state = {key: value.clone() for key, value in loss.state_dict().items()}
        value = replaced(given.arguments[argument], path, lambda x: x.detach().to("meta"))
        bound = called_with(given, argument, value)
        with pytest.raises(
            ValueError, match=r"^\w+ must be on \w+( like \w+)?, got \w+$"
        ) as caught:
            getattr(loss, method)(*bound.args, **bound.kwargs)
        assert re.search(shown(given, argument, path), str(caught.value))
        assert all(torch.equal(value, state[key]) for key, value in loss.state_dict().items())


CHANGES = {
    "integers": lambda x: x.detach().long(),
    "bools": lambda x: x.detach() > 0,
    "complex numbers": lambda x: x.detach().to(torch.complex64),
    "an array": lambda x: x.detach().numpy(),
    "a list": lambda x: x.detach().tolist(),
    "nothing": lambda x: None,
}


NUMBERS = {"integers", "bools", "complex numbers"}


@pytest.mark.parametrize(("name", "make", "call"), EACH)
@pytest.mark.parametrize("change", CHANGES)
def test_another_type(name, make, call, change):
    method, given = first_call(make, call)
    for argument, path, tensor in tensors_of(given):
        if not tensor.is_floating_point() and change in NUMBERS:
            continue
        if change == "nothing" and given.signature.parameters[argument].default is None:
            continue
        value = replaced(given.arguments[argument], path, CHANGES[change])
        bound = called_with(given, argument, value)
        with pytest.raises(TypeError, match=r"\w+(\[\d+\])? must be ") as caught:
            getattr(make(), method)(*bound.args, **bound.kwargs)
        assert re.search(shown(given, argument, path), str(caught.value))


@pytest.mark.parametrize(("name", "make", "call"), EACH)
def test_another_shape(name, make, call):
    method, given = first_call(make, call)
    for argument, path, tensor in tensors_of(given):
        if tensor.ndim == 1:
            continue
        error = OF_LIGHTLY.get(name, ValueError) if method == "forward" else ValueError
        value = replaced(given.arguments[argument], path, lambda x: x.detach().flatten())
        bound = called_with(given, argument, value)
        with pytest.raises(error, match=r"must (have|be|hold) .*got "):
            getattr(make(), method)(*bound.args, **bound.kwargs)


@pytest.mark.parametrize("name", CASES)
def test_what_a_loss_keeps(name):
    x, y = inputs_of(torch.float32)
    for make, call in CASES[name]:
        loss = make()
        if not [*loss.parameters(), *loss.buffers()] or name in FOLLOW:
            continue
        loss.to("meta")
        try:
            result = call(loss, x, y)
        except ValueError as error:
            assert re.search(r"\w+ must be on \w+( like \w+)?, got \w+$", str(error))
        else:
            assert all(tensor.device.type in ("cpu", "meta") for tensor in tensors_in(result))


@pytest.mark.parametrize("name", ["EMPSSLLoss", "FroSSLLoss"])
def test_an_odd_view_in_a_list(name):
    make, _ = CASES[name][0]
    views = [*torch.randn(3, 8, 4), torch.empty(8, 4, device="meta")]
    with pytest.raises(ValueError, match="^z_views must be on cpu, got meta$"):
        make()(views)
