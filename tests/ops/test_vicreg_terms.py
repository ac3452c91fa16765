"""vicreg_terms against its definition and against the operators that it is made of."""

import sys

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

SHAPES = [
    (2, 1),
    (5, 3),  # direct
    (33, 7),
    (70, 64),
    (140, 129),  # more than a small product
    (300, 257),
    (4, 9),  # Gram
    (2, 64),
    (17, 33),
    (40, 132),
    (9, 257),
    (130, 300),
]
CHUNKS = [(1300, 110), (8300, 20), (60, 2300)]
CPU = functional.MOST_TOGETHER
SCALES, WEIGHTS = (0.01, 0.5, 1.5), (2.0, 25.0, 0.7)


@pytest.fixture(autouse=True)
def operator_alone(monkeypatch):
    """Of large views, too, of which the function takes one after the other on a CPU."""
    monkeypatch.setattr(functional, "MOST_TOGETHER", sys.maxsize)


def make_views(shape, device, dtype=torch.float32):
    x = torch.randn(shape, device=device) + 0.5
    return x.to(dtype), (x + 0.5 * torch.randn(shape, device=device)).to(dtype)


def evaluate(function, inputs):
    """The total, the terms and the gradients, for a gradient of the total that is not 1."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    total, terms = function(*leaves, scales=SCALES, weights=WEIGHTS)
    return total.detach(), *terms, *torch.autograd.grad(total, leaves, torch.full_like(total, 0.3))


def error(got, truth):
    """Norm of the error, relative where the truth is not tiny."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-6)).item()


def compare(inputs, tolerance):
    """Ours against the truth in float64, no worse than the plain version in the inputs' dtype."""
    got = evaluate(functional.vicreg_terms, inputs)
    truth = evaluate(reference.vicreg_terms, [t.cpu().double() for t in inputs])
    plain = evaluate(reference.vicreg_terms, inputs)
    product = ops.vicreg_terms.op(*inputs[:2], None, 1e-4, SCALES, WEIGHTS)[4]
    tolerance += torch.finfo(product.dtype).eps  # of squares; bfloat16 of bfloat16 on CUDA
    for mine, theirs, want, leaf in zip(
        got, plain, truth, (None,) * 4 + tuple(inputs), strict=True
    ):
        assert mine.shape == want.shape
        assert error(mine, want) <= 1.5 * error(theirs, want) + tolerance
        assert mine.dtype == (torch.float32 if leaf is None else leaf.dtype)


@pytest.mark.parametrize("given", [False, True], ids=["differences", "numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, given, device):
    numbers = [torch.rand(3, 131, device=device)] if given else []
    compare([*make_views(shape, device, dtype), *numbers], tolerance=4e-6)


@pytest.mark.parametrize("shape", CHUNKS, ids=str)
def test_in_chunks(shape, device):
    """Larger than what is kept for the backward, or multiplied at once."""
    compare(make_views(shape, device), tolerance=2e-6)


@pytest.mark.parametrize("given", [False, True], ids=["differences", "numbers"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 7)], ids=str)
def test_gradient(shape, given):
    torch.manual_seed(0)
    inputs = [*make_views(shape, "cpu", torch.float64), torch.rand(4).double()][: 2 + given]

    def total(*inputs):
        return functional.vicreg_terms(*inputs, scales=SCALES, weights=WEIGHTS)[0]

    assert torch.autograd.gradcheck(total, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("shape", [(70, 66), (9, 66)], ids=["direct", "Gram"])
def test_equals_the_operators_that_it_is_made_of(shape, device):
    """Views with strides, which are not aligned to packets, too."""
    x, y = make_views((shape[0], shape[1] + 1), device)

    def composed(x, y, **options):
        distance = functional.subspace_similarity(x[None], y[None], metric="sqeuclidean")
        both = functional.variance_covariance(torch.stack((x, y)))
        return functional.weighted_terms(distance, *both, **options)

    def sliced(function):
        return lambda x, y, **options: function(x[:, 1:], y[:, :-1], **options)

    found = evaluate(sliced(functional.vicreg_terms), (x, y))
    want = evaluate(sliced(composed), (x, y))
    for mine, theirs in zip(found, want, strict=True):
        assert_close(mine, theirs, rtol=2e-5, atol=2e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("shape", [(12, 10), (4, 31)], ids=["direct", "Gram"])
def test_a_weight_of_zero_is_no_gradient(shape, which, device):
    """Of one view the gradient is asked for, of the other not."""
    x, y = make_views(shape, device)
    weights = [0.0, 0.0, 0.0]
    weights[which] = 3.0
    found, want = [], []
    for function, dtype, out in (
        (functional.vicreg_terms, torch.float32, found),
        (reference.vicreg_terms, torch.float64, want),
    ):
        leaf = y.cpu().to(dtype) if dtype == torch.float64 else y
        other = x.cpu().to(dtype) if dtype == torch.float64 else x
        leaf = leaf.detach().requires_grad_()
        total, terms = function(other, leaf, scales=SCALES, weights=weights)
        assert not terms.requires_grad
        out += torch.autograd.grad(total, leaf)
    assert_close(found[0].cpu().double(), want[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 10), (4, 31)], ids=["direct", "Gram"])
def test_equal_bits_on_every_run(shape, device):
    x, y = make_views(shape, device)
    first, second = (evaluate(functional.vicreg_terms, (x, y)) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("given", [False, True], ids=["differences", "numbers"])
def test_large_views_one_after_the_other(monkeypatch, given):
    """What a CPU does with them gives the same."""
    x, y = make_views((300, 257), "cpu")
    assert x.numel() > CPU
    inputs = (x, y, torch.rand(3, 4)) if given else (x, y)
    together = evaluate(functional.vicreg_terms, inputs)
    calls = []
    apart = functional.variance_covariance
    monkeypatch.setattr(
        functional, "variance_covariance", lambda *a, **k: calls.append(0) or apart(*a, **k)
    )
    monkeypatch.setattr(functional, "MOST_TOGETHER", CPU)
    for got, want in zip(evaluate(functional.vicreg_terms, inputs), together, strict=True):
        assert_close(got, want)
    assert len(calls) == 2  # a view each


def test_large_views_are_checked_as_small_ones(monkeypatch):
    monkeypatch.setattr(functional, "MOST_TOGETHER", CPU)
    x = torch.randn(300, 257)
    for other in (x.half(), x[:, :-1]):
        with pytest.raises((TypeError, ValueError), match="y must "):
            functional.vicreg_terms(x, other, scales=SCALES, weights=WEIGHTS)
