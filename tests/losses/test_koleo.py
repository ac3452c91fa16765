"""KoLeoLoss against lightly's, and what goes beyond it."""

import lightly.loss
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext import losses

SHAPES = [(2, 3), (1, 4), (16, 8), (9, 40), (65, 33), (5, 257)]
ARGUMENTS = [{}, {"eps": 1e-3}, {"p": 1}, {"p": 3.0, "eps": 1e-4}]


def loss_and_gradient(module, x):
    loss = module(x)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def truth_of(module, x):
    """Lightly's class in float64."""
    return loss_and_gradient(module, x.detach().cpu().double().requires_grad_())


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_lightly(shape, arguments, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    got = loss_and_gradient(losses.KoLeoLoss(**arguments), x)
    for mine, truth in zip(got, truth_of(lightly.loss.KoLeoLoss(**arguments), x), strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-5)


def test_reductions(device):
    x = torch.randn(12, 5, device=device)
    each = losses.KoLeoLoss(reduction="none")(x)
    assert each.shape == (12,)
    assert_close(losses.KoLeoLoss()(x), each.mean())
    assert_close(losses.KoLeoLoss(reduction="sum")(x), each.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [2, 1])
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_duplicates_are_finite(value, p, dtype, device):
    """Lightly's are infinite in float16."""
    x = torch.randn(6, 8, device=device).to(dtype)
    x[2:5] = value
    loss, gradient = loss_and_gradient(losses.KoLeoLoss(p), x.requires_grad_())
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert not gradient.isnan().any()
    if dtype != torch.float16:  # whose range is smaller than the gradient
        assert gradient.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_losses_of_16_bit_embeddings_are_float32(dtype, autocast, device):
    x = torch.randn(40, 64, device=device).to(dtype).requires_grad_()
    with torch.autocast(device.type, dtype, enabled=autocast):
        got = loss_and_gradient(losses.KoLeoLoss(), x)
    want = truth_of(lightly.loss.KoLeoLoss(), x)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    assert_close(got[0].cpu().double(), want[0], rtol=1e-5, atol=1e-6)
    rounding = torch.finfo(dtype).eps
    assert (got[1].cpu().double() - want[1]).norm() <= 2 * rounding * want[1].norm()


def test_compiles_whole(device):
    loss, x = losses.KoLeoLoss(), torch.randn(12, 6, device=device, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, truth in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        assert_close(mine, truth)


def plain(x, topk, size, p=2, eps=1e-8):
    """One value per row, of every group by itself."""
    values = []
    for group in F.normalize(x, dim=1).split(size):
        cosines = (group @ group.T).detach().fill_diagonal_(-2)
        neighbors = cosines.topk(topk, dim=1).indices
        distances = F.pairwise_distance(group[:, None], group[neighbors], p=p, eps=eps)
        values.append(-(distances + eps).log().mean(1))
    return torch.cat(values)


@pytest.mark.parametrize(("topk", "group_size"), [(1, 4), (2, None), (3, 6), (11, 12)], ids=str)
@pytest.mark.parametrize("p", [2, 1])
def test_neighbors_and_groups(topk, group_size, p, device):
    x = torch.randn(24, 9, device=device, requires_grad=True)
    loss = losses.KoLeoLoss(p, topk=topk, group_size=group_size, reduction="none")
    got, want = loss(x), plain(x.double(), topk, group_size or 24, p)
    assert_close(got, want.float())
    weights = torch.rand_like(got)
    mine = torch.autograd.grad((got * weights).sum(), x)
    truth = torch.autograd.grad((want * weights).sum(), x)
    assert_close(*mine, *truth, rtol=1e-4, atol=1e-5)


def test_one_group_of_one_neighbor_is_the_operators(device):
    x = torch.randn(20, 9, device=device)
    assert_close(losses.KoLeoLoss(group_size=20)(x), losses.KoLeoLoss()(x))


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"group_size": 4}, 6, r"whole groups of 4 rows, more than 1, got 6"),
        ({"topk": 3}, 3, r"whole groups of 3 rows, more than 3, got 3"),
    ],
)
def test_rejects_too_few_rows(options, rows, message):
    with pytest.raises(ValueError, match=message):
        losses.KoLeoLoss(**options)(torch.randn(rows, 4))


def test_has_no_state():
    assert not losses.KoLeoLoss().state_dict()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
def test_rejects_shapes(shape):
    with pytest.raises(ValueError, match=r"x must have shape \[N, D\], got"):
        losses.KoLeoLoss()(torch.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 0}, "p must be positive, got 0"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"topk": 4, "group_size": 4}, "topk must be below group_size, got 4 of 4"),
        ({"reduction": "max"}, "reduction must be .*, got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.KoLeoLoss(**arguments)
