"""An input on another device than the others, or than what the loss keeps, is named.

Every argument of every call of `loss_calls` is moved to the device ``meta``, which is everywhere.
"""

import inspect
import re
from collections.abc import Iterator
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


def moved(value: Any, path: tuple[int, ...]) -> Any:
    """An argument with one of its tensors on meta."""
    if not path:
        return torch.empty_like(value, device="meta")
    parts = list(value)
    parts[path[0]] = moved(parts[path[0]], path[1:])
    return tuple(parts) if isinstance(value, tuple) else parts


EACH = [
    pytest.param(name, make, call, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, (make, call) in enumerate(cases)
]


@pytest.mark.parametrize(("name", "make", "call"), EACH)
def test_each_input(name, make, call):
    x, y = inputs_of(torch.float32)
    first = FirstCall(make())
    call(first, x, y)
    if first.found is None:
        pytest.skip("has no inputs")
    method, given = first.found
    tensors = [(arg, path) for arg, value in given.arguments.items() for path in leaves(value)]
    for argument, path in tensors:
        if len(tensors) == 1 or argument in ANYWHERE.get(name, ()):
            continue
        loss = make()
        state = {key: value.clone() for key, value in loss.state_dict().items()}
        arguments = {**given.arguments, argument: moved(given.arguments[argument], path)}
        bound = inspect.BoundArguments(given.signature, arguments)
        with pytest.raises(
            ValueError, match=r"^\w+ must be on \w+( like \w+)?, got \w+$"
        ) as caught:
            getattr(loss, method)(*bound.args, **bound.kwargs)
        several = given.signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
        shown = rf"(out|z){2 + path[0]}" if several else argument
        assert re.search(rf"\b{shown}\b", str(caught.value))
        assert all(torch.equal(value, state[key]) for key, value in loss.state_dict().items())


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
