"""variance_covariance against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# V, N, D, K (None: no masks)
SHAPES = [
    (1, 2, 1, None),
    (0, 3, 4, 2),
    (2, 3, 5, 0),
    (2, 5, 3, 3),  # direct
    (3, 33, 7, None),
    (2, 70, 65, 6),
    (2, 300, 257, None),
    (2, 4, 9, None),  # Gram
    (1, 3, 20, 2),
    (2, 2, 64, 5),
    (1, 17, 33, 1),
    (3, 40, 130, 1),
    (2, 9, 257, None),
    (1, 261, 521, None),
]
FORMS = [(2, 12, 10, 3), (2, 4, 31, 3)]  # direct, Gram


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    views, rows, dim, subspaces = shape
    z = (torch.randn(views, rows, dim, device=device) + 0.5).to(dtype)
    masks = None
    if subspaces is not None:
        accumulation = torch.promote_types(dtype, torch.float32)
        masks = torch.rand(subspaces, dim, device=device, dtype=accumulation)
    return tuple(t if t is None else t.requires_grad_(requires_grad) for t in (z, masks))


def copies(tensors, dtype, device=None):
    """Leaf copies in another dtype."""
    return tuple(
        t if t is None else t.detach().to(device or t.device, dtype).requires_grad_()
        for t in tensors
    )


def evaluate(function, inputs, grads):
    """Both results and the gradients of all inputs, for gradients of the results."""
    results = function(*inputs)
    grads = [g.to(r) for g, r in zip(grads, results, strict=True)]
    return *results, *torch.autograd.grad(results, [t for t in inputs if t is not None], grads)


def error(got, truth):
    """Norm of the error, relative where the truth is not tiny."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-6)).item()


def compare(inputs, tolerance):
    """Ours against the truth in float64, no worse than the plain version in the inputs' dtype."""
    shape = (1 if inputs[1] is None else len(inputs[1]), len(inputs[0]))
    grads = torch.randn(2, *shape, device=inputs[0].device)
    got = evaluate(functional.variance_covariance, inputs, grads)
    truth = evaluate(reference.variance_covariance, copies(inputs, torch.float64, "cpu"), grads)
    plain = evaluate(reference.variance_covariance, copies(inputs, inputs[0].dtype), grads)
    product = ops.variance_covariance.op(*inputs, 1e-4)[4]  # bfloat16 of bfloat16 on CUDA
    tolerance += torch.finfo(product.dtype).eps / 4
    for mine, theirs, want in zip(got, plain, truth, strict=True):
        assert mine.shape == want.shape
        assert error(mine, want) <= 1.5 * error(theirs, want) + tolerance
    assert got[0].dtype == got[1].dtype == torch.float32
    assert got[2].dtype == inputs[0].dtype


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # the definition, without views
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    compare(make_inputs(shape, device, dtype, requires_grad=True), tolerance=4e-6)


@pytest.mark.parametrize(
    "shape",
    [(2, 1300, 110, None), (1, 8300, 32, 2), (4, 60, 1100, None), (1, 20, 1200, 3)],
    ids=str,
)
def test_in_chunks(shape, device):
    """Larger than what is kept for the backward, or multiplied at once."""
    compare(make_inputs(shape, device, requires_grad=True), tolerance=2e-6)


@pytest.mark.parametrize(
    "shape", [(1, 2, 1, None), (2, 6, 3, 2), (2, 3, 7, None), (1, 3, 13, 2)], ids=str
)
def test_gradient(shape):
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", torch.float64, requires_grad=True)
    given = [t for t in inputs if t is not None]
    assert torch.autograd.gradcheck(functional.variance_covariance, given)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_each_result_alone(shape, which, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    got = torch.autograd.grad(functional.variance_covariance(*inputs)[which].sum(), inputs)
    exact = copies(inputs, torch.float64, "cpu")
    want = torch.autograd.grad(reference.variance_covariance(*exact)[which].sum(), exact)
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-6)


def test_a_large_mean_costs_no_digits(device):
    z = torch.randn(2, 64, 200, device=device)
    shifted = (z * 2**-4).round() * 2**4 + 4096  # exact in float32
    got = functional.variance_covariance(shifted)
    want = reference.variance_covariance(shifted.cpu().double())
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", [3e19, -1e30])
def test_large_constant_dimensions(level, device):
    """Their squares are no float32, their differences are 0."""
    z = torch.full((1, 5, 8), level, device=device, requires_grad=True)
    variance, covariance = functional.variance_covariance(z)
    (gradient,) = torch.autograd.grad((variance + covariance).sum(), z)
    assert_close(variance, torch.full_like(variance, 0.99))
    assert not covariance.any() and not gradient.any()


def test_constant_dimensions(device):
    """Variance 0: the hinge is at its top, and nothing pulls."""
    z = torch.ones(2, 4, 30, device=device, requires_grad=True)
    variance, covariance = functional.variance_covariance(z, eps=1e-4)
    assert_close(variance, torch.full_like(variance, 0.99))
    assert_close(covariance, torch.zeros_like(covariance))
    (grad,) = torch.autograd.grad(variance.sum() + covariance.sum(), [z])
    assert_close(grad, torch.zeros_like(grad))


def test_blank_mask(device):
    z, masks = make_inputs((2, 6, 9, 2), device)
    masks[0] = 0
    masks.requires_grad_()
    variance, covariance = functional.variance_covariance(z, masks)
    assert_close(variance[0], torch.full_like(variance[0], 0.99))
    assert torch.equal(covariance[0], torch.zeros_like(covariance[0]))
    (grad,) = torch.autograd.grad(variance.sum() + covariance.sum(), [masks])
    assert grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_non_finite_stays_in_its_view(shape, bad, device):
    z, masks = make_inputs(shape, device)
    clean = functional.variance_covariance(z, masks)
    z[1, 3, 7] = bad
    got = functional.variance_covariance(z, masks)
    for mine, before in zip(got, clean, strict=True):
        assert mine[:, 1].isnan().all()
        assert torch.equal(mine[:, 0], before[:, 0])
