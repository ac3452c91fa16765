"""weighted_terms against its definition: sums of few and of many numbers."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

# Of one to three terms.
SHAPES = [
    [(1,)],
    [()],
    [(4, 129), (2,)],
    [(1, 1, 1, 256), (1, 2), (1, 2)],
    [(3, 17), (0,), ()],
    [(5,), (300, 40), (9000,)],
]
SCALES, WEIGHTS = (0.5, -2.0, 1 / 3), (25.0, 0.7, 1e-3)


def make_terms(shapes, device="cpu"):
    return [(1 + torch.randn(shape)).to(device) for shape in shapes]


def with_gradients(function, terms):
    leaves = [t.detach().requires_grad_() for t in terms]
    count = len(terms)
    total, parts = function(*leaves, scales=SCALES[:count], weights=WEIGHTS[:count])
    return total.detach(), parts, *torch.autograd.grad(total, leaves, torch.full_like(total, 0.3))


def test_the_definition_keeps_the_digits_of_weights():
    total, _ = reference.weighted_terms(torch.ones(1).double(), scales=(1.0,), weights=(0.1,))
    assert total == 0.1


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matches_definition(shapes, device):
    terms = make_terms(shapes, device)
    found = with_gradients(functional.weighted_terms, terms)
    want = with_gradients(reference.weighted_terms, [t.cpu().double() for t in terms])
    sizes = max(abs(WEIGHTS[i] * SCALES[i]) * t.abs().sum().item() for i, t in enumerate(terms))
    for mine, truth in zip(found, want, strict=True):
        assert mine.shape == truth.shape
        assert_close(mine.cpu().double(), truth, rtol=2e-7, atol=2e-7 * (1e-3 + sizes))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradient(count):
    torch.manual_seed(0)
    terms = [t.double().requires_grad_() for t in make_terms([(3, 2), (4,), ()][:count])]
    options = {"scales": SCALES[:count], "weights": WEIGHTS[:count]}
    assert torch.autograd.gradcheck(
        lambda *terms: functional.weighted_terms(*terms, **options)[0], terms
    )


def test_sums_of_many_numbers_keep_their_digits(device):
    """What float32 loses when it adds one after the other."""
    many = torch.rand(300_000, device=device)
    _, terms = functional.weighted_terms(many, scales=(1.0,), weights=(1.0,))
    assert_close(terms[0].double(), many.double().sum(), rtol=1e-7, atol=0)


def test_terms_have_no_gradient(device):
    (x,) = make_terms([(5,)], device)
    total, terms = functional.weighted_terms(x.requires_grad_(), scales=(1,), weights=(2,))
    assert total.requires_grad and not terms.requires_grad
    assert_close(total.detach(), 2 * terms[0])


def test_a_weight_of_zero_is_no_gradient_and_what_is_not_finite_shows(device):
    x, y = make_terms([(5,), (5,)], device)
    y[2] = torch.nan
    x.requires_grad_()
    total, terms = functional.weighted_terms(x, y, scales=(1, 1), weights=(0, 1))
    assert total.isnan() and terms[0].isfinite() and terms[1].isnan()
    assert (torch.autograd.grad(total, x)[0] == 0).all()
