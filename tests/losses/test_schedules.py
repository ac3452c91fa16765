"""Numbers that change at every step of a compiled loop: as without a compiler, compiled twice."""

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from mast_ext import functional, losses

STEPS = 12  # torch.compile gives up after eight programs
DIM = 8


def mast(**options):
    return losses.MASTLoss(losses.AugmentationMasks((0.25, 0.0, 0.5), DIM), **options)


def dino(**options):
    return losses.DINOLoss(DIM, **options)


def embeddings(device):
    return (torch.randn(6, DIM, device=device),)


def two_views(device):
    return tuple(torch.randn(2, 6, DIM, device=device))


def stacked_views(device):
    return tuple(torch.randn(2, 2, 6, DIM, device=device))


def crops(device):
    return torch.randn(2, 6, DIM, device=device), torch.randn(3, 6, DIM, device=device)


def patches(device):
    mask = torch.arange(16, device=device).view(4, 2, 2) % 3 == 0
    teacher, student = torch.randn(2, 6, DIM, device=device)
    return teacher, student, mask


def pairs(device):
    return *two_views(device), torch.arange(18, device=device).view(6, 3) % 2 == 0


# What changes: an argument of the call, or an attribute of the loss or of a part of it.
CASES: dict[str, tuple[Any, ...]] = {
    "DINOLoss teacher_temp": (dino, crops, "argument teacher_temp"),
    "DINOLoss sinkhorn": (
        lambda: dino(center_mode="sinkhorn"),
        crops,
        "argument teacher_temp",
    ),
    "DINOLoss attribute": (dino, crops, "teacher_temp"),
    "DINOLoss student_temp": (dino, crops, "student_temp"),
    "DINOLoss center_momentum": (dino, crops, "momentum"),
    "IBOTPatchLoss teacher_temp": (
        lambda: losses.IBOTPatchLoss(DIM),
        patches,
        "argument teacher_temp",
    ),
    "IBOTPatchLoss sinkhorn": (
        lambda: losses.IBOTPatchLoss(DIM, center_mode="sinkhorn", reduction="none"),
        patches,
        "argument teacher_temp",
    ),
    "SwaVLoss temperature": (losses.SwaVLoss, crops, "temperature"),
    "SwaVLoss sinkhorn_epsilon": (losses.SwaVLoss, crops, "sinkhorn_epsilon"),
    "NTXentLoss": (losses.NTXentLoss, two_views, "temperature"),
    "NTXentLoss bank": (
        lambda: losses.NTXentLoss(memory_bank_size=(5, DIM)),
        two_views,
        "temperature",
    ),
    "BarlowTwinsLoss": (losses.BarlowTwinsLoss, two_views, "lambda_param"),
    "BarlowTwinsLoss paper": (
        lambda: losses.BarlowTwinsLoss(variant="paper"),
        two_views,
        "lambda_param",
    ),
    "KoLeoLoss eps": (losses.KoLeoLoss, embeddings, "eps"),
    "KoLeoLoss p": (lambda: losses.KoLeoLoss(3.0), embeddings, "p"),
    "KoLeoLoss topk eps": (lambda: losses.KoLeoLoss(topk=2), embeddings, "eps"),
    "KoLeoLoss topk p": (lambda: losses.KoLeoLoss(3.0, topk=2), embeddings, "p"),
    "DCLLoss": (losses.DCLLoss, two_views, "temperature"),
    "DCLWLoss sigma": (losses.DCLWLoss, two_views, "sigma"),
    "EquivarianceLoss": (losses.EquivarianceLoss, stacked_views, "temperature"),
    "SigLIPLoss": (losses.SigLIPLoss, two_views, "logit_scale"),
    "SigLIPLoss argument": (losses.SigLIPLoss, two_views, "argument logit_bias"),
    "VICRegLoss mu_param": (losses.VICRegLoss, two_views, "mu_param"),
    "VICRegLoss lambda_param": (losses.VICRegLoss, two_views, "lambda_param"),
    "MASTLoss invariance": (mast, pairs, "invariance"),
    "MASTLoss sharpness": (mast, pairs, "masks.sharpness"),
    "MASTLoss nt_xent": (lambda: mast(base="nt_xent"), pairs, "temperature"),
}


