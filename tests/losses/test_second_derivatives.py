"""Derivatives of gradients, as a gradient penalty takes: right, or a clear error. And vmap."""

import pytest
import torch
from loss_calls import CASES, EACH, inputs_of, tensors_in
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mast_ext import losses
from mast_ext.losses.common import linear_algebra
from mast_ext.losses.common.linear_algebra import gram, log_determinant, product, singular_values

REFUSED = "has no second derivative: its gradient was differentiated"
# Made of nothing but functions of torch and of linear_algebra that have one.
TWICE = {
    "BarlowTwinsLoss-2",  # in chunks
    "CO2Regularizer",
    "EMPSSLLoss",
    "FroSSLLoss",
    "PatchKernelAlignmentLoss",
    "TiCoLoss",
    "VISRegLoss",
}
# Whose gradient takes for constant what depends on the inputs, which finite differences do not.
STOPPED = {"PatchKernelAlignmentLoss", "TiCoLoss", "VISRegLoss"}


double = torch.float64


def matrices(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=double, generator=generator).requires_grad_()


def gradients(make, call, inputs, create_graph=False):
    """Of a number whose gradient for every result is constant."""
    torch.manual_seed(0)
    loss = make().double()
    results = [r for r in tensors_in(call(loss, *inputs)) if r.requires_grad]
    if not results:  # a choice
        return None
    weights = torch.Generator().manual_seed(1)
    total = sum((r * torch.rand(r.shape, generator=weights)).sum() for r in results)
    return torch.autograd.grad(
        total, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def directions(seed):
    return [matrices(*x.shape, seed=seed).detach() for x in inputs_of(double)]


def leaves(step=0.0):
    return [
        (x.detach() + step * along).requires_grad_()
        for x, along in zip(inputs_of(double), directions(2), strict=True)
    ]


def weighed(grads):
    """A number whose gradient for every gradient is constant."""
    return sum((g * along).sum() for g, along in zip(grads, directions(3), strict=True))


def of_weighed(make, call, named):
    """The gradient of that number."""
    inputs = leaves()
    total = weighed(gradients(make, call, inputs, create_graph=True))
    if not total.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    if named:
        return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    total.backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


@pytest.mark.parametrize("named", [False, True], ids=["backward", "named inputs"])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_second_derivative_is_right_or_refused(make, call, named, request, monkeypatch):
    case, _, _ = request.node.callspec.id.rpartition("-")
    name, _, _ = case.partition("-")
    if (grads := gradients(make, call, leaves())) is None:
        return
    try:
        found = of_weighed(make, call, named)
    except RuntimeError as error:
        assert REFUSED in str(error)
        assert not {name, case} & TWICE
        return
    size = torch.stack([x.norm() for x in (*grads, *found)]).max()
    if name in STOPPED:
        monkeypatch.setattr(linear_algebra._Product, "apply", torch.matmul)
        monkeypatch.setattr(linear_algebra._Gram, "apply", lambda x: x @ x.mT)
        for mine, plain in zip(found, of_weighed(make, call, named), strict=True):
            assert_close(mine, plain, rtol=1e-9, atol=1e-9 * size.item())
        return
    step = 1e-5
    more, less = (weighed(gradients(make, call, leaves(sign * step))) for sign in (1, -1))
    along = sum((x * d).sum() for x, d in zip(found, directions(2), strict=True))
    assert_close(along, (more - less) / (2 * step), rtol=1e-5, atol=1e-6 * size.item())


@pytest.mark.parametrize(("make", "call"), EACH)
def test_gradient_that_may_be_differentiated_of_a_checkpoint(make, call):
    """Which is computed again in the backward pass, where what was saved is unpacked once."""

    def checkpointed(loss, *inputs):
        return checkpoint(lambda *given: call(loss, *given), *inputs, use_reentrant=False)

    def repeated(loss, *inputs):
        call(loss, *inputs)
        torch.manual_seed(0)
        return call(loss, *inputs)

    if (grads := gradients(make, call, leaves(), create_graph=True)) is None:
        return
    if not all(map(torch.equal, grads, gradients(make, repeated, leaves()))):
        pytest.skip("state that moves: computed again it is another gradient")
    for mine, plain in zip(
        gradients(make, checkpointed, leaves(), create_graph=True), grads, strict=True
    ):
        assert_close(mine, plain)


def test_names():
    assert CASES.keys() >= {name.partition("-")[0] for name in TWICE}


def positive_definite(x):
    return gram(x) + torch.eye(x.shape[-2], dtype=x.dtype)


FUNCTIONS = {
    "product": (product, (matrices(3, 4), matrices(4, 2, seed=1))),
    "product of batches": (product, (matrices(2, 3, 4), matrices(2, 4, 2, seed=1))),
    "gram": (gram, (matrices(3, 4),)),
    "gram of batches": (gram, (matrices(2, 3, 4),)),
    "log_determinant": (lambda x: log_determinant(positive_definite(x)), (matrices(2, 3, 4),)),
    "singular_values": (singular_values, (matrices(2, 3, 4),)),
    "whitening": (
        losses.Whitening2d(4, track_running_stats=False, eps=0.1).double(),
        (matrices(6, 4),),
    ),
    "whitening by averages": (losses.Whitening2d(4).double().eval(), (matrices(6, 4),)),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)
ONCE = {"singular_values", "whitening"}


@each_function
def test_derivatives_in_full(name):
    function, inputs = FUNCTIONS[name]
    assert gradcheck(function, inputs)
    if name not in ONCE:
        assert gradgradcheck(function, inputs)


def cubes(function):
    return lambda *inputs: function(*inputs).pow(3).sum()


@each_function
@pytest.mark.parametrize("of_many", [False, True], ids=["of one", "of many"])
def test_second_derivative_in_transforms(name, of_many):
    """Of a number whose gradient is constant, and of one whose is not."""
    function, inputs = FUNCTIONS[name]
    inputs = tuple(x.detach() for x in inputs)
    argnums = tuple(range(len(inputs)))
    for number in (cubes(function), lambda *inputs: function(*inputs).sum()):

        def penalty(*inputs, number=number):
            grads = torch.func.grad(number, argnums)(*inputs)
            return sum(g.square().sum() for g in grads)

        gradient = torch.func.grad(penalty, argnums)
        many = [torch.stack([x, 1.1 * x]) for x in inputs]
        call = torch.vmap(gradient) if of_many else gradient
        given = many if of_many else inputs
        if name in ONCE:
            with pytest.raises(RuntimeError, match=REFUSED):
                call(*given)
            continue
        got = call(*given)
        for i, some in enumerate(zip(*many, strict=True) if of_many else [inputs]):
            some = [x.clone().requires_grad_() for x in some]
            grads = torch.autograd.grad(number(*some), some, create_graph=True)
            total = sum(g.square().sum() for g in grads)
            want = [torch.zeros_like(x) for x in some]
            if total.requires_grad:
                want = torch.autograd.grad(total, some, allow_unused=True, materialize_grads=True)
            for mine, plain in zip(got, want, strict=True):
                assert_close(mine[i] if of_many else mine, plain)


@each_function
def test_gradients_of_many(name):
    """The values, too; and of one gradient, for many that come in."""
    function, inputs = FUNCTIONS[name]
    inputs = tuple(x.detach() for x in inputs)
    argnums = tuple(range(len(inputs)))
    gradient = torch.func.grad(cubes(function), argnums)
    many = [torch.stack([x, 1.1 * x]) for x in inputs]
    values, grads = torch.vmap(function)(*many), torch.vmap(gradient)(*many)
    for i, some in enumerate(zip(*many, strict=True)):
        assert_close(values[i], function(*some))
        for mine, plain in zip(grads, gradient(*some), strict=True):
            assert_close(mine[i], plain)
    rows = torch.func.jacrev(function, argnums)(*inputs)
    want = torch.autograd.functional.jacobian(function, inputs)
    for mine, plain in zip(rows, want, strict=True):
        assert_close(mine, plain)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "batches" not in name])
