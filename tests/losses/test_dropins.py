"""The drop-in classes against lightly 1.6.0, and what goes beyond it."""

import inspect
from typing import Any

import lightly.loss
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext import losses

CONTRASTIVE = ["NTXentLoss", "DCLLoss", "DCLWLoss"]
WITH_OWN_FILES = ["DINOLoss", "IBOTPatchLoss", "KoLeoLoss", "SwaVLoss"]  # of tests
CLASSES = ["VICRegLoss", "BarlowTwinsLoss", "NegativeCosineSimilarity", *CONTRASTIVE]
SHAPES = [(2, 3), (16, 8), (9, 40), (64, 33), (5, 257)]


class Distance(torch.nn.Module):  # a module, whose name is the same in every process
    def forward(self, a, b):
        return (a - b).square().sum(1)


# Classes that divide by a temperature, from it and further arguments.
LEARNED = {
    "NTXentLoss": {},
    "DCLLoss": {},
    "DCLWLoss": {"sigma": 0.4},
    "DirectCLRLoss": {"loss_dim": 5},
    "MACLLoss": {"alpha": 0.5},
}


@pytest.mark.parametrize("of_temperature", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LEARNED)
def test_a_temperature_of_the_users_is_learned(name, of_temperature):
    """With lightly's gradient, in whatever precision it is kept."""
    views = torch.randn(2, 6, 8, dtype=torch.float64)
    grads = []
    for package in (losses, lightly.loss):
        temperature = torch.nn.Parameter(torch.tensor(0.4, dtype=of_temperature))
        loss = getattr(package, name)(temperature=temperature, **LEARNED[name])
        loss(*views).backward()
        grads.append(temperature.grad)
    assert grads[0].dtype == of_temperature
    assert_close(*grads, rtol=1e-5, atol=1e-6)


ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "VICRegLoss": [
        {},
        {"lambda_param": 3.0, "mu_param": 0.5, "nu_param": 7.0, "eps": 1e-2},
        {"gather_distributed": True},
    ],
    "BarlowTwinsLoss": [{}, {"lambda_param": 0.3}, {"gather_distributed": True}],
    "NegativeCosineSimilarity": [{}, {"dim": 0}],
    "NTXentLoss": [{}, {"temperature": 0.05}, {"gather_distributed": True}],
    "DCLLoss": [{}, {"temperature": 0.5}, {"weight_fn": Distance()}, {"gather_distributed": True}],
    "DCLWLoss": [{}, {"temperature": 0.3, "sigma": 0.2}, {"gather_distributed": True}],
}
CASES = [(name, arguments) for name in CLASSES for arguments in ARGUMENTS[name]]


def two_views(shape, device, dtype=torch.float32):
    a = torch.randn(shape, device=device)
    b = a + 0.5 * torch.randn(shape, device=device)
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


def loss_and_gradients(module, a, b):
    loss = module(a, b)
    return loss, *torch.autograd.grad(loss, (a, b))


def truth_of(module, a, b):
    """Lightly's class in float64."""
    a, b = (t.detach().cpu().double().requires_grad_() for t in (a, b))
    return loss_and_gradients(module, a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_equals_lightly(name, arguments, shape, device):
    ours, theirs = (getattr(package, name)(**arguments) for package in (losses, lightly.loss))
    a, b = two_views(shape, device)
    got, want = loss_and_gradients(ours, a, b), truth_of(theirs, a, b)
    for mine, truth in zip(got, want, strict=True):
        scale = max(1.0, truth.abs().max().item())
        assert_close(mine.cpu().double(), truth, rtol=0, atol=4e-6 * scale)


@pytest.mark.parametrize("name", [*CLASSES, *WITH_OWN_FILES])
def test_same_arguments_as_lightly(name):
    ours, theirs = (getattr(package, name) for package in (losses, lightly.loss))
    for method in ("__init__", "forward"):
        mine = inspect.signature(getattr(ours, method)).parameters
        for argument in inspect.signature(getattr(theirs, method)).parameters.values():
            assert mine[argument.name].default == argument.default
        added = list(mine.values())[len(inspect.signature(getattr(theirs, method)).parameters) :]
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        assert all(argument.kind in kinds for argument in added)


@pytest.mark.parametrize("shape", [(6, 3, 5), (4, 2, 3, 40)], ids=str)
def test_vicreg_over_positions(shape, device):
    a, b = two_views(shape, device)
    got = loss_and_gradients(losses.VICRegLoss(), a, b)
    want = truth_of(lightly.loss.VICRegLoss(), a, b)
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_negative_cosine_along_any_dimension(dim, device):
    a, b = two_views((3, 4, 5), device)
    got = loss_and_gradients(losses.NegativeCosineSimilarity(dim=dim), a, b)
    want = truth_of(lightly.loss.NegativeCosineSimilarity(dim=dim), a, b)
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-6)


