"""EquivarianceLoss against its definition, row by row."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext.losses import EquivarianceLoss

VIEWS, BATCH, DIM = 3, 6, 8


def make_inputs(device, dtype=torch.float32, views=VIEWS, batch=BATCH):
    actual = torch.randn(views, batch, DIM, device=device)
    predicted = actual + torch.randn(views, batch, DIM, device=device)
    return actual.to(dtype).requires_grad_(), predicted.to(dtype).requires_grad_()


def definition(actual, predicted, temperature=0.2):
    """Cross-entropy of every row with its partner among all other rows, mean per image."""
    views, batch, _ = actual.shape
    rows = F.normalize(torch.cat([actual.flatten(0, 1), predicted.flatten(0, 1)]), dim=1)
    logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partner = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
    each = F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner, reduction="none")
    return each.view(2 * views, batch).mean(0)


def exact(inputs):
    return [t.detach().cpu().double().requires_grad_() for t in inputs]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_equals_the_definition(views, device):
    inputs = make_inputs(device, views=views)
    truths = exact(inputs)
    got, want = EquivarianceLoss()(*inputs), definition(*truths).mean()
    assert_close(got.cpu().double(), want, rtol=1e-5, atol=0)
    for mine, truth in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, truths), strict=True
    ):
        assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-6)


def test_reductions(device):
    inputs = make_inputs(device)
    each = EquivarianceLoss(0.5, reduction="none")(*inputs)
    assert_close(each, definition(*inputs, 0.5), rtol=1e-5, atol=4e-6)
    assert_close(EquivarianceLoss(0.5, reduction="sum")(*inputs), each.sum())
    assert_close(EquivarianceLoss(0.5)(*inputs), each.mean())


def test_pair_losses_are_those_of_training_on_the_pair(device):
    actual, predicted = make_inputs(device)
    pairs = EquivarianceLoss().pair_losses(actual, predicted)
    assert pairs.shape == (VIEWS, VIEWS, BATCH)
    for i in range(VIEWS):
        for j in range(VIEWS):
            want = definition(actual[[i, j]], predicted[[i, j]])
            assert_close(pairs[i, j], want, rtol=1e-5, atol=4e-6)


def test_ignoring_the_augmentation_costs(device):
    """Views alike, and predicted to be: the views of an image cannot be told apart."""
    actual = torch.randn(1, 64, 32, device=device).expand(2, -1, -1).contiguous()
    told_apart = actual + torch.randn_like(actual)
    loss = EquivarianceLoss()
    assert loss(told_apart, told_apart) < loss(actual, actual) - 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(dtype, device):
    inputs = make_inputs(device, dtype)
    got = EquivarianceLoss()(*inputs)
    assert got.dtype == torch.float32
    assert_close(got.cpu().double(), definition(*exact(inputs)).mean(), rtol=1e-5, atol=0)
    assert all(grad.dtype == dtype for grad in torch.autograd.grad(got, inputs))


def test_float64_gradients():
    inputs = make_inputs("cpu", torch.float64, 2, 3)
    assert torch.autograd.gradcheck(EquivarianceLoss(), inputs)
    assert torch.autograd.gradcheck(EquivarianceLoss().pair_losses, inputs)


def test_one_image(device):
    inputs = make_inputs(device, batch=1)
    loss = EquivarianceLoss()
    value = loss(*inputs) + loss.pair_losses(*inputs).sum()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("method", ["forward", "pair_losses"])
def test_compiles_whole(method, device):
    function = getattr(EquivarianceLoss(), method)
    inputs = make_inputs(device)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    want = function(*inputs)
    assert_close(got, want)
    grads = [torch.autograd.grad(value.sum(), inputs[1])[0] for value in (got, want)]
    assert_close(*grads)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 4), (3, 4)], r"actual must have shape \[V, B, D\] with V >= 1, got \[3, 4\]"),
        (
            [(2, 3, 4), (2, 3, 5)],
            r"predicted must have the shape of actual, \[2, 3, 4\], got \[2, 3, 5\]",
        ),
        ([(2, 3, 4), (1, 3, 4)], r"predicted must have the shape of actual"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "pair_losses"])
def test_rejects_shapes(method, shapes, message):
    with pytest.raises(ValueError, match=message):
        getattr(EquivarianceLoss(), method)(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EquivarianceLoss(**arguments)
