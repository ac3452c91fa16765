"""SwaVLoss against lightly's, and what goes beyond it."""

import lightly.loss
import pytest
import torch
from torch.testing import assert_close

from mast_ext import losses

# High- and low-resolution crops, batch, prototypes, rows of a queue
SHAPES = [(2, 0, 4, 5, None), (2, 3, 6, 33, None), (1, 2, 3, 8, 7), (3, 2, 4, 17, 5)]
ARGUMENTS = [
    {},
    {"temperature": 0.3, "sinkhorn_iterations": 1, "sinkhorn_epsilon": 0.2},
    {"sinkhorn_iterations": 5, "sinkhorn_gather_distributed": True},
]


def make_outputs(shape, device="cpu", dtype=torch.float32):
    """Cosines with the prototypes."""
    high, low, batch, prototypes, queue = shape
    parts = [0.3 * torch.randn(n, batch, prototypes, device=device) for n in (high, low)]
    if queue is not None:
        parts.append(0.3 * torch.randn(high, queue, prototypes, device=device))
    return [part.to(dtype).requires_grad_() for part in parts]


def loss_and_gradients(module, high, low, *queue):
    loss = module(list(high), list(low), *(list(part) for part in queue))
    wanted = [high, low] if len(low) else [high]
    # A single high-resolution crop predicts nothing.
    gradients = torch.autograd.grad(loss.sum(), wanted, materialize_grads=True)
    return loss.detach().squeeze(), *gradients


def truth_of(module, *outputs):
    """Lightly's class in float64."""
    return loss_and_gradients(
        module, *(t.detach().cpu().double().requires_grad_() for t in outputs)
    )


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_lightly(shape, arguments, device):
    outputs = make_outputs(shape, device)
    got = loss_and_gradients(losses.SwaVLoss(**arguments), *outputs)
    want = truth_of(lightly.loss.SwaVLoss(**arguments), *outputs)
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-6)


def test_takes_lists_and_tensors(device):
    high, low, queue = make_outputs((2, 3, 4, 9, 5), device)
    got = losses.SwaVLoss()(high, low, queue)
    assert got.shape == ()
    assert torch.equal(got, losses.SwaVLoss()(list(high), list(low), list(queue)))
    got.backward()
    assert high.grad.any() and low.grad.any() and queue.grad is None


def test_reductions(device):
    outputs = make_outputs((2, 1, 4, 9, None), device)
    each = losses.SwaVLoss(reduction="none")(*outputs)
    assert each.shape == (4,)
    assert_close(losses.SwaVLoss()(*outputs), each.mean())
    assert_close(losses.SwaVLoss(reduction="sum")(*outputs), each.sum())


def test_crop_losses(device):
    high, low = make_outputs((2, 3, 4, 9, None), device)
    pairs = losses.SwaVLoss().crop_losses(high, low)
    assert pairs.shape == (2, 5, 4)
    crops = [*high, *low]
    for i in range(2):
        for j in range(5):
            one = lightly.loss.SwaVLoss()([high[i]], [crops[j]])
            assert_close(pairs[i, j].mean(), one.squeeze())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_losses_of_16_bit_outputs_are_float32(dtype, autocast, device):
    outputs = make_outputs((2, 2, 8, 65, 5), device, dtype)
    with torch.autocast(device.type, dtype, enabled=autocast):
        got = loss_and_gradients(losses.SwaVLoss(), *outputs)
    want = truth_of(lightly.loss.SwaVLoss(), *outputs)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    assert_close(got[0].cpu().double(), want[0], rtol=1e-5, atol=0)
    rounding = torch.finfo(dtype).eps
    for mine, truth in zip(got[1:], want[1:], strict=True):
        assert (mine.cpu().double() - truth).norm() <= 4 * rounding * truth.norm()


def test_large_similarities_stay_finite(device):
    """Lightly's exponentials overflow: NaN."""
    high, low = (100 * part for part in make_outputs((2, 1, 4, 9, None), device))
    loss = losses.SwaVLoss()(high, low)
    assert loss.isfinite() and lightly.loss.SwaVLoss()(list(high), list(low)).isnan()


def test_compiles_whole(device):
    loss, outputs = losses.SwaVLoss(), make_outputs((2, 2, 4, 9, 3), device)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want = loss_and_gradients(loss, *outputs)
    for mine, truth in zip(loss_and_gradients(compiled, *outputs), want, strict=True):
        assert_close(mine, truth)


def test_has_no_state():
    assert not losses.SwaVLoss().state_dict()


@pytest.mark.parametrize(
    ("high", "low", "queue", "message"),
    [
        (
            [],
            [(3, 9)],
            None,
            "high_resolution_outputs must hold views of one shape .*, at least one",
        ),
        ([(3, 9)], [], None, "compares different crops, got a single one"),
        ([(3, 9)], [(3, 8)], None, r"one shape \[B, C\], at least one, got \[\[3, 9\], \[3, 8\]\]"),
        ([(3, 9)] * 2, [], [(4, 9)], "one queue for each of the 2 high-resolution crops, got 1"),
    ],
)
def test_rejects_outputs(high, low, queue, message):
    outputs = [
        None if part is None else [torch.ones(s) for s in part] for part in (high, low, queue)
    ]
    with pytest.raises(ValueError, match=message):
        losses.SwaVLoss()(*outputs)


def test_gathering_needs_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a build of torch with torch.distributed"):
        losses.SwaVLoss(sinkhorn_gather_distributed=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"sinkhorn_epsilon": -1.0}, "sinkhorn_epsilon must be positive, got -1.0"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations must be at least 1, got 0"),
        ({"reduction": "max"}, "reduction must be .*, got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.SwaVLoss(**arguments)
