"""What the derivatives of all operators have in common: csrc/binding/autograd.cpp."""

import gc
import threading
import weakref

import pytest
import torch
from operators import CALLS
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.dispatch

# Of every function the call with the most arguments.
MOST = {
    call.function.__name__: call
    for call in sorted(CALLS, key=lambda call: len(call.shapes(1, 1)))
    if call.differentiable
}


@pytest.fixture(params=MOST.values(), ids=str)
def call(request):
    return request.param


@pytest.fixture
def tensors(call, device):
    tensors = call.tensors(16, 4, device=device)
    return {name: t.requires_grad_(name in call.leaves) for name, t in tensors.items()}


@pytest.fixture
def inputs(call, tensors):
    """The tensors that get a gradient."""
    return [tensors[name] for name in call.leaves]


@pytest.fixture
def op(call, tensors):
    """The first result, a function of the inputs."""

    def op(*inputs):
        return call(**(tensors | dict(zip(call.leaves, inputs, strict=True))))[0]

    return op


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


def test_gradients_asked_for_one_by_one(op, inputs):
    together = gradients(op(*inputs).square().sum(), inputs)
    for leaf, grad in zip(inputs, together, strict=True):
        assert_close(gradients(op(*inputs).square().sum(), [leaf])[0], grad)


def test_graph_is_used_once_unless_retained(op, inputs):
    loss = op(*inputs).sum()
    first = gradients(loss, inputs, retain_graph=True)
    second = gradients(loss, inputs)
    for a, b in zip(first, second, strict=True):
        assert_close(a, b)
    with pytest.raises(RuntimeError, match="a second time"):
        gradients(loss, inputs)


def test_input_changed_in_place_is_an_error(tensors, op, inputs):
    if "weights" in tensors or "mask_logits" in tensors:
        pytest.skip("keeps its gradient or results, and no input")
    changed = tensors["index"] if "index" in tensors else inputs[0] * 1
    loss = op(*inputs).sum() if "index" in tensors else op(changed, *inputs[1:]).sum()
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
    compiler = torch.compile(backend="eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        op(*inputs).square().sum().backward()
    for t, grad in zip(inputs, want, strict=True):
        assert_close(torch.zeros_like(t) if t.grad is None else t.grad, grad)
