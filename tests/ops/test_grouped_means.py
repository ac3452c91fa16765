"""grouped_means against its definition, and what little is compared."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

SHAPES = [(1, 1), (2, 5), (3, 64), (5, 65), (32, 256), (8, 1030)]  # G, D


def make_inputs(groups, dim, device="cpu", dtype=torch.float32):
    """Weights, sums and counts, whose weighted counts lie below 1 in some dimensions."""
    weights = torch.rand(groups, dim, dtype=dtype)
    weights[:, ::3] /= 100
    counts = torch.randint(0, 40, (groups,)).to(dtype)
    return [t.to(device) for t in (weights, 10 * torch.rand(groups, dim, dtype=dtype), counts)]


def with_gradients(function, inputs, grad):
    leaves = [t.detach().requires_grad_() for t in inputs]
    means = function(*leaves)
    return means.detach(), *torch.autograd.grad(means, leaves, grad.to(means))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, device):
    inputs = make_inputs(*shape, device)
    grad = torch.randn(shape[1])
    found = with_gradients(functional.grouped_means, inputs, grad)
    want = with_gradients(reference.grouped_means, [t.cpu().double() for t in inputs], grad)
    for mine, truth in zip(found, want, strict=True):
        scale = truth.abs().max().item()
        assert_close(mine.cpu().double(), truth, rtol=4e-7, atol=4e-7 * scale)


@pytest.mark.parametrize("shape", [(1, 3), (4, 7)], ids=str)
def test_gradient(shape):
    torch.manual_seed(0)
    inputs = [t.requires_grad_() for t in make_inputs(*shape, dtype=torch.float64)]
    assert torch.autograd.gradcheck(functional.grouped_means, inputs)


def test_is_the_mean_over_the_pairs_that_compare_a_dimension(device):
    x, y = torch.randn(2, 50, 6, device=device)
    group = torch.arange(50, device=device) % 3
    weights = torch.tensor([[1.0] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], device=device)
    sums, counts = functional.grouped_squared_difference(x, y, group, 3)
    compared = weights[group] > 0
    want = [(x - y)[compared[:, d], d].square().mean() for d in range(6)]
    assert_close(functional.grouped_means(weights, sums, counts), torch.stack(want))


def test_less_than_a_pair_counts_as_one(device):
    weights = torch.tensor([[0.25], [0.5]], device=device)
    sums, counts = torch.tensor([[4.0], [2.0]], device=device), torch.ones(2, device=device)
    assert functional.grouped_means(weights, sums, counts).item() == 0.25 * 4 + 0.5 * 2


def test_only_what_is_wanted_has_a_gradient(device):
    weights, sums, counts = make_inputs(4, 70, device)
    everything = with_gradients(functional.grouped_means, (weights, sums, counts), torch.ones(70))
    for i, name in enumerate(("group_weights", "sums", "counts")):
        inputs = {"group_weights": weights, "sums": sums, "counts": counts}
        inputs[name] = leaf = inputs[name].detach().requires_grad_()
        (grad,) = torch.autograd.grad(functional.grouped_means(**inputs).sum(), leaf)
        assert torch.equal(grad, everything[1 + i])


def test_no_groups(device):
    none = torch.zeros(0, 5, device=device)
    assert (functional.grouped_means(none, none, none[:, 0]) == torch.zeros(5, device=device)).all()
