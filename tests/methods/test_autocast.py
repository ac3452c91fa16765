"""Under autocast the networks of a method answer in bfloat16, and its loss is the one in float32.

Here networks compute in float32 and round what they answer, so that a step under autocast and one
without hear the same numbers.
"""

import pytest
import torch

from mast_ext.methods import METHODS, HardViewOptions, Method, SharedOptions, encode, hard_selection
from mast_ext.methods.barlow_twins import BarlowTwinsOptions
from mast_ext.methods.mast import MASTOptions
from mast_ext.methods.moco import MoCoOptions

SMALL = (12, 8)  # projector
OPTIONS = {
    "barlow_twins": BarlowTwinsOptions(SMALL, redundancy=1.0, chunks=3),
    "mast": MASTOptions(
        SMALL, shared={"crop": SharedOptions(freed=0.25), "hue": SharedOptions()}, uncertainty=True
    ),
    "moco": MoCoOptions(SMALL, queue=30, symmetric=True),
}  # by default those of conftest.py


def answer_in_bfloat16(network, kept, answers):
    """Rounds a network's answers; they are of dtype bfloat16 if ``kept``, else float32 again.

    They are leaves, listed in ``answers``: what a loss hands back ends there.
    """

    def rounding(function):
        def call(*inputs, **options):
            with torch.autocast("cpu", enabled=False):
                answer = function(*(x.float() for x in inputs), **options).detach().bfloat16()
            answer = answer if kept else answer.float()
            answers.append(answer.requires_grad_(torch.is_grad_enabled()))
            return answer

        return call

    for name in ("forward", "forward_features", "forward_head"):
        if hasattr(network, name):
            setattr(network, name, rounding(getattr(network, name)))


def networks_of(method):
    """Its heads: all that is no loss."""
    for child in method.children():
        if isinstance(child, Method):
            yield from networks_of(child)
        elif not type(child).__module__.startswith("mast_ext.losses"):
            yield child


def build(crops, name, kept, *, equimod=False):
    method, backbone, teacher = crops.build(name, OPTIONS.get(name), equimod=equimod)
    answers = []
    taught = () if teacher is None else teacher.module
    for network in (backbone, *networks_of(method), *taught):
        answer_in_bfloat16(network, kept, answers)
    return method, backbone, teacher, answers


def step(crops, name, equimod, *, autocast):
    """A training step's loss and logs, and the gradients of answers and of the loss's weights."""
    method, backbone, teacher, answers = build(crops, name, autocast, equimod=equimod)
    batch = crops.batch_of(method.policy(crops.recipe))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encoded = encode(method, backbone, teacher, batch)
        terms = method(encoded, batch)
    assert encoded.features.dtype == (torch.bfloat16 if autocast else torch.float32)
    terms["loss"].backward()
    return terms, [t.grad for t in (*answers, *method.parameters()) if t.grad is not None]


@pytest.mark.parametrize("equimod", [False, True], ids=["", "equimod"])
@pytest.mark.parametrize("name", METHODS)
def test_step(crops, name, equimod):
    terms, gradients = step(crops, name, equimod, autocast=True)
    expected, truths = step(crops, name, equimod, autocast=False)
    for term, value in terms.items():
        assert value.dtype == torch.float32, term
        torch.testing.assert_close(value, expected[term], rtol=1e-5, atol=1e-6)
    assert truths
    for gradient, truth in zip(gradients, truths, strict=True):
        rounding = torch.finfo(gradient.dtype).eps if gradient.dtype == torch.bfloat16 else 1e-5
        assert (gradient.float() - truth).norm() <= rounding * truth.norm()


@pytest.mark.parametrize("name", METHODS)
def test_hard_views(crops, name):
    """The same views are chosen, by as much."""
    found = []
    for autocast in (True, False):
        method, backbone, teacher, _ = build(crops, name, autocast)
        hard = hard_selection(method, crops.recipe, HardViewOptions(4))
        batch = crops.batch_of(hard.policy)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            chosen, logs = hard(batch, backbone, teacher, select=True)
        found.append((chosen.parameters, logs["hard_views/margin"]))
    (parameters, margin), (expected, truth) = found
    assert torch.equal(parameters, expected)
    assert margin.dtype == torch.float32
    torch.testing.assert_close(margin, truth, rtol=1e-5, atol=1e-6)
