"""GramAnchoringLoss against its formula in float64, with every option of DINOv3's."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext.losses import GramAnchoringLoss

OPTIONS = [
    {},
    {"remove_neg": False},
    {"remove_neg": False, "remove_only_teacher_neg": True},
    {"per_image": False},
    {"per_image": False, "remove_neg": False},
    {"apply_norm": False, "remove_neg": False},
]


def by_definition(
    student,
    teacher,
    apply_norm=True,
    per_image=True,
    remove_neg=True,
    remove_only_teacher_neg=False,
):
    if apply_norm:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if not per_image:
        student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    own, other = student @ student.mT, teacher @ teacher.mT
    if remove_only_teacher_neg:
        own = torch.where((own < 0) & (other < 0), 0, own)
        other = other.clamp_min(0)
    if remove_neg:
        own, other = own.clamp_min(0), other.clamp_min(0)
    return F.mse_loss(own, other)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 9, 16), (2, 70, 12)], ids=str)
def test_matches_definition(shape, dtype, options, device):
    torch.manual_seed(0)
    student = torch.randn(shape).to(device, dtype).requires_grad_()
    teacher = (student.detach() + 0.3 * torch.randn(shape).to(device)).to(dtype).requires_grad_()
    loss = GramAnchoringLoss(**options)(student, teacher)
    assert loss.dtype == torch.float32
    (grad,) = torch.autograd.grad(loss, student)
    exact = student.detach().double().requires_grad_()
    truth = by_definition(exact, teacher.detach().double(), **options)
    (want,) = torch.autograd.grad(truth, exact)
    assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    rounding = max(torch.finfo(dtype).eps, 2e-6)
    assert (grad.double() - want).norm() <= rounding * want.norm()


def test_teacher_gets_no_gradient(device):
    student, teacher = torch.randn(2, 3, 5, 8, device=device, requires_grad=True).unbind()
    loss = GramAnchoringLoss()(student, teacher)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


def test_turned_features_cost_nothing(device):
    torch.manual_seed(0)
    student = torch.randn(2, 6, 8, device=device)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q.to(device)
    assert GramAnchoringLoss()(student, student @ turn) < 1e-12
    assert GramAnchoringLoss()(student, student) == 0
    assert GramAnchoringLoss()(student, student.roll(1, 1)) > 1e-2


def test_features_of_zeros_have_a_finite_gradient(device):
    student = torch.zeros(2, 4, 8, device=device, requires_grad=True)
    GramAnchoringLoss()(student, torch.randn(2, 4, 8, device=device)).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiles_whole(options, device):
    student, teacher = torch.randn(2, 3, 20, 6, device=device).unbind()
    loss = GramAnchoringLoss(**options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for each in (loss, compiled):
        leaf = student.clone().requires_grad_()
        value = each(leaf, teacher)
        found.append((value, *torch.autograd.grad(value, leaf)))
    for mine, truth in zip(*found, strict=True):
        assert_close(mine, truth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove_only_teacher_neg": True}, "remove_neg and remove_only_teacher_neg exclude"),
        ({"per_image": False, "reduction": "none"}, "'mean' unless per_image, got 'none'"),
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        GramAnchoringLoss(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 8), (4, 8), r"student_features must have shape \[B, N, D\] .* got \[4, 8\]"),
        ((2, 0, 8), (2, 0, 8), r"with N >= 1 and D >= 1, got \[2, 0, 8\]"),
        ((2, 4, 8), (2, 5, 8), r"teacher_features must have shape \[2, 4, 8\], got \[2, 5, 8\]"),
    ],
)
def test_rejects_shapes(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        GramAnchoringLoss()(torch.zeros(student), torch.zeros(teacher))


def test_a_batch_without_images_has_no_mean():
    with pytest.raises(ValueError, match="student_features must hold 1 or more images, got 0"):
        GramAnchoringLoss(per_image=False)(torch.zeros(0, 4, 8), torch.zeros(0, 4, 8))