def step(module, original, inputs, change, value):
    """The loss and its gradients at a value."""
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    given = {}
    if change.startswith("argument "):
        given[change.removeprefix("argument ")] = value
    else:
        *path, attribute = change.split(".")
        owner = original.get_submodule(".".join(path))
        assert hasattr(owner, attribute)
        setattr(owner, attribute, value)
    loss = module(*inputs, **given)
    loss = loss.loss if isinstance(loss, losses.MASTTerms) else loss
    loss.sum().backward()
    return loss.detach(), *(x.grad for x in inputs if x.grad is not None)


@pytest.mark.parametrize("name", CASES)
def test_compiles_twice(name, device):
    make, inputs, change = CASES[name]
    want = make().to(device)
    loss = copy.deepcopy(want)
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for i in range(STEPS):
        value, batch = 0.3 + i / 50, inputs(device)
        truth = step(want, want, batch, change, value)
        for mine, theirs in zip(step(compiled, loss, batch, change, value), truth, strict=True):
            assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(loss.state_dict().values(), want.state_dict().values(), strict=True):
        assert_close(mine, theirs)
    assert counter.frame_count <= 2


def test_a_schedule_by_epoch_compiles_a_few_times(device):
    """Epochs 0 and 1 by themselves, as torch does all sizes; the warm-up; and what follows it."""
    loss, batch = dino(warmup_teacher_temp=0.1, warmup_teacher_temp_epochs=9), crops(device)
    loss = loss.to(device)
    want = copy.deepcopy(loss)
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for epoch in range(STEPS):
        assert_close(compiled(*batch, epoch=epoch), want(*batch, epoch=epoch))
    assert counter.frame_count <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_functions_compile_twice(dtype, device):
    """With what no loss asks for: a mean and broadcast weights, a sum without a center."""

    def function(x, y, weights, temperature):
        ce, mean = functional.prototype_cross_entropy_with_mean(
            x, y, student_temperature=1.0, teacher_temperature=temperature, weights=weights
        )
        mass = functional.prototype_column_logsumexp(y[0], temperature=temperature)
        lse, _ = functional.contrastive_logsumexp(x, temperature=temperature)
        return ce + mean.sum() + mass.sum() + lse.sum()

    x, y = torch.randn(2, 3, 6, DIM, device=device, dtype=dtype)
    weights = torch.eye(3, device=device).unsqueeze(-1)
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for i in range(STEPS):
        inputs = x.clone().requires_grad_(), y, weights, 0.3 + i / 50
        results = []
        for each in (function, compiled):
            value = each(*inputs)
            results.append((value, *torch.autograd.grad(value, inputs[0])))
        for mine, theirs in zip(*results, strict=True):
            assert_close(mine, theirs)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("attribute", ["fraction", "temperature"])
def test_hard_view_selection_compiles_twice(attribute, device):
    selector = losses.HardViewSelector(
        strategy="softmax" if attribute == "temperature" else "argmax"
    )
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(selector, backend=counter, fullgraph=True)
    for i in range(STEPS):
        pair_losses = torch.rand(3, 3, 40, device=device)
        setattr(selector, attribute, 0.1 + i / 20)
        results = []
        for each in (selector, compiled):
            torch.manual_seed(i)
            results.append(each(pair_losses))
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)
    assert counter.frame_count <= 2


def test_gradient_of_one_view_alone(device):
    """The other one, as that of a teacher, has none."""
    loss = losses.BarlowTwinsLoss().to(device)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for i in range(4):
        loss.lambda_param = 0.1 + i / 50
        a, b = two_views(device)
        a.requires_grad_()
        grads = [torch.autograd.grad(each(a, b), a)[0] for each in (loss, compiled)]
        assert_close(*grads)


def test_operators_return_what_those_of_their_names_do():
    """torch does not compare what a Python operator returns with its schema: it would crash."""
    scheduled = [
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mast_ext_scheduled::")
    ]
    assert "cross_correlation_penalty" in scheduled
    for name in scheduled:
        own, native = (
            getattr(getattr(torch.ops, library), name).default._schema.returns
            for library in ("mast_ext_scheduled", "mast_ext")
        )
        assert [str(each.type) for each in own] == [str(each.type) for each in native], name
