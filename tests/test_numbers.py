"""Options that are given what is no number, or NaN, say so and are named: whatever has options.

Signatures and annotations are walked over, so that no new class or function is left out.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mast_ext import augment, functional, losses, methods
from mast_ext.train import config

NAN = float("nan")
NO_NUMBERS = {
    "string": "0.5",
    "None": None,
    "complex": 1j,
    "bool": True,
    "two elements": torch.ones(2),
    "learned": torch.tensor(1.0, requires_grad=True),
    "list": [0.5, "a"],
    "object": object(),
}
# Losses: arguments that have no default.
REQUIRED: dict[str, dict[str, Any]] = {
    "AugmentationMasks": {"freed": (0.3, 0.0), "dim": 8},
    "MASTLoss": {"masks": losses.AugmentationMasks((0.3, 0.0), 8)},
    "PMSNCustomLoss": {"target_distribution": torch.square},
    "Whitening2d": {"num_features": 4},
}
# What takes a number by another name: `LeJEPALoss(sigreg_knots=...)` is `SIGReg(knots=...)`.
PREFIXES = ("sigreg_",)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


VIEW, VIEWS = ones(3, 5), ones(2, 3, 5)
LOGITS = {"student": VIEWS, "teacher": VIEWS}
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}
# Functions: arguments that have no default, or without which an option is not looked at.
CALLS: dict[str, dict[str, Any]] = {
    "budgeted_masks": {"mask_logits": VIEW, "mean": ones(3) / 2},
    "contrastive_loss": {"views": VIEWS, "temperature": 0.1},
    "contrastive_logsumexp": {"x": VIEWS, "temperature": 0.1},
    "cross_correlation_penalty": {"a": VIEW, "b": VIEW, "lambda_": 0.1},
    "epps_pulley_distance": {
        **{"sums": ones(2, 4, 2, 3), "images": 3},
        **{"phi": ones(4), "weights": ones(4)},
    },
    "epps_pulley_grid": {"knots": 17, "t_max": 3.0},
    "grouped_squared_difference": {
        **{"x": VIEW, "y": VIEW, "group": ones(3, dtype=torch.int64), "groups": 2},
    },
    "nearest_neighbor_distance": {"x": VIEW},
    "prototype_column_logsumexp": {"logits": VIEW, "temperature": 0.1},
    "prototype_cross_entropy": LOGITS | TEMPERATURES,
    "prototype_cross_entropy_with_mean": LOGITS | TEMPERATURES,
    "select_hard_cosine_pairs": {"x": VIEWS},
    "select_hard_crops": {"ce": ones(2, 4, 3), "num_locals": 1},
    "sigmoid_contrast": {"x": VIEW, "y": VIEW, "scale": 1.0, "bias": 0.0},
    "sinkhorn_knopp": {"logits": VIEW, "temperature": 0.1},
    "sliced_characteristic_distance": {"z": VIEWS, "slices": ones(5, 4)},
    "sliced_characteristic_sums": {"z": VIEWS, "slices": ones(5, 4)},
    "subspace_similarity": {"x": VIEWS},
    "variance_covariance": {"z": VIEWS},
    "vicreg_terms": {"x": VIEW, "y": VIEW, "scales": (1.0,) * 3, "weights": (1.0,) * 3},
    "weighted_terms": {"first": ones(4), "scales": (1.0,), "weights": (1.0,)},
}
RECIPE = augment.AugmentationRecipe()
SHARED = {"hue": augment.Sharing()}
# Views: what has options, and arguments that have no default.
OF_VIEWS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "AugmentationRecipe": (augment.AugmentationRecipe, {}),
    "BlockMasks": (augment.BlockMasks, {"grid": (4, 4)}),
    "ComposedPolicy": (augment.ComposedPolicy, {"recipe": RECIPE}),
    "MultiCropPolicy": (augment.MultiCropPolicy, {"recipe": RECIPE}),
    "SharedPolicy": (
        augment.SharedPolicy,
        {"recipe": RECIPE, "shared": SHARED},
    ),
    "Sharing": (augment.Sharing, {}),
}
OPTIONS: list[type[Any]] = [
    *(methods.METHODS[name].Options for name in methods.METHODS),
    *(methods.EquiModOptions, methods.HardViewOptions),
]
SETTINGS: list[type[Any]] = [
    kind
    for name, kind in vars(config).items()
    if name.endswith("Config") and isinstance(kind, type) and dataclasses.is_dataclass(kind)
]


def kinds(annotation: Any) -> set[type]:
    """Of which kinds of numbers an annotation is."""
    if annotation in (int, float):
        return {annotation}
    if typing.get_origin(annotation) is Literal:
        return set()
    return {kind for part in typing.get_args(annotation) for kind in kinds(part)}


def takes(annotation: Any, value: Any) -> bool:
    """Whether a value that is no number is one that the annotation allows."""
    parts = {annotation, *typing.get_args(annotation)}
    scalar = isinstance(value, torch.Tensor) and value.ndim == 0
    vector = isinstance(value, torch.Tensor) and value.ndim == 1
    lists = any(typing.get_origin(part) is not None for part in parts)
    return (
        (value is None and type(None) in parts)
        or (isinstance(value, str) and str in parts)
        or (scalar and torch.Tensor in parts)
        or (vector and lists)
    )


def options_of(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Names and annotations of the numbers that a function, or a class, takes."""
    called = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(called)
    for name in inspect.signature(function).parameters:
        if kinds(hints.get(name)):
            yield name, hints[name]


