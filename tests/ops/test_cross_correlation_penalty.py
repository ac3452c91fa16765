"""cross_correlation_penalty against its definition, its own gradient, and torch's rules."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# N, D
SHAPES = [
    (3, 1),  # direct
    (9, 7),
    (33, 20),
    (300, 257),
    (2, 2),  # Gram
    (4, 9),
    (17, 65),
    (40, 130),
    (261, 521),
]
FORMS = [(12, 10), (4, 31)]  # direct, Gram
VARIANTS = ["official", "paper"]
LAMBDA = 0.05


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    """Two correlated views."""
    a = torch.randn(shape, device=device) + 0.5
    b = 0.5 * a + torch.randn(shape, device=device)
    return a.to(dtype).requires_grad_(requires_grad), b.to(dtype).requires_grad_(requires_grad)


def copies(tensors, dtype, device=None):
    """Leaf copies in another dtype."""
    return tuple(t.detach().to(device or t.device, dtype).requires_grad_() for t in tensors)


def evaluate(function, inputs, variant="official"):
    penalty = function(*inputs, lambda_=LAMBDA, variant=variant)
    return penalty, *torch.autograd.grad(penalty * 3, inputs)


def error(got, truth):
    """Norm of the error, relative where the truth is above 1 (of two rows it vanishes)."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1)).item()


def compare(inputs, variant, tolerance):
    """Ours against the truth in float64, no worse than the plain version in the inputs' dtype."""
    got = evaluate(functional.cross_correlation_penalty, inputs, variant)
    exact = copies(inputs, torch.float64, "cpu")
    truth = evaluate(reference.cross_correlation_penalty, exact, variant)
    plain = evaluate(reference.cross_correlation_penalty, copies(inputs, inputs[0].dtype), variant)
    product = ops.cross_correlation_penalty.op(*inputs, LAMBDA, variant)[3]
    tolerance += torch.finfo(product.dtype).eps / 4  # bfloat16 of bfloat16 on CUDA
    assert got[0].shape == () and got[0].dtype == torch.float32
    for mine, theirs, want in zip(got, plain, truth, strict=True):
        assert mine.shape == want.shape
        assert error(mine, want) <= 1.5 * error(theirs, want) + tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, variant, device):
    compare(make_inputs(shape, device, dtype, requires_grad=True), variant, tolerance=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("noise", [0.2, 0.1])
@pytest.mark.parametrize("shape", [(512, 256), (64, 256)], ids=str)
def test_nearly_equal_views(shape, noise, dtype, device):
    """C_dd is close to 1, and its distance from 1 is what the diagonal's gradient is made of."""
    a = torch.randn(shape, device=device)
    inputs = [t.to(dtype).requires_grad_() for t in (a, a + noise * torch.randn_like(a))]
    exact = copies(inputs, torch.float64, "cpu")
    mine, truth = (  # scaled, for float16 to hold the gradient
        torch.autograd.grad(1000 * module.cross_correlation_penalty(*views, lambda_=0.0), views)
        for module, views in ((functional, inputs), (reference, exact))
    )
    # Standardised embeddings are multiplied in 16 bits on a GPU; C_dd averages their rounding.
    bound = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 0.1}[dtype]
    for got, want in zip(mine, truth, strict=True):
        assert (got.cpu().double() - want).norm() < bound * want.norm()


@pytest.mark.parametrize("shape", [(1300, 110), (8300, 17), (66, 2050)], ids=str)
def test_in_stretches(shape, device):
    """Larger than what is kept for the backward, or multiplied at once."""
    compare(make_inputs(shape, device, requires_grad=True), "official", tolerance=4e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 1), (7, 3), (3, 9)], ids=str)
def test_gradient(shape, variant):
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: functional.cross_correlation_penalty(a, b, lambda_=LAMBDA, variant=variant),
        inputs,
    )


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_only_wanted_gradients(shape, wanted, device):
    inputs = make_inputs(shape, device)
    every = copies(inputs, torch.float32)
    together = evaluate(functional.cross_correlation_penalty, every)
    inputs[wanted].requires_grad_()
    penalty = functional.cross_correlation_penalty(*inputs, lambda_=LAMBDA)
    (alone,) = torch.autograd.grad(penalty * 3, [inputs[wanted]])
    assert_close(alone, together[1 + wanted])


def test_identical_views_without_redundancy_cost_nothing(device):
    hadamard = torch.tensor([[1.0, 1], [1, -1]], device=device)
    a = torch.kron(torch.kron(hadamard, hadamard), hadamard)[:, 1:]  # orthogonal, mean 0
    assert functional.cross_correlation_penalty(a, a, lambda_=1.0).item() < 1e-8


