"""Public names say what they are, by themselves or by what they override."""

import importlib
import inspect

import pytest

MODULES = ["functional", "losses", "augment", "data", "models", "methods"]


def public_names(module):
    """Those in ``__all__``, or else those imported ``as`` themselves: of other modules of ours."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [name for name in vars(module) if not name.startswith("_")]


NAMES = [
    pytest.param(module, name, id=f"{module}.{name}")
    for module in MODULES
    for name in public_names(importlib.import_module(f"mast_ext.{module}"))
]


def public_methods(kind):
    for name, member in vars(kind).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
        ):
            yield name


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_public_names_have_docstrings(module, name):
    value = getattr(importlib.import_module(f"mast_ext.{module}"), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # data: described beside it
    assert value.__doc__, f"{name} has no docstring"
    if not inspect.isclass(value):
        return
    for method in public_methods(value):
        found = getattr(value, method)
        # A loss's `forward` does not do with that of torch.nn.Module.
        own = method == "forward" and module == "losses"
        text = found.__doc__ if own else inspect.getdoc(found)
        assert text, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", importlib.import_module("mast_ext.functional").__all__)
def test_functions_describe_every_argument_and_the_result(name):
    function = getattr(importlib.import_module("mast_ext.functional"), name)
    text = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in text, f"{name} does not describe {parameter}"
    assert "\nReturns:\n" in text
    assert "\nRaises:\n" in text