def test_compiled_transforms(name):
    """Where torch would leave out of a second derivative what a function has saved."""
    function, inputs = FUNCTIONS[name]
    inputs = tuple(x.detach() for x in inputs)
    number, argnums = cubes(function), tuple(range(len(inputs)))
    gradient = torch.func.grad(number, argnums)

    def penalty(*inputs):
        return sum(g.square().sum() for g in gradient(*inputs))

    def of_penalty(*inputs):
        return torch.func.grad(penalty, argnums)(*inputs)

    def of_many(*inputs):
        return torch.vmap(gradient)(*inputs)

    def compiled(function):
        return torch.compile(function, backend="aot_eager", fullgraph=True)

    many = [torch.stack([x, 1.1 * x]) for x in inputs]
    for call, given in ((gradient, inputs), (of_many, many)):
        for mine, plain in zip(compiled(call)(*given), call(*given), strict=True):
            assert_close(mine, plain)
    got, step = compiled(of_penalty)(*inputs), 1e-6
    along = [matrices(*x.shape, seed=5).detach() for x in inputs]
    more, less = (
        penalty(*(x + sign * step * d for x, d in zip(inputs, along, strict=True)))
        for sign in (1, -1)
    )
    total = sum((g * d).sum() for g, d in zip(got, along, strict=True))
    assert_close(total, (more - less) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ONCE])
def test_second_derivative_is_not_rounded_by_autocast(name):
    function, inputs = FUNCTIONS[name]
    found = []
    for enabled in (False, True):
        some = [x.detach().float().requires_grad_() for x in inputs]
        if isinstance(function, torch.nn.Module):
            function = function.float()
        with torch.autocast("cpu", enabled=enabled):
            grads = torch.autograd.grad(cubes(function)(*some), some, create_graph=True)
            total = sum(g.square().sum() for g in grads)
            found.append(torch.autograd.grad(total, some))
    for mine, plain in zip(*found, strict=True):
        assert torch.equal(mine, plain)


# Losses of torch's functions, without state that moves.
OF_MANY = {
    name: CASES[name]
    for name in ("EMPSSLLoss", "FroSSLLoss", "MMCRLoss", "PatchKernelAlignmentLoss", "VISRegLoss")
} | {"Whitening2d": CASES["Whitening2d"][1:], "BarlowTwinsLoss": CASES["BarlowTwinsLoss"][2:3]}


@pytest.mark.parametrize(
    ("make", "call"),
    [
        pytest.param(*case, id=f"{name}-{i}")
        for name, cases in OF_MANY.items()
        for i, case in enumerate(cases)
    ],
)
def test_losses_of_many(make, call):
    x, y = (x.detach() for x in inputs_of(double))
    loss = make().double()

    def total(x, y):
        torch.manual_seed(0)
        results = tensors_in(call(loss, x, y))
        return sum((r * torch.arange(1, r.numel() + 1).view(r.shape)).sum() for r in results)

    many = [torch.stack((x, 1.1 * x + 0.1)) for x in (x, y)]
    values = torch.vmap(total, randomness="same")(*many)
    grads = torch.vmap(torch.func.grad(total, (0, 1)), randomness="same")(*many)
    for i, some in enumerate(zip(*many, strict=True)):
        assert_close(values[i], total(*some))
        for mine, plain in zip(grads, torch.func.grad(total, (0, 1))(*some), strict=True):
            assert_close(mine[i], plain)
