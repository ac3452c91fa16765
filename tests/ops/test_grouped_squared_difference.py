"""grouped_squared_difference against its definition, and what is special to groups."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

# N, D, G
SHAPES = [
    *((1, 1, 1), (2, 5, 3), (40, 16, 2), (70, 7, 5), (129, 300, 4), (600, 33, 7), (1500, 8, 2)),
    (300, 136, 64),
    (64, 20, 100),  # more groups than pairs
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, device="cpu", dtype=torch.float32):
    """x, y, group (some pairs are in none), weight, dimension weights."""
    rows, dim, groups = shape
    sums = torch.promote_types(dtype, torch.float32)
    x, y = (torch.randn(rows, dim, device=device).to(dtype) for _ in range(2))
    group = torch.randint(-1, groups, (rows,), device=device)
    weight = torch.rand(rows, device=device, dtype=sums)
    return x, y, group, weight, torch.rand(groups, dim, device=device, dtype=sums)


def with_gradients(function, x, y, group, weight, dimension_weights, grads):
    leaves = [t.detach().requires_grad_() for t in (x, y, weight)]
    results = function(*leaves[:2], group, dimension_weights, weight=leaves[2])
    found = torch.autograd.grad(
        results[:2], leaves, [g.to(r) for g, r in zip(grads, results[:2], strict=True)]
    )
    return *results, *found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    inputs = make_inputs(shape, device, dtype)
    grads = torch.randn(shape[2], shape[1]).to(device), torch.randn(shape[2]).to(device)
    found = with_gradients(functional.grouped_squared_difference_with_residual, *inputs, grads)
    exact = [t.cpu() if t.dtype == torch.int64 else t.cpu().double() for t in inputs]
    want = with_gradients(
        reference.grouped_squared_difference_with_residual, *exact, [g.cpu() for g in grads]
    )
    for mine, truth in zip(found, want, strict=True):
        rounding = torch.finfo(mine.dtype).eps
        scale = truth.abs().max().item() if truth.numel() else 1.0
        assert_close(mine.cpu().double(), truth, rtol=4 * rounding, atol=4 * rounding * scale)
    sums, counts = functional.grouped_squared_difference(*inputs[:3], shape[2], weight=inputs[3])
    assert torch.equal(sums, found[0].detach()) and torch.equal(counts, found[1].detach())


@pytest.mark.parametrize("shape", [(5, 3, 2), (200, 4, 3)], ids=str)
def test_gradient(shape):
    torch.manual_seed(0)
    x, y, group, weight, _ = make_inputs(shape, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, y, weight)]
    assert torch.autograd.gradcheck(
        lambda x, y, weight: functional.grouped_squared_difference(
            x, y, group, shape[2], weight=weight
        ),
        leaves,
    )


def test_without_weights_all_count_alike(device):
    x, y, group, weight, _ = make_inputs((300, 20, 3), device)
    plain = functional.grouped_squared_difference(x, y, group, 3)
    ones = functional.grouped_squared_difference(x, y, group, 3, weight=torch.ones_like(weight))
    for mine, same in zip(plain, ones, strict=True):
        assert torch.equal(mine, same)
    assert plain[1].tolist() == [(group == g).sum() for g in range(3)]


def test_pairs_without_a_group_count_nowhere(device):
    x, y, group, weight, table = make_inputs((70, 20, 3), device)
    x[group < 0] = float("nan")
    x.requires_grad_()
    sums, counts, residual = functional.grouped_squared_difference_with_residual(
        x, y, group, table, weight=weight
    )
    assert sums.isfinite().all() and counts.isfinite().all()
    assert (residual[group < 0] == 0).all()
    (grad,) = torch.autograd.grad(sums.sum(), x)
    assert not grad[group < 0].any() and grad.isfinite().all()


def test_near_pairs_keep_their_digits(device):
    """Differences are taken before they are squared, whatever the embeddings' size."""
    x = 100 + torch.randn(50, 30, device=device)
    y = x + 1e-3 * torch.randn(50, 30, device=device)
    group = torch.zeros(50, dtype=torch.int64, device=device)
    sums, _ = functional.grouped_squared_difference(x, y, group, 1)
    want = (x.double() - y.double()).square().sum(0, keepdim=True)
    assert_close(sums.double(), want, rtol=1e-6, atol=0)


def test_many_pairs_stay_precise(device):
    """Sums of 100,000 equal terms, which one running sum in float32 would lose 1e-4 of."""
    x = torch.full((100_000, 2), 0.1, device=device)
    group = torch.zeros(len(x), dtype=torch.int64, device=device)
    sums, counts = functional.grouped_squared_difference(x, torch.zeros_like(x), group, 1)
    want = x.double().square().sum(0, keepdim=True)
    assert_close(sums.double(), want, rtol=5e-6, atol=0)
    assert counts.item() == 100_000


def test_no_pairs(device):
    x = torch.zeros(0, 4, device=device, requires_grad=True)
    group = torch.zeros(0, dtype=torch.int64, device=device)
    sums, counts = functional.grouped_squared_difference(x, x.detach(), group, 3)
    assert not sums.any() and not counts.any()
    assert torch.autograd.grad(sums.sum(), x)[0].shape == (0, 4)


@pytest.mark.parametrize("wanted", [("x",), ("y",), ("weight",), ("x", "weight")])
def test_only_what_is_wanted_gets_a_gradient(wanted, device):
    tensors = dict(
        zip(("x", "y", "group", "weight"), make_inputs((30, 8, 3), device)[:4], strict=True)
    )
    everything = {
        name: t.detach().requires_grad_() if name != "group" else t for name, t in tensors.items()
    }
    sums, counts = functional.grouped_squared_difference(groups=3, **everything)
    want = torch.autograd.grad(sums.sum() + counts.sum(), [everything[name] for name in wanted])
    some = {n: t.detach().requires_grad_(n in wanted) for n, t in tensors.items()}
    sums, counts = functional.grouped_squared_difference(groups=3, **some)
    found = torch.autograd.grad(sums.sum() + counts.sum(), [some[name] for name in wanted])
    for mine, truth in zip(found, want, strict=True):
        assert_close(mine, truth, rtol=0, atol=0)
