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
    (90, 128),  # the widest, and
    (512, 100),  # about the longest that a GPU finishes in one launch
    (300, 129),
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
    # On CUDA the weights of bfloat16 are bfloat16 as well, and so are their products.
    tolerance += torch.finfo(product.dtype).eps / 2
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
    # Standardized embeddings are multiplied in 16 bits on a GPU; C_dd averages their rounding.
    bound = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 0.1}[dtype]
    for got, want in zip(mine, truth, strict=True):
        assert (got.cpu().double() - want).norm() < bound * want.norm()


@pytest.mark.parametrize("shape", [(1300, 110), (8300, 17), (66, 2050)], ids=str)
def test_in_chunks(shape, device):
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
