"""Operators inside of the transforms of torch.func, and under forward-mode differentiation."""

import re

import pytest
import torch
from operators import CALLS
from torch.autograd import forward_ad
from torch.testing import assert_close

pytestmark = pytest.mark.dispatch

CALLS = [call for call in CALLS if call.differentiable]
every_call = pytest.mark.parametrize("call", CALLS, ids=str)
# Inside of a transform weighted sums are computed in two passes: other roundings of 16 bits.
DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def name_of(call):
    return re.sub("_with_(mean|residual)$", "", call.function.__name__)


def function_of(call, tensors):
    """A number from the leaves by name; the results beside it."""

    def function(leaves):
        results = call(**tensors | leaves)
        total = sum(
            torch.where(r.isfinite(), r, 0).mul(torch.arange(1, r.numel() + 1).view(r.shape)).sum()
            for r in results
            if r.is_floating_point()
        )
        return total / 100, results

    return function


def leaves_of(call, tensors):
    return {name: tensors[name] for name in call.leaves}


def gradients(function, leaves):
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    total, _ = function(leaves)
    return dict(zip(leaves, torch.autograd.grad(total, [*leaves.values()]), strict=True))


def assert_near(mine, plain, rounding):
    assert mine.keys() == plain.keys()
    for name, want in plain.items():
        scale = max(1.0, want.abs().max().item())
        assert_close(mine[name], want, rtol=rounding, atol=rounding * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_call
def test_gradient_is_that_of_autograd(call, dtype):
    tensors = call.tensors(dtype=dtype)
    function, leaves = function_of(call, tensors), leaves_of(call, tensors)
    got, (total, results) = torch.func.grad_and_value(function, has_aux=True)(leaves)
    want_total, want_results = function(leaves)
    assert_close(total, want_total)
    for mine, plain in zip(results, want_results, strict=True):
        assert_close(mine, plain)
    assert_near(got, gradients(function, leaves), DTYPES[dtype])


@every_call
def test_gradient_of_each_leaf_alone(call):
    """The others belong to no transform."""
    tensors = call.tensors()
    function = function_of(call, tensors)
    want = gradients(function, leaves_of(call, tensors))
    for name in call.leaves:
        _, pullback, _ = torch.func.vjp(function, {name: tensors[name]}, has_aux=True)
        (got,) = pullback(torch.ones(()))
        assert_near(got, {name: want[name]}, 1e-5)


@every_call
def test_gradients_of_many(call):
    """vmap calls an operator once for each of them."""
    tensors = call.tensors()
    function, leaves = function_of(call, tensors), leaves_of(call, tensors)
    scales = (1.0, 0.9)
    many = {name: torch.stack([leaf * s for s in scales]) for name, leaf in leaves.items()}
    got, _ = torch.vmap(torch.func.grad(function, has_aux=True))(many)
    for i, scale in enumerate(scales):
        want = gradients(function, {name: leaf * scale for name, leaf in leaves.items()})
        assert_near({name: each[i] for name, each in got.items()}, want, 1e-5)


@every_call
def test_gradient_through_many(call):
    """Of all of them together: what vmap is given is not known to require a gradient."""
    tensors = call.tensors()
    function, leaves = function_of(call, tensors), leaves_of(call, tensors)
    many = {name: torch.stack([leaf, 0.9 * leaf]) for name, leaf in leaves.items()}
    got = torch.func.grad(lambda many: torch.vmap(function)(many)[0].sum())(many)
    for i, scale in enumerate((1.0, 0.9)):
        want = gradients(function, {name: leaf * scale for name, leaf in leaves.items()})
        assert_near({name: each[i] for name, each in got.items()}, want, 1e-5)


@every_call
def test_second_derivative_is_refused(call):
    if name_of(call) == "gather_views":
        pytest.skip("is linear: it has all derivatives")
    tensors = call.tensors()
    function = function_of(call, tensors)
    gradient = torch.func.grad(lambda leaves: function(leaves)[0].square())

    def total_gradient(leaves):
        return sum(each.sum() for each in gradient(leaves).values())

    leaves = leaves_of(call, tensors)
    refused = pytest.raises(RuntimeError, match=f"{name_of(call)} has no second derivative")
    with refused:
        torch.func.grad(total_gradient)(leaves)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    total = total_gradient(leaves)
    with refused:
        total.backward()


def test_second_derivative_of_what_is_linear():
    views, index = torch.randn(3, 4, 5), torch.randint(3, (2, 4))
    call = next(call for call in CALLS if name_of(call) == "gather_views")

    def cubes(views):
        return call(views=views, index=index)[0].pow(3).sum()

    got = torch.func.grad(lambda views: torch.func.grad(cubes)(views).sum())(views)
    picked = torch.zeros_like(views)
    picked.scatter_add_(0, index[..., None].expand(-1, -1, 5), torch.ones(2, 4, 5))
    assert_close(got, 6 * views * picked)


@every_call
def test_forward_mode_is_refused(call):
    """Which would otherwise be told that nothing depends on the input."""
    tensors = call.tensors()
    leaves = leaves_of(call, tensors)
    function = function_of(call, tensors)
    refused = pytest.raises(
        NotImplementedError, match=rf"{name_of(call)}(_with_grad)? has no forward-mode derivative"
    )
    with refused:
        torch.func.jvp(lambda leaves: function(leaves)[0], (leaves,), (leaves,))
    with forward_ad.dual_level(), refused:
        call(**tensors | {name: forward_ad.make_dual(t, t) for name, t in leaves.items()})


def test_compiles_whole():
    call = next(call for call in CALLS if str(call) == "contrastive_logsumexp")
    tensors = call.tensors()
    function, leaves = function_of(call, tensors), leaves_of(call, tensors)
    gradient = torch.func.grad(lambda leaves: function(leaves)[0])
    got = torch.compile(gradient, fullgraph=True, backend="aot_eager")(leaves)
    assert_near(got, gradient(leaves), 1e-5)
