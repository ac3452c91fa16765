"""Every loss inside of the transforms of torch.func, which take functions of all their state."""

import copy

import pytest
import torch
from loss_calls import EACH, inputs_of, tensors_in
from torch import nn
from torch.testing import assert_close

from mast_ext.losses import DINOLoss, InfoNCELoss


class Total(nn.Module):
    """A number, of all results of a call of a loss."""

    def __init__(self, loss, call):
        super().__init__()
        self.loss, self.call = loss, call

    def forward(self, x, y):
        torch.manual_seed(0)
        results = tensors_in(self.call(self.loss, x, y))
        weights = torch.Generator().manual_seed(1)
        return sum(
            (result * torch.rand(result.shape, generator=weights)).sum()
            for result in results
            if result.is_floating_point()
        )


def detached(tensors):
    return {name: tensor.detach() for name, tensor in tensors}


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_gradient_is_that_of_autograd(make, call, dtype, rounding):
    """Of the inputs and of parameters, which are a dict."""
    inputs = inputs_of(dtype)
    torch.manual_seed(0)
    module = Total(make(), call)
    parameters, buffers = detached(module.named_parameters()), detached(module.named_buffers())
    twin = copy.deepcopy(module)

    def total(parameters, inputs, buffers):
        return torch.func.functional_call(module, (parameters, buffers), inputs)

    gradient = torch.func.grad_and_value(total, argnums=(0, 1))
    (of_parameters, of_inputs), value = gradient(
        parameters, tuple(x.detach() for x in inputs), buffers
    )
    want = twin(*inputs)
    assert_close(value, want.detach())
    if not want.requires_grad:  # a choice
        assert not any(gradient.any() for gradient in (*of_parameters.values(), *of_inputs))
        return
    leaves = [*twin.parameters(), *inputs]
    plain = torch.autograd.grad(want, leaves, allow_unused=True, materialize_grads=True)
    for mine, truth in zip((*of_parameters.values(), *of_inputs), plain, strict=True):
        assert mine.dtype == truth.dtype
        assert (mine - truth).norm() <= rounding * truth.norm()


def test_training_step_without_state():
    """As programs in torch.func write it: parameters, among them the loss's own, are arguments."""
    torch.manual_seed(0)
    model, loss = nn.Linear(12, 8), InfoNCELoss(0.3, learn_temperature=True)
    module = nn.ModuleDict({"model": model, "loss": loss})
    first, second = torch.randn(2, 16, 12)

    def step(parameters):
        model, loss = (
            {name.partition(".")[2]: p for name, p in parameters.items() if name.startswith(part)}
            for part in ("model.", "loss.")
        )
        embeddings = (
            torch.func.functional_call(module["model"], model, view) for view in (first, second)
        )
        value = torch.func.functional_call(module["loss"], loss, tuple(embeddings))
        return value, value.detach()

    got, value = torch.func.grad(step, has_aux=True)(detached(module.named_parameters()))
    want = loss(model(first), model(second))
    want.backward()
    assert_close(value, want.detach())
    for name, parameter in module.named_parameters():
        assert_close(got[name], parameter.grad)
    assert got["loss.log_temperature"] != 0


def test_state_that_moves_must_be_an_argument():
    """Else torch says so: a transform's numbers would stay in it."""
    loss, teacher, student = DINOLoss(8), torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(lambda student: loss(teacher, student))(student)