def test_constant_dimension(device):
    a, b = make_inputs((6, 4), device)
    a[:, 1] = 3
    official = functional.cross_correlation_penalty(a, b, lambda_=LAMBDA)
    assert_close(official, reference.cross_correlation_penalty(a, b, lambda_=LAMBDA))
    assert functional.cross_correlation_penalty(a, b, lambda_=LAMBDA, variant="paper").isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_non_finite_is_not_hidden(shape, bad, device):
    a, b = make_inputs(shape, device)
    a[2, 3] = bad
    assert functional.cross_correlation_penalty(a, b, lambda_=LAMBDA).isnan()


@pytest.mark.parametrize("shape", [(300, 70), (40, 900), (1300, 600)], ids=str)
def test_same_bits_twice_and_on_any_number_of_threads(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    threads = torch.get_num_threads()
    first = evaluate(functional.cross_correlation_penalty, inputs)
    again = evaluate(functional.cross_correlation_penalty, inputs)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = evaluate(functional.cross_correlation_penalty, inputs)
    finally:
        torch.set_num_threads(threads)
    for x, y, z in zip(first, again, other, strict=True):
        assert torch.equal(x, y)
        # The matrix products are the vendor's, which may share them out otherwise.
        assert_close(x, z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.T.contiguous().T,  # D is not the dense dimension
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],  # rows wider than D
        lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].view_as(t),
        lambda t: torch.stack([t, t], 1)[:, 0],
    ],
)
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_strides(shape, layout, device):
    a, b = make_inputs(shape, device)
    a = layout(a)
    dense = a.clone(memory_format=torch.contiguous_format), b
    want = evaluate(functional.cross_correlation_penalty, copies(dense, torch.float32))
    strided = a.requires_grad_(), b.requires_grad_()
    got = evaluate(functional.cross_correlation_penalty, strided)
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", [*FORMS, (66, 2050)], ids=str)
def test_registration(shape, requires_grad, device):
    inputs = make_inputs(shape, device, torch.float32, requires_grad)
    torch.library.opcheck(ops.cross_correlation_penalty.op, (*inputs, LAMBDA, "official"))


@pytest.mark.parametrize("wanted", [(True, True), (False, True)])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_registration_of_backward(shape, wanted, device):
    inputs = make_inputs(shape, device)
    penalty, *saved = ops.cross_correlation_penalty.op(*inputs, LAMBDA, "official")
    torch.library.opcheck(
        ops.cross_correlation_penalty.backward_op,
        (torch.randn_like(penalty), *inputs, *saved, LAMBDA, "official", wanted),
    )


@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_compiles_whole(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)

    def step(a, b):
        return functional.cross_correlation_penalty(a * 2, b + 1, lambda_=LAMBDA)

    want = torch.autograd.grad(step(*inputs), inputs)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for x, y in zip(torch.autograd.grad(compiled(*inputs), inputs), want, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_autocast_leaves_the_products_alone(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    want = evaluate(functional.cross_correlation_penalty, inputs)
    with torch.autocast(device.type, torch.bfloat16):
        got = evaluate(functional.cross_correlation_penalty, inputs)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)


def test_second_derivative_is_refused(device):
    a, b = make_inputs((5, 4), device, requires_grad=True)
    penalty = functional.cross_correlation_penalty(a, b, lambda_=LAMBDA)
    (grad,) = torch.autograd.grad(penalty.square(), [a], create_graph=True)
    with pytest.raises(RuntimeError, match="cross_correlation_penalty has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message_type", "message"),
    [
        (
            {"a": torch.ones(5)},
            ValueError,
            r"a must have shape \[N, D\] with N >= 2 and D >= 1, got \[5\]",
        ),
        ({"a": torch.ones(1, 5)}, ValueError, r"with N >= 2 and D >= 1, got \[1, 5\]"),
        ({"a": torch.ones(3, 0)}, ValueError, r"with N >= 2 and D >= 1, got \[3, 0\]"),
        ({"a": torch.ones(3, 5).int()}, TypeError, "a must be float32, .* got Int"),
        ({"b": torch.ones(4, 5)}, ValueError, r"b must have shape \[3, 5\], got \[4, 5\]"),
        ({"b": torch.ones(3, 5).half()}, TypeError, "b must be Float like a, got Half"),
        ({"variant": "solo"}, ValueError, "variant must be 'official' or 'paper', got 'solo'"),
    ],
)
def test_rejects(change, message_type, message):
    inputs = {"a": torch.ones(3, 5), "b": torch.ones(3, 5), "lambda_": 1.0} | change
    with pytest.raises(message_type, match=message):
        functional.cross_correlation_penalty(**inputs)