def rows(name: str, function: Callable[..., Any], given: dict[str, Any]) -> Iterator[Any]:
    for option, annotation in options_of(function):
        yield pytest.param(function, given, option, annotation, id=f"{name}-{option}")


ROWS = [
    *(
        row
        for name in losses.__all__
        if issubclass(getattr(losses, name), torch.nn.Module)
        for row in rows(name, getattr(losses, name), REQUIRED.get(name, {}))
    ),
    *(
        row
        for name in functional.__all__
        for row in rows(name, getattr(functional, name), CALLS.get(name, {}))
    ),
    *(row for name, each in OF_VIEWS.items() for row in rows(name, *each)),
    *(row for each in (*OPTIONS, *SETTINGS) for row in rows(each.__name__, each, {})),
]
each_option = pytest.mark.parametrize(("function", "given", "option", "annotation"), ROWS)


@each_option
def test_what_is_no_number_is_refused(function, given, option, annotation):
    function(**given)
    shown = next((option.removeprefix(p) for p in PREFIXES if option.startswith(p)), option)
    for kind, value in NO_NUMBERS.items():
        if takes(annotation, value) or (kind == "learned" and option == "temperature"):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"\b{shown} must ") as caught:
            function(**{**given, option: value})
        assert caught.type is TypeError, kind
    for value in (NAN, torch.tensor(NAN)):
        if takes(annotation, value):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"\b{shown} .*must .*got "):
            function(**{**given, option: value})


@each_option
def test_numbers_of_numpy_and_scalar_tensors_are_taken(function, given, option, annotation):
    parameter = inspect.signature(function).parameters[option]
    default = given.get(option, parameter.default)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return
    whole = float not in kinds(annotation)
    for kind in (np.int64, np.int32) if whole else (np.float64, np.float32):
        function(**{**given, option: kind(default)})
    function(**{**given, option: torch.tensor(default)})


@pytest.mark.parametrize("options", [*OPTIONS, *SETTINGS], ids=lambda each: each.__qualname__)
def test_names_and_switches_are_checked(options):
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if typing.get_origin(hints[field.name]) is Literal:
            with pytest.raises(ValueError, match=rf"\b{field.name} must be '.*, got 'other'"):
                options(**{field.name: "other"})
        elif hints[field.name] is bool:
            with pytest.raises(TypeError, match=rf"\b{field.name} must be True or False, got 1"):
                options(**{field.name: 1})


def test_every_method_has_options_that_check_themselves():
    for name, method in methods.METHODS.items():
        assert issubclass(method.Options, methods.MethodOptions)
        assert method.Options.group == name


def test_every_policy_is_walked_over():
    policies = {policy.__name__ for policy in augment.POLICIES.values()}
    assert policies <= OF_VIEWS.keys()
