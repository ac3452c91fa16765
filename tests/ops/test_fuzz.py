"""Operators get whatever there is: they equal their definitions, or refuse it in a sentence.

Shapes of all sizes, none included, number types, memory layouts, values of any scale, numbers that
are not finite, and tensors that do not fit: of other shapes, kinds, and devices. `--fuzz 50` tries
50 times as many.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from operators import CALLS, of_lists
from torch.testing import assert_close

from mast_ext import reference

DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCALES = [1.0, 1.0, 100.0, 1e-6, 0.0]
POISONS = [torch.nan, torch.inf, -torch.inf, "largest", "least"]

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
    """Tensors by name for a call, and whether they fit: yes, or spoiled, or poisoned.

    ``"yes, usual"`` are random ones of scale 1, whose gradients are not differences of large terms.
    """
    sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 17])
    dtype, scale = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SCALES))
    images, dim = draw(sizes), draw(sizes)
    usual = scale == 1 and images > 2 and dim > 2
    made = call.tensors(images, dim, dtype=dtype)
    tensors = {}
    for name, tensor in made.items():
        if tensor.is_floating_point() and name not in UNSCALED:
            tensor = tensor * scale
        layout = draw(st.sampled_from(LAYOUTS))
        usual &= layout is not repeated
        tensors[name] = layout(tensor)
    kind = draw(st.sampled_from(("yes", "yes", "spoiled", "poisoned")))
    if kind == "spoiled":
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = SPOILS[draw(st.sampled_from(sorted(SPOILS)))](tensors[name])
    elif kind == "poisoned":
        name = draw(
            st.sampled_from(sorted(n for n, t in tensors.items() if t.dtype.is_floating_point))
        )
        tensors[name] = poisoned(
            tensors[name], draw(st.sampled_from(POISONS)), draw(st.integers(0, 99))
        )
    return tensors, "yes, usual" if kind == "yes" and usual else kind


def poisoned(t, value, at):
    """A tensor with one number that nothing good comes of."""
    if isinstance(value, str):
        limits = torch.finfo(t.dtype)
        value = limits.max if value == "largest" else limits.tiny
    flat = t.flatten().clone()
    if len(flat):
        flat[at % len(flat)] = value
    return flat.view(t.shape)


def definition(call, tensors, dtype):
    """The definition in a number type: inputs, results; None where it does not say anything."""
    function = getattr(reference, call.function.__name__)
    if "lists" in call.form:
        function = of_lists(function)
    wide = {
        n: t.detach().to(dtype).requires_grad_(n in call.leaves) if t.is_floating_point() else t
        for n, t in tensors.items()
    }
    options = {name: value for name, value in call.options.items() if name != "limit"}
    try:
        results = function(**wide, **options)
    except (ValueError, RuntimeError, IndexError):
        return None
    return wide, results if isinstance(results, tuple) else (results,)


def assert_equals_the_definition(call, tensors, kind_of_inputs):
    """Values, and gradients where all agree on what is compared (which neighbor)."""
    mine = {
        n: t.detach().requires_grad_(n in call.leaves and t.is_floating_point())
        for n, t in tensors.items()
    }
    results = call(**mine)
    expected = definition(call, tensors, torch.float64)
    if expected is None or "limit" in call.options:
        return
    kind = next((r.dtype for r in results if r.is_floating_point()), torch.float32)
    if call.function.__name__ == "sinkhorn_knopp":  # whose definition gives the assignments
        shifted = tensors["logits"].to(kind) - results[0]
        results = ((shifted / call.options["temperature"]).softmax(-1),)
    plain = definition(call, tensors, torch.promote_types(kind, torch.float32))
    tolerance = 2e-2 if is_coarse(tensors) else 1e-3
    same = True
    for a, b, c in zip(results, expected[1], plain[1], strict=True):
        assert a.shape == b.shape
        if not a.is_floating_point():
            if kind_of_inputs == "yes, usual" and torch.equal(b, c):  # no tie, no rounding
                assert torch.equal(a, b)
            same &= torch.equal(a, b) and torch.equal(a, c)
            continue
        known = b.isfinite() & c.isfinite()  # nothing on the way is out of range
        if known.any():
            error = 10 * (c - b)[known].abs().max().item()  # plain torch's, as of large angles
            assert_close(a.double()[known], b[known], rtol=tolerance, atol=tolerance + error)
    if same and kind_of_inputs == "yes, usual":
        triples = zip(
            *(gradients(*pair) for pair in ((mine, results), expected, plain)), strict=True
        )
        for name, (a, b, c) in zip(call.leaves, triples, strict=True):
            known = b.isfinite() & c.isfinite()
            if a.dtype in (torch.float16, torch.bfloat16):  # which may be out of range
                known &= ~a.isinf()
            if known.any():
                a, b, c = a.double()[known], b[known], c.double()[known]
                allowed = tolerance * b.abs().max() + 10 * (c - b).abs().max() + 1e-5
                assert (a - b).abs().max() <= allowed, name


def is_coarse(tensors):
    return any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors.values())


def gradients(tensors, results):
    """Those of all leaves, for gradients of the results that are the same in every number type."""
    leaves = [t for t in tensors.values() if t.requires_grad]
    outputs = [r for r in results if r.requires_grad]
    grads = [torch.linspace(-1, 1, r.numel(), dtype=torch.float64).cos() for r in outputs]
    grads = [g.view(r.shape).to(r.dtype) for g, r in zip(grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True) if outputs else []
    zeros = map(torch.zeros_like, leaves)
    return [
        z if g is None else g for g, z in zip(found or [None] * len(leaves), zeros, strict=True)
    ]


def assert_harmless(call, tensors):
    """Whatever comes of it: of the right shapes, and no index that leads out of a tensor."""
    results, _ = call.with_gradients(tensors)
    clean, _ = call.with_gradients({n: torch.nan_to_num(t, 1, 1, 1) for n, t in tensors.items()})
    assert [r.shape for r in results] == [r.shape for r in clean]
    most = max(max(t.shape, default=1) for t in tensors.values())
    for result in results:
        assert result.is_floating_point() or ((result >= 0) & (result < most)).all()


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_equals_the_definition_or_refuses_in_a_sentence(call, fuzz):
    @seed(fuzz)
    @settings(
        max_examples=40 * fuzz,
        derandomize=fuzz == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(call))
    def check(made):
        tensors, kind = made
        torch.manual_seed(0)
        try:
            call(**tensors)
        except (ValueError, TypeError, RuntimeError) as error:
            assert len(str(error).split()) > 2, repr(error)
            fits = kind.startswith("yes") and all(0 not in t.shape for t in tensors.values())
            assert not fits or min(map(len_of, tensors.values())) < 3, error
            return
        if kind == "poisoned":
            assert_harmless(call, tensors)
        elif all(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tensors.values()):
            assert_equals_the_definition(call, tensors, kind)

    check()


def len_of(t):
    """The smallest size of a tensor that has one."""
    return min(t.shape[-2:], default=3)
