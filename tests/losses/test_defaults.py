"""Torch's default dtype and device are not those of a loss's inputs, and have no part in it."""

import pytest
import torch
from loss_calls import EACH, inputs_of, tensors_in
from torch import Tensor

from mast_ext import losses

# Beside what all tests call: regions of one mask, whose weights are no power of two.
ONE_MASK = (
    lambda: losses.DetConSLoss(),
    lambda loss, x, y: loss(x[:2, :3], y[:2, :3], *torch.zeros(2, 2, 3, device="cpu")),
)
EVERY = [*EACH, pytest.param(*ONE_MASK, id="DetConSLoss-one-mask")]


def results_and_gradients(make, call, dtype, *, default=torch.float32, device="cpu"):
    torch.manual_seed(0)
    loss, inputs = make().to(dtype), inputs_of(dtype)
    torch.set_default_dtype(default)
    try:
        with torch.device(device):
            results = tensors_in(call(loss, *inputs))
    finally:
        torch.set_default_dtype(torch.float32)
    total = sum(result.sum() for result in results if result.requires_grad)
    leaves = [*inputs, *loss.parameters()]
    if not isinstance(total, Tensor):
        return results
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*results, *(grad for grad in grads if grad is not None)]


def assert_same(found, want):
    assert len(found) == len(want)
    for mine, truth in zip(found, want, strict=True):
        assert mine.dtype == truth.dtype
        assert torch.equal(mine, truth)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("make", "call"), EVERY)
def test_default_dtype_does_not_matter(make, call, dtype, default):
    want = results_and_gradients(make, call, dtype)
    assert_same(results_and_gradients(make, call, dtype, default=default), want)


@pytest.mark.parametrize(("make", "call"), EVERY)
def test_default_device_does_not_matter(make, call):
    want = results_and_gradients(make, call, torch.float32)
    assert_same(results_and_gradients(make, call, torch.float32, device="meta"), want)
