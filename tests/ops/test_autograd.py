"""What the derivatives of all ops have in common: csrc/binding/autograd.cpp."""

import gc
import threading
import weakref

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mast_ext import functional

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.07}
TEACHER = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))

# op(x [2, 16, 4], masks [3, 4]), and whether it uses masks; inputs in between are not given.
OPS = {
    "subspace_similarity": (lambda x, masks: functional.subspace_similarity(x, masks=masks), True),
    "subspace_nll": (
        lambda x, masks: functional.subspace_nll(x, x.detach(), masks=masks),
        True,
    ),
    "variance_covariance": (lambda x, masks: functional.variance_covariance(x, masks)[1], True),
    "cross_correlation_penalty": (
        lambda x, _: functional.cross_correlation_penalty(x[0], x[1], lambda_=0.1),
        False,
    ),
    "contrastive_logsumexp": (
        lambda x, masks: functional.contrastive_logsumexp(x, masks=masks, temperature=0.5)[0],
        True,
    ),
    "prototype_cross_entropy": (
        lambda x, _: functional.prototype_cross_entropy(x, TEACHER.to(x), **TEMPERATURES),
        False,
    ),
    "weighted_prototype_cross_entropy": (
        lambda x, _: functional.prototype_cross_entropy(
            x, TEACHER.to(x), weights=x.new_tensor([[0.5], [2.0]])[..., None], **TEMPERATURES
        ),
        False,
    ),
    "nearest_neighbor_distance": (
        lambda x, _: functional.nearest_neighbor_distance(x[0])[0],
        False,
    ),
    "gather_views": (
        lambda x, _: functional.gather_views(x, torch.ones(1, 16, device=x.device).long()),
        False,
    ),
}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param][0]


@pytest.fixture
def inputs(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 4, generator=generator).to(device)
    masks = torch.rand(3, 4, generator=generator).to(device)
    return x.requires_grad_(), masks.requires_grad_()


def gradients(loss, inputs, **options):
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True, **options)


def test_no_graph_where_nothing_needs_it(op, inputs):
    detached = [t.detach() for t in inputs]
    assert op(*inputs).requires_grad
    assert not op(*detached).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = op(*inputs)
        assert not result.requires_grad
        assert_close(result, op(*detached))


@pytest.mark.parametrize("name", [name for name, (_, has_masks) in OPS.items() if has_masks])
def test_one_input_alone(name, inputs):
    op = OPS[name][0]
    x, masks = inputs
    both = gradients(op(x, masks).square().sum(), [x, masks])
    assert_close(gradients(op(x, masks.detach()).square().sum(), [x])[0], both[0])
    assert_close(gradients(op(x.detach(), masks).square().sum(), [masks])[0], both[1])
    assert_close(gradients(op(x, masks).square().sum(), [masks])[0], both[1])


def test_graph_is_used_once_unless_retained(op, inputs):
    loss = op(*inputs).sum()
    first = gradients(loss, inputs, retain_graph=True)
    second = gradients(loss, inputs)
    for a, b in zip(first, second, strict=True):
        assert_close(a, b)
    with pytest.raises(RuntimeError, match="a second time"):
        gradients(loss, inputs)


@pytest.mark.parametrize("name", sorted(OPS.keys() - {"weighted_prototype_cross_entropy"}))
def test_input_changed_in_place_is_an_error(name, inputs):
    if name == "gather_views":
        index = torch.ones(1, 16, device=inputs[0].device).long()
        loss, changed = functional.gather_views(inputs[0], index).sum(), index
    else:
        changed = inputs[0] * 1
        loss = OPS[name][0](changed, inputs[1]).sum()
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpoint(reentrant, op, inputs):
    want = gradients(op(*inputs).sum(), inputs)
    checkpoint(op, *inputs, use_reentrant=reentrant).sum().backward()
    for t, grad in zip(inputs, want, strict=True):
        assert_close(torch.zeros_like(t) if t.grad is None else t.grad, grad)


def test_backward_from_another_thread(op, inputs):
    loss = op(*inputs).sum()
    want = gradients(loss, inputs, retain_graph=True)
    got = []
    thread = threading.Thread(target=lambda: got.extend(gradients(loss, inputs)))
    thread.start()
    thread.join()
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_graph_is_freed_without_the_collector(op, inputs):
    gc.disable()
    try:
        freed = weakref.ref(op(*inputs))
        assert freed() is None
    finally:
        gc.enable()


def test_compiled_autograd(op, inputs):
    want = gradients(op(*inputs).square().sum(), inputs)
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        op(*inputs).square().sum().backward()
    for t, grad in zip(inputs, want, strict=True):
        assert_close(torch.zeros_like(t) if t.grad is None else t.grad, grad)