def test_negative_cosine_of_small_norms(device):
    """Values as torch's; the gradient is the formula's (torch's ignores that the norm is held)."""
    a, b = two_views((16, 8), device)
    got = loss_and_gradients(losses.NegativeCosineSimilarity(eps=3.0), a, b)
    assert_close(got[0], -F.cosine_similarity(a, b, eps=3.0).mean())
    norms = [t.norm(dim=1, keepdim=True).clamp_min(3.0) for t in (a, b)]
    formula = -((a / norms[0]) * (b / norms[1])).sum(1).mean()
    for mine, theirs in zip(got[1:], torch.autograd.grad(formula, (a, b)), strict=True):
        assert_close(mine, theirs)


def test_negative_cosine_broadcasts_and_promotes(device):
    a, b = torch.randn(6, 1, 8, device=device), torch.randn(4, 8, device=device).half()
    got = losses.NegativeCosineSimilarity(dim=-1)(a, b)
    want = lightly.loss.NegativeCosineSimilarity(dim=-1)(a.cpu().double(), b.cpu().double())
    assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_negative_cosine_reductions(reduction, device):
    a, b = two_views((3, 4, 5), device)
    each = -F.cosine_similarity(a, b, dim=1)
    want = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    assert_close(losses.NegativeCosineSimilarity(reduction=reduction)(a, b), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_losses_of_16_bit_inputs_are_float32(name, dtype, device):
    a, b = two_views((32, 1024), device, dtype)  # lightly's VICReg overflows here in float16
    got = loss_and_gradients(getattr(losses, name)(), a, b)
    want = truth_of(getattr(lightly.loss, name)(), a, b)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    rounding = torch.finfo(dtype).eps
    rtol = 1e-4 if device.type == "cpu" else rounding  # products of bfloat16 stay so on CUDA
    assert_close(got[0].cpu().double(), want[0], rtol=rtol, atol=0)
    for mine, truth in zip(got[1:], want[1:], strict=True):
        assert (mine.cpu().double() - truth).norm() <= 2 * rounding * truth.norm()


def infonce_by_rows(a, b, t):
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / t
    return F.cross_entropy(logits, torch.arange(len(a)))


def dino_by_pairs(student, teacher, center, student_temp, teacher_temp):
    """Of the rows of both views, one view after the other."""
    targets = ((teacher - center) / teacher_temp).softmax(1).chunk(2)
    logs = (student / student_temp).log_softmax(1).chunk(2)
    return sum(-(targets[i] * logs[1 - i]).sum(1).mean() for i in (0, 1)) / 2


def swav_by_codes(logits, t):
    total = 0.0
    for i, other in ((0, 1), (1, 0)):
        codes = (logits[i] / 0.05).softmax(0)
        for _ in range(3):
            codes = codes / codes.sum(0) / codes.shape[1]
            codes = codes / codes.sum(1, keepdim=True) / len(codes)
        total -= (codes * len(codes) * (logits[other] / t).log_softmax(1)).sum(1).mean()
    return total / 2


def test_rows_of_the_table_of_solo_learn():
    """As docs/drop-in.md has them, against the formulas."""
    a, b = torch.randn(2, 16, 8, dtype=torch.float64)
    info_nce = losses.InfoNCELoss(0.2)
    assert_close(info_nce(a, b), infonce_by_rows(a, b, 0.2))
    assert_close(losses.InfoNCELoss(0.2, gather_distributed=True)(a, b), info_nce(a, b))
    cosine = losses.NegativeCosineSimilarity()
    assert_close(2 + 2 * cosine(a, b), (F.normalize(a) - F.normalize(b)).square().sum(1).mean())

    ours = losses.DINOLoss(8, teacher_temp=0.07, student_temp=0.1)
    for _ in range(2):  # the second time with a center
        student, teacher = torch.randn(2, 32, 8)
        want = dino_by_pairs(student, teacher, ours.center[0], 0.1, 0.07)
        assert_close(ours(teacher.view(2, 16, 8), student.view(2, 16, 8)), want)

    scores = [
        F.normalize(x, dim=1) @ F.normalize(torch.randn(8, 5), dim=0)
        for x in (a.float(), b.float())
    ]
    assert_close(losses.SwaVLoss(0.1)(scores, []), swav_by_codes(scores, 0.1))


def test_vicreg_solo_does_not_halve_the_variance(device):
    a, b = two_views((16, 8), device)
    a, b = 0.1 * a, 0.1 * b  # below the hinge
    arguments = {"lambda_param": 0.0, "nu_param": 0.0}
    official = losses.VICRegLoss(**arguments)(a, b)
    assert official > 1
    assert_close(losses.VICRegLoss(**arguments, variant="solo")(a, b), 2 * official)


def test_barlow_paper_divides_by_the_unbiased_deviation(device):
    a, b = two_views((16, 8), device)
    normal = [(t - t.mean(0)) / t.std(0) for t in (a, b)]
    c = normal[0].T @ normal[1] / 16
    eye = torch.eye(8, device=device)
    want = ((c - eye).square() * (eye + 5e-3 * (1 - eye))).sum()
    assert_close(losses.BarlowTwinsLoss(variant="paper")(a, b), want)


@pytest.mark.parametrize("name", CLASSES)
def test_compiles_whole(name, device):
    module = getattr(losses, name)()
    a, b = two_views((12, 6), device)
    want = loss_and_gradients(module, a, b)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(loss_and_gradients(compiled, a, b), want, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("name", "shapes", "error", "message"),
    [
        ("VICRegLoss", [(1, 4), (1, 4)], AssertionError, r"with B > 1, got \(1, 4\)"),
        ("VICRegLoss", [(3, 4), (3, 5)], AssertionError, r"same shape, got \(3, 4\) and \(3, 5\)"),
        ("VICRegLoss", [(3,), (3,)], AssertionError, r"shape \[B, ..., D\] with B > 1, got \(3,\)"),
        (
            "BarlowTwinsLoss",
            [(1, 4), (1, 4)],
            ValueError,
            "^z_a must hold 2 or more images, got 1$",
        ),
        (
            "BarlowTwinsLoss",
            [(3, 4), (3, 5)],
            ValueError,
            r"z_a and z_b must have one shape \[N, D\], got \[3, 4\] and \[3, 5\]",
        ),
        ("NegativeCosineSimilarity", [(3,), (3,)], IndexError, "must have the dimension dim=1"),
        ("NegativeCosineSimilarity", [(3, 4), (3, 5)], RuntimeError, "shapes that broadcast"),
    ],
)
def test_rejects_shapes(name, shapes, error, message):
    with pytest.raises(error, match=message):
        getattr(losses, name)()(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("VICRegLoss", {"variant": "paper"}, "variant must be 'official' or 'solo', got 'paper'"),
        ("BarlowTwinsLoss", {"variant": "x"}, "variant must be 'official' or 'paper', got 'x'"),
        ("NegativeCosineSimilarity", {"reduction": "max"}, "reduction must be .*, got 'max'"),
    ],
)
def test_rejects_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**arguments)


