"""Operators get whatever there is: they equal their definitions, or refuse it in a sentence.

Shapes of all sizes, none included, number types, memory layouts, values of any scale, and tensors
that do not fit: of other shapes, kinds, and devices.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operators import CALLS
from torch.testing import assert_close

from mast_ext import reference

DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCALES = [1.0, 1.0, 100.0, 1e-6, 0.0]

# Precisions exp(-log_var) have to be numbers of the accumulation type, and angles small enough for
# their cosines to be known.
UNSCALED = ("mean", "temperature", "log_var_x", "log_var_y", "slices")


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t


def with_gaps(t):
    return torch.stack((t, torch.full_like(t, 1)), -1)[..., 0]


def at_an_offset(t):
    return torch.cat((t.new_ones(1), t.flatten()))[1:].view(t.shape)


def repeated(t):
    """One row that stands for all, without memory of their own."""
    return t[:1].expand(t.shape) if t.dim() and len(t) else t


LAYOUTS = [lambda t: t, transposed, with_gaps, at_an_offset, repeated]

SPOILS = {  # what does not fit
    "a dimension more": lambda t: t.unsqueeze(0),
    "a dimension less": lambda t: t[0] if t.dim() and len(t) else t.sum(),
    "none": lambda t: t[..., :0] if t.dim() else t.new_zeros(0),
    "one more": lambda t: torch.cat((t, t[:1])) if t.dim() else t.expand(2),
    "whole numbers": lambda t: t.to(torch.int32),
    "bool": lambda t: t != 0,
    "complex": lambda t: t.to(torch.complex64),
    "other floats": lambda t: t.to(torch.float16 if t.dtype != torch.float16 else torch.float64),
    "no memory": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "a number": lambda t: 3.0,
    "a word": lambda t: "x",
}


@st.composite
def inputs(draw, call):
    """Tensors by name for a call, and whether they fit."""
    sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 17])
    dtype, scale = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SCALES))
    made = call.tensors(draw(sizes), draw(sizes), dtype=dtype)
    tensors = {}
    for name, tensor in made.items():
        if tensor.is_floating_point() and name not in UNSCALED:
            tensor = tensor * scale
        tensors[name] = draw(st.sampled_from(LAYOUTS))(tensor)
    spoiled = draw(st.booleans())
    if spoiled:
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = SPOILS[draw(st.sampled_from(sorted(SPOILS)))](tensors[name])
    return tensors, not spoiled


def definition(call, tensors, dtype):
    """What the definition says in a number type; None where it does not say anything."""
    function = getattr(reference, call.function.__name__)
    wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    options = {name: value for name, value in call.options.items() if name != "limit"}
    try:
        results = function(**wide, **options)
    except (ValueError, RuntimeError, IndexError):
        return None
    return results if isinstance(results, tuple) else (results,)


def assert_equals_the_definition(call, tensors, results):
    expected = definition(call, tensors, torch.float64)
    if expected is None or "limit" in call.options:
        return
    kind = next(r.dtype for r in results if r.is_floating_point())
    if call.function.__name__ == "sinkhorn_knopp":  # whose definition gives the assignments
        shifted = tensors["logits"].to(kind) - results[0]
        results = ((shifted / call.options["temperature"]).softmax(-1),)
    narrow = definition(call, tensors, torch.promote_types(kind, torch.float32))
    coarse = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors.values())
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if coarse else {"rtol": 1e-3, "atol": 1e-3}
    for mine, theirs, plain in zip(results, expected, narrow, strict=True):
        assert mine.shape == theirs.shape
        if mine.is_floating_point():
            known = theirs.isfinite() & plain.isfinite()  # nothing on the way is out of range
            assert_close(mine.double()[known], theirs[known], **tolerance)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_equals_the_definition_or_refuses_in_a_sentence(call):
    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(call))
    def check(made):
        tensors, fits = made
        torch.manual_seed(0)
        try:
            results = call(**tensors)
        except (ValueError, TypeError, RuntimeError) as error:
            assert len(str(error).split()) > 2, repr(error)
            whole = all(0 not in t.shape for t in tensors.values() if fits)
            assert not fits or not whole or min(map(len_of, tensors.values())) < 3, error
            return
        if all(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tensors.values()):
            assert_equals_the_definition(call, tensors, results)

    check()


def len_of(t):
    """The smallest size of a tensor that has one."""
    return min(t.shape[-2:], default=3)
