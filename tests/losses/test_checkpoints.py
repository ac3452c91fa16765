"""Every loss inside of an activation checkpoint, which computes it again in the backward pass."""

import pytest
import torch
from loss_calls import EACH, inputs_of, tensors_in
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mast_ext import losses

REFUSED = "has moved since the loss was computed, .* leave the loss out of activation checkpoints"


def total_of(loss, call, inputs):
    """A number, of all results that may have a gradient."""
    results = tensors_in(call(loss, *inputs))
    return sum(r.sum() for r in results if r.is_floating_point() and not is_kept(r, loss))


def is_kept(tensor, loss):
    return any(tensor is buffer for buffer in loss.buffers())


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_gradient_is_that_without_a_checkpoint_or_refused(make, call, reentrant):
    inputs = [x.double().detach().requires_grad_() for x in inputs_of(torch.float32)]
    torch.manual_seed(0)
    loss = make().double()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    plain = total_of(loss, call, inputs)
    if not plain.requires_grad:  # a choice
        return
    want = torch.autograd.grad(plain, inputs, allow_unused=True, materialize_grads=True)
    moved = {name: value.clone() for name, value in loss.state_dict().items()}
    torch.manual_seed(0)
    loss = make().double()
    total = checkpoint(lambda *x: total_of(loss, call, x), *inputs, use_reentrant=reentrant)
    if before.keys() == moved.keys() and all(torch.equal(before[n], moved[n]) for n in before):
        total.backward()
    elif isinstance(loss, (losses.Whitening2d, losses.WMSELoss)):
        total.backward()  # its gradient does not depend on what moves
    else:
        with pytest.raises(RuntimeError, match=REFUSED):
            total.backward()
        return
    for x, gradient in zip(inputs, want, strict=True):
        assert_close(torch.zeros_like(x) if x.grad is None else x.grad, gradient)


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_a_state_may_move_afterwards(reentrant):
    views, teacher = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 4, 8)
    checkpointed, plain = losses.DINOLoss(8), losses.DINOLoss(8)

    def loss(student):
        return checkpointed(teacher, student, update_center=False)

    (found,) = torch.autograd.grad(plain(teacher, views), views)
    checkpoint(loss, views, use_reentrant=reentrant).backward()
    checkpointed.update_center(teacher)
    assert_close(views.grad, found)
    assert_close(checkpointed.center, plain.center)
