"""NTXentLoss and its decoupled forms: what goes beyond lightly, against the written-out formula."""

from copy import copy

import lightly.loss
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext import losses

VIEWS, BATCH, DIM = 4, 9, 7


def distance(a, b):
    return (a - b).square().sum(1)


LOSSES = {
    "nt_xent": losses.NTXentLoss(0.3),
    "nt_xent_all_views": losses.NTXentLoss(0.3, negatives="all_views"),
    "dcl": losses.DCLLoss(0.3),
    "dcl_all_views": losses.DCLLoss(0.3, negatives="all_views"),
    "dcl_weighted": losses.DCLLoss(0.3, distance),
    "dclw": losses.DCLWLoss(0.3, 0.7),
}
OF_A_PAIR_ALONE = [name for name in LOSSES if "all_views" not in name]


def make_views(device, views=VIEWS, batch=BATCH, dtype=torch.float32):
    images = torch.randn(batch, DIM, device=device)
    return (images + 0.7 * torch.randn(views, batch, DIM, device=device)).to(dtype).requires_grad_()


def formula(name, views, i, j):
    """Loss of anchor view i with its positives in view j, ``[B]``, one row at a time."""
    units = F.normalize(views.detach().cpu().double(), dim=2)
    anchors, positives = units[i], units[j]
    columns = list(range(len(units))) if "all_views" in name else [i, j]
    weights = torch.ones(len(anchors), dtype=torch.float64)
    if name == "dcl_weighted":
        weights = distance(anchors, positives)
    if name == "dclw":
        weights = 2 - len(anchors) * ((anchors * positives).sum(1) / 0.7).softmax(0)
    terms = []
    for b in range(len(anchors)):
        # Columns (view, image): both of a pair count, though they be one view.
        others = [(place, v, c) for place, v in enumerate(columns) for c in range(len(anchors))]
        if name.startswith("dcl"):
            others = [other for other in others if other[2] != b]
        else:
            own = (columns.index(i), i, b)
            others.remove(own)
            if "all_views" in name and i == j:
                others.append(own)
        logits = torch.stack([anchors[b] @ units[v, c] for _, v, c in others]) / 0.3
        terms.append(logits.logsumexp(0) - weights[b] * (anchors[b] @ positives[b]) / 0.3)
    return torch.stack(terms)


def pair_formula(name, views, i, j):
    return (formula(name, views, i, j) + formula(name, views, j, i)) / 2


