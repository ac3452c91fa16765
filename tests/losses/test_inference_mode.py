"""Tensors of a teacher that ran under `torch.inference_mode`, and losses that were called there."""

import pytest
import torch
from loss_calls import EACH, inputs_of, tensors_in
from torch import Tensor
from torch.testing import assert_close

from mast_ext import losses

DIM = 8
FEW = {  # of fewer images than are summed in one pass
    "dino": (lambda: losses.DINOLoss(DIM), lambda loss, x, y: loss(y, x)),
    "dino_sinkhorn": (
        lambda: losses.DINOLoss(DIM, center_mode="sinkhorn"),
        lambda loss, x, y: loss(list(y), list(x)),
    ),
    "ibot": (
        lambda: losses.IBOTPatchLoss(DIM),
        lambda loss, x, y: loss(y[0], x[0], torch.ones(1, 2, 2, dtype=torch.bool)),
    ),
}


def results_and_gradients(make, call, inputs):
    """And the state afterwards."""
    torch.manual_seed(0)
    loss = make()
    results = tensors_in(call(loss, *inputs))
    total = sum(result.sum() for result in results if result.requires_grad)
    leaves = [t for t in (*inputs, *loss.parameters()) if t.requires_grad]
    grads = []
    if isinstance(total, Tensor):
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [result.detach() for result in results], grads, loss.state_dict()


def assert_takes_it(make, call, inputs, without_gradient):
    inputs = [x.detach() if i == without_gradient else x for i, x in enumerate(inputs)]
    want = results_and_gradients(make, call, inputs)
    with torch.inference_mode():
        inputs[without_gradient] = inputs[without_gradient].clone()
    assert_close(results_and_gradients(make, call, inputs), want, rtol=0, atol=0)


@pytest.mark.parametrize("without_gradient", [0, 1], ids=["x", "y"])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_takes_tensors_of_inference_mode(make, call, without_gradient):
    assert_takes_it(make, call, inputs_of(torch.float32), without_gradient)


@pytest.mark.parametrize("name", FEW)
def test_takes_few_logits_of_a_teacher_in_inference_mode(name):
    views = torch.randn(2, 2, 4, DIM)
    assert_takes_it(*FEW[name], [views[0].requires_grad_(), views[1].detach()], 1)


def test_takes_a_queue_of_inference_mode():
    x = torch.randn(12, DIM, requires_grad=True)
    with torch.inference_mode():
        keys, queue = torch.randn(12, DIM), torch.randn(20, DIM)
    found = losses.InfoNCELoss()(x, keys, queue)
    want = losses.InfoNCELoss()(x, keys.clone(), queue.clone())
    assert_close(torch.autograd.grad(found, x), torch.autograd.grad(want, x), rtol=0, atol=0)


@pytest.mark.parametrize(("make", "call"), EACH)
def test_a_call_in_inference_mode_leaves_a_state_to_train_with(make, call):
    loss = make()
    with torch.inference_mode():
        call(loss, *(x.detach().clone() for x in inputs_of(torch.float32)))
    for buffer in loss.buffers():
        assert not buffer.is_inference()
        buffer.copy_(buffer.clone())  # as a checkpoint, or a process that sends it, does