@pytest.mark.parametrize("name", ["VICRegLoss", "BarlowTwinsLoss", "KoLeoLoss", *CONTRASTIVE])
def test_gathering_needs_torch_distributed(name, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a build of torch with torch.distributed"):
        getattr(losses, name)(gather_distributed=True)


def test_pair_losses_of_vicreg_are_its_invariance_term(device):
    views = torch.randn(3, 8, 5, device=device)
    pairs = losses.VICRegLoss().pair_losses(views)
    invariance = losses.VICRegLoss(mu_param=0.0, nu_param=0.0)
    for i in range(3):
        for j in range(3):
            assert_close(pairs[i, j].mean(), invariance(views[i], views[j]))


def test_pair_losses_of_negative_cosine(device):
    views, targets = torch.randn(2, 3, 8, 5, device=device)
    pairs = losses.NegativeCosineSimilarity().pair_losses(views, targets)
    each = losses.NegativeCosineSimilarity(reduction="none")
    for i in range(3):
        for j in range(3):
            assert_close(pairs[i, j], each(views[i], targets[j]))


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_pair_losses_of_barlow_are_what_the_diagonal_pulls_on(variant, device):
    views = torch.randn(2, 64, 5, device=device)
    pairs = losses.BarlowTwinsLoss(variant=variant).pair_losses(views)
    normal = (views - views.mean(1, keepdim=True)) / views.std(1, keepdim=True, unbiased=False)
    share = 1.0 if variant == "official" else 63 / 64
    want = (1 - (normal[0] * normal[1]).mean(0)).sum() * share
    assert_close(pairs[0, 1].mean(), want, rtol=1e-4, atol=1e-4)
    assert_close(pairs[0, 0], torch.zeros_like(pairs[0, 0]))