@pytest.mark.parametrize("name", LOSSES)
def test_pair_losses_equal_the_formula(name, device):
    views = make_views(device)
    pairs = LOSSES[name].pair_losses(views)
    assert pairs.shape == (VIEWS, VIEWS, BATCH) and pairs.dtype == torch.float32
    for i in range(VIEWS):
        for j in range(VIEWS):
            want = pair_formula(name, views, i, j)
            assert_close(pairs[i, j].cpu().double(), want, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("name", OF_A_PAIR_ALONE)
def test_pair_losses_are_those_of_training_on_the_pair(name, device):
    loss, views = LOSSES[name], make_views(device)
    pairs = loss.pair_losses(views)
    for i in range(VIEWS):
        for j in range(VIEWS):
            assert_close(pairs[i, j].mean(), loss(views[i], views[j]), rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_more_views_are_the_mean_over_pairs(name, device):
    loss, views = LOSSES[name], make_views(device)
    value = loss(*views)
    pairs = [(i, j) for i in range(VIEWS) for j in range(VIEWS) if i != j]
    want = torch.stack([formula(name, views, i, j).mean() for i, j in pairs]).mean()
    assert_close(value.cpu().double(), want, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(value, views)
    terms = loss.pair_losses(views)
    terms = torch.stack([terms[i, j].mean() for i, j in pairs]).mean()
    assert_close(grad, torch.autograd.grad(terms, views)[0], rtol=1e-4, atol=1e-6)


def test_three_views_in_pairs_are_lightly_on_every_pair(device):
    views = make_views(device, views=3)
    loss = losses.NTXentLoss(0.3)(*views)
    exact = views.detach().cpu().double().requires_grad_()
    theirs = lightly.loss.NTXentLoss(0.3)
    want = sum(theirs(exact[i], exact[j]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert_close(loss.cpu().double(), want, rtol=1e-5, atol=0)
    (mine,), (truth,) = torch.autograd.grad(loss, views), torch.autograd.grad(want, exact)
    assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("views", [2, 3])
def test_reductions(name, views, device):
    loss, views = copy(LOSSES[name]), make_views(device, views)
    values = {}
    for loss.reduction in ("mean", "sum", "none"):
        values[loss.reduction] = loss(*views)
    assert values["none"].shape == (BATCH,)
    assert_close(values["sum"], values["none"].sum())
    assert_close(values["mean"], values["none"].mean())
    pairs = loss.pair_losses(views)
    order = torch.triu_indices(len(views), len(views), 1)
    assert_close(values["none"], pairs[order[0], order[1]].mean(0), rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float64_gradients(name):
    views = make_views("cpu", 3, 4, torch.float64)
    loss = LOSSES[name]
    if name == "dclw":  # its weights have no gradient, which finite differences cannot know
        assert loss(*views).dtype == torch.float64
        return
    assert torch.autograd.gradcheck(lambda z: loss(*z), views)
    assert torch.autograd.gradcheck(loss.pair_losses, views)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_16_bit(name, dtype, device):
    views = make_views(device, 3, dtype=dtype)
    exact = views.detach().float().requires_grad_()
    got, want = LOSSES[name](*views), LOSSES[name](*exact)
    assert got.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    assert_close(got, want, rtol=1e-5, atol=0)
    (mine,), (truth,) = torch.autograd.grad(got, views), torch.autograd.grad(want, exact)
    assert mine.dtype == dtype
    assert (mine.float() - truth).norm() <= 4 * rounding * truth.norm()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("negatives", ["pairs", "all_views"])
def test_nt_xent_of_one_image(negatives, views, device):
    """With two views nothing is left to tell the positive from: 0, with gradient 0."""
    loss = losses.NTXentLoss(negatives=negatives)
    views = make_views(device, views, batch=1)
    value = loss(*views)
    if len(views) == 2 or negatives == "pairs":
        assert_close(value, torch.zeros_like(value))
    else:
        assert value > 0
    value.backward()
    assert views.grad.isfinite().all()
    pairs = loss.pair_losses(views)
    assert pairs.isfinite().all()
    assert torch.autograd.grad(pairs.sum(), views)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_whole(name, device):
    loss, views = LOSSES[name], make_views(device, 3)
    for function in (loss, loss.pair_losses):
        arguments = (views,) if function is not loss else tuple(views)
        want = function(*arguments)
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
        assert_close(got, want)
        grads = [torch.autograd.grad(value.sum(), views)[0] for value in (got, want)]
        assert_close(*grads)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(3, 4), (3, 5)],
            r"out0 and out1 must have one shape \[N, D\], got \[3, 4\] and \[3, 5\]",
        ),
        (
            [(3, 4), (2, 4)],
            r"out0 and out1 must have one shape \[N, D\], got \[3, 4\] and \[2, 4\]",
        ),
        ([(3,), (3,)], r"out0 must have shape \[N, D\] with D >= 1, got \[3\]"),
        ([(3, 4), (3, 4), (3, 5)], r"out0 and out2 must have one shape"),
    ],
)
@pytest.mark.parametrize("name", ["nt_xent", "dcl", "dclw"])
def test_rejects_shapes(name, shapes, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](*(torch.ones(shape) for shape in shapes))


def test_rejects_views_on_different_devices():
    views = torch.ones(3, 4), torch.ones(3, 4, device="meta")
    with pytest.raises(ValueError, match="out1 must be on cpu like out0, got meta"):
        losses.NTXentLoss()(*views)


def test_rejects_integers():
    with pytest.raises(TypeError, match="out0 must be floating point"):
        losses.NTXentLoss()(torch.ones(3, 4).int(), torch.ones(3, 4).int())


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "dclw"])
def test_pair_losses_reject_shapes(name):
    with pytest.raises(
        ValueError, match=r"views must have shape \[V, B, D\] with V >= 1, got \[3, 4\]"
    ):
        LOSSES[name].pair_losses(torch.ones(3, 4))


@pytest.mark.parametrize("loss", [losses.DCLLoss(), losses.DCLWLoss()])
def test_decoupled_contrast_needs_negatives(loss):
    with pytest.raises(ValueError, match="a single image has no negatives"):
        loss(torch.ones(1, 4), torch.ones(1, 4))


def test_weights_must_be_one_per_image():
    with pytest.raises(ValueError, match=r"weight_fn must return shape \[3\], got \[\]"):
        losses.DCLLoss(weight_fn=lambda a, b: (a * b).sum())(torch.ones(3, 4), torch.ones(3, 4))


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -0.5}, "temperature must be positive, got -0.5"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"negatives": "all"}, "negatives must be 'pairs' or 'all_views', got 'all'"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_rejects_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**arguments)


def test_rejects_a_sigma_of_zero():
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        losses.DCLWLoss(sigma=0)
