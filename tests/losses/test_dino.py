"""DINOLoss against lightly's over several steps, and what goes beyond it."""

import lightly.loss
import pytest
import torch
from torch.testing import assert_close

from mast_ext import losses

SHAPES = [
    (2, 2, 3, 5),
    (2, 6, 4, 33),
    (2, 6, 18, 33),
    (1, 2, 1, 1),
    (1, 3, 2, 16),
    (2, 1, 2, 8),
    (4, 12, 1, 257),
]
ARGUMENTS = [
    {},
    {"warmup_teacher_temp": 0.02, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 3},
    {
        "warmup_teacher_temp": 0.02,
        "warmup_teacher_temp_epochs": 1,
        "student_temp": 0.3,
        "center_momentum": 0.5,
    },
    {"warmup_teacher_temp_epochs": 0, "teacher_temp": 1.0},
]
TEMPERATURES = [{}, {"epoch": 0}, {"epoch": 1}, {"epoch": 5}, {"teacher_temp": 0.1, "epoch": 1}]


def make_logits(shape, device="cpu", dtype=torch.float32, scale=0.5):
    """The teacher's, which ask for a gradient that they must not get, and the student's."""
    teachers, students, batch, prototypes = shape
    teacher = scale * torch.randn(teachers, batch, prototypes, device=device)
    student = scale * torch.randn(students, batch, prototypes, device=device)
    return tuple(logits.to(dtype).requires_grad_() for logits in (teacher, student))


def loss_and_gradient(module, teacher, student, **keywords):
    loss = module(teacher, student, **keywords)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def truth_of(module, teacher, student, **keywords):
    """Lightly's class in float64."""
    teacher, student = (t.detach().cpu().double() for t in (teacher, student))
    student.requires_grad_()
    loss = module(list(teacher), list(student), **keywords)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


def cross_entropies(teacher, student, center, teacher_temp, student_temp=0.1):
    """The definition, in float64."""
    teacher, student = (t.detach().cpu().double() for t in (teacher, student))
    target = ((teacher - center.cpu().double()) / teacher_temp).softmax(-1)
    return -torch.einsum("tbc,sbc->tsb", target, (student / student_temp).log_softmax(-1))


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_lightly_step_by_step(shape, arguments, device):
    ours = losses.DINOLoss(shape[-1], **arguments).to(device)
    theirs = lightly.loss.DINOLoss(shape[-1], **arguments).double()
    for keywords in TEMPERATURES:
        logits = make_logits(shape, device)
        got = loss_and_gradient(ours, *logits, **keywords)
        want = truth_of(theirs, *logits, **keywords)
        for mine, truth in zip(got, want, strict=True):
            assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=2e-6)
        assert_close(ours.center.cpu().double(), theirs.center, rtol=1e-5, atol=1e-6)
    assert ours.center.abs().max() > 0


def test_takes_lists_and_tensors(device):
    teacher, student = make_logits((2, 4, 3, 9), device)
    got = losses.DINOLoss(9).to(device)(list(teacher), list(student))
    assert torch.equal(got, losses.DINOLoss(9).to(device)(teacher, student))
    got.backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None


def test_lists_are_not_copied(device):
    teacher, student = ([x.detach() for x in t] for t in make_logits((2, 4, 18, 9), device))
    student = [x.requires_grad_() for x in student]
    loss = losses.DINOLoss(9).to(device)
    with torch.profiler.profile() as profile:
        torch.autograd.grad(loss(teacher, student), student)
    assert not {event.name for event in profile.events()} & {"aten::stack", "aten::cat"}


def test_lists_of_several_dtypes(device):
    """As autocast leaves them, where a view comes from another layer."""
    teacher, student = make_logits((2, 4, 18, 9), device)
    teacher, student = list(teacher.detach()), [x.detach().requires_grad_() for x in student]
    coarse = student[1].bfloat16()
    want = losses.DINOLoss(9).to(device)(teacher, [student[0], coarse.float(), *student[2:]])
    got = losses.DINOLoss(9).to(device)(teacher, [student[0], coarse, *student[2:]])
    assert torch.equal(got, want)
    (grad,) = torch.autograd.grad(got, [coarse])
    assert grad.dtype == torch.bfloat16 and grad.any()


def test_reductions(device):
    logits = make_logits((2, 4, 3, 9), device)
    ce = cross_entropies(*logits, torch.zeros(9), 0.04)
    each = (ce.sum((0, 1)) - ce[0, 0] - ce[1, 1]) / 6
    want = {"mean": each.mean(), "sum": each.sum(), "none": each}
    for reduction, truth in want.items():
        got = losses.DINOLoss(9, reduction=reduction).to(device)(*logits)
        assert_close(got.cpu().double(), truth, rtol=1e-5, atol=1e-6)


def test_crop_losses_leave_the_center(device):
    loss, logits = losses.DINOLoss(9).to(device), make_logits((4, 10, 3, 9), device)
    loss(*make_logits((4, 10, 3, 9), device))
    before = loss.center.clone()
    for temperature in ({}, {"teacher_temp": 0.2}, {"epoch": 2}):
        got = loss.crop_losses(*logits, **temperature)
        truth = cross_entropies(*logits, before, temperature.get("teacher_temp", 0.04))
        assert got.shape == (4, 10, 3)
        assert_close(got.cpu().double(), truth, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss.center, before)


def test_the_center_moves_only_when_told(device):
    loss, logits = losses.DINOLoss(9).to(device), make_logits((2, 2, 3, 9), device)
    first = loss(*logits, update_center=False)
    assert torch.equal(loss(*logits), first)
    with torch.no_grad():
        assert not torch.equal(loss(*logits), first)
    before = loss.center.clone()
    loss.update_center(logits[0])
    assert not torch.equal(loss.center, before)


def test_gradient_sees_the_center_of_its_forward_pass(device):
    """A second step moves the center before the first goes backward."""
    first, second = make_logits((2, 3, 4, 9), device), make_logits((2, 3, 4, 9), device)
    want = loss_and_gradient(losses.DINOLoss(9).to(device), *first)[1]
    loss = losses.DINOLoss(9).to(device)
    value = loss(*first)
    loss(*second)
    assert torch.equal(torch.autograd.grad(value, first[1])[0], want)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_losses_of_16_bit_logits_are_float32(dtype, autocast, device):
    """Lightly's raises for them."""
    logits = make_logits((2, 4, 8, 129), device, dtype)
    ours, theirs = losses.DINOLoss(129).to(device), lightly.loss.DINOLoss(129).double()
    for _ in range(2):
        with torch.autocast(device.type, dtype, enabled=autocast):
            got = loss_and_gradient(ours, *logits)
        want = truth_of(theirs, *logits)
        assert got[0].dtype == ours.center.dtype == torch.float32 and got[1].dtype == dtype
        assert_close(got[0].cpu().double(), want[0], rtol=1e-5, atol=0)
        rounding = torch.finfo(dtype).eps
        assert (got[1].cpu().double() - want[1]).norm() <= 2 * rounding * want[1].norm()


def test_dtypes_may_differ(device):
    teacher, student = make_logits((2, 3, 4, 9), device)
    got = losses.DINOLoss(9).to(device)(teacher, student.bfloat16())
    want = losses.DINOLoss(9).to(device)(teacher, student.bfloat16().float())
    assert torch.equal(got, want)


def test_large_logits_stay_finite(device):
    logits = make_logits((2, 3, 4, 65), device, scale=1e4)
    got = loss_and_gradient(losses.DINOLoss(65).to(device), *logits)
    for mine, truth in zip(got, truth_of(lightly.loss.DINOLoss(65), *logits), strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-6)


def test_a_nan_stays_with_its_image(device):
    teacher, student = make_logits((2, 4, 3, 9), device)
    with torch.no_grad():
        student[0, 1, 5] = torch.nan  # also in the pair of a view with itself
    loss = losses.DINOLoss(9, reduction="none").to(device)
    each, gradient = loss_and_gradient(loss, teacher, student)
    assert each.isnan().tolist() == [False, True, False]
    assert gradient[:, [0, 2]].isfinite().all() and gradient[0, 1].isnan().all()
    assert gradient[1:].isfinite().all() and loss.center.isfinite().all()


def test_sinkhorn_is_dinov2s(device):
    """Every prototype gets the same share of the batch, every view sums to 1; three times."""
    loss = losses.DINOLoss(9, center_mode="sinkhorn").to(device)
    teacher, student = make_logits((2, 3, 4, 9), device, scale=0.1)
    loss(*make_logits((2, 3, 4, 9), device))
    q = (teacher.detach().cpu().double() / 0.04).exp().flatten(0, 1)
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    log_p = (student.detach().cpu().double() / 0.1).log_softmax(-1)
    ce = -torch.einsum("tbc,sbc->tsb", q.view(2, 4, 9), log_p)
    got = loss(teacher, student)
    want = (ce.sum() - ce[0, 0].sum() - ce[1, 1].sum()) / 16
    assert_close(got, want.to(got))
    crops = loss.crop_losses(teacher, student)
    assert_close(crops, ce.to(crops))
    got.backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    assert not loss.center.any()


def test_lightlys_checkpoint_loads(device):
    ours, theirs = losses.DINOLoss(9).to(device), lightly.loss.DINOLoss(9).to(device)
    theirs(*(list(logits) for logits in make_logits((2, 3, 4, 9), device)))
    ours.load_state_dict(theirs.state_dict())
    logits = make_logits((2, 3, 4, 9), device)
    assert_close(ours(*logits), theirs(*(list(part) for part in logits)))
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("center_update", ["now", "deferred"])
def test_resumes_bit_for_bit(center_update, device):
    batches = [make_logits((2, 4, 3, 9), device) for _ in range(6)]
    loss = losses.DINOLoss(9, center_update=center_update).to(device)
    for logits in batches[:3]:
        loss(*logits)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    resumed = losses.DINOLoss(9, center_update=center_update).to(device)
    resumed.load_state_dict(state)
    for logits in batches[3:]:
        assert torch.equal(resumed(*logits), loss(*logits))
    assert torch.equal(resumed.state_dict()["center"], loss.state_dict()["center"])


@pytest.mark.parametrize("center_mode", ["mean", "sinkhorn"])
def test_compiles_whole(center_mode, device):
    made = [losses.DINOLoss(9, 0.02, 0.07, 20, center_mode=center_mode) for _ in range(2)]
    loss, module = (each.to(device) for each in made)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for epoch in (0, 1, 1):
        logits = make_logits((2, 4, 3, 9), device)
        want = loss_and_gradient(loss, *logits, epoch=epoch)
        for mine, truth in zip(
            loss_and_gradient(compiled, *logits, epoch=epoch), want, strict=True
        ):
            assert_close(mine, truth)
        assert_close(module.center, loss.center)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([(3, 9)], [(3, 9)], "compares different views, but .* hold the same single one"),
        ([], [(3, 9)] * 2, r"teacher_out must hold views .* at least one, got \[\]"),
        ([(3, 9)] * 2, [], r"student_out must hold views .* at least one, got \[\]"),
        ([(3, 9), (3, 8)], [(3, 9)] * 2, r"teacher_out must hold views of one shape .*\[3, 8\]"),
        ([(3, 9)] * 2, [(3, 9), (2, 9)], r"student_out must hold views of one shape .*\[2, 9\]"),
        (
            [(9,)] * 2,
            [(9,)] * 2,
            r"teacher_out must hold views of one shape .* got \[\[9\], \[9\]\]",
        ),
        ([(3, 9)] * 2, [(4, 9)] * 2, r"one shape \[B, C\], got \[3, 9\] and \[4, 9\]"),
        ([(3, 9)] * 2, [(3, 8)] * 2, r"one shape \[B, C\], got \[3, 9\] and \[3, 8\]"),
        ([(3, 8)] * 2, [(3, 8)] * 2, "logits must have the width of the center, 9, got 8"),
    ],
)
def test_rejects_views(teacher, student, message):
    loss = losses.DINOLoss(9)
    with pytest.raises(ValueError, match=message):
        loss(*([torch.ones(shape) for shape in shapes] for shapes in (teacher, student)))
    assert not loss.center.any()


def test_rejects_tensors_without_views():
    loss = losses.DINOLoss(9)
    for shape in [(), (3, 9), (0, 3, 9), (2, 3, 9, 1)]:
        with pytest.raises(ValueError, match=r"student_out must have shape \[V, B, C\]"):
            loss.crop_losses(torch.ones(2, 3, 9), torch.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_temp": 0.0}, "teacher_temp must be positive, got 0.0"),
        ({"warmup_teacher_temp": -1.0}, "warmup_teacher_temp must be positive, got -1.0"),
        ({"student_temp": float("nan")}, "student_temp must be positive, got nan"),
        ({"warmup_teacher_temp_epochs": -1}, "epochs must be at least 0, got -1"),
        ({"center_mode": "median"}, "center_mode must be 'mean' or 'sinkhorn', got 'median'"),
        ({"reduction": "max"}, "reduction must be .*, got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.DINOLoss(9, **arguments)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"teacher_temp": -0.1}, "teacher_temp must be positive, got -0.1"),
        ({"epoch": -1}, "epoch must be at least 0, got -1"),
    ],
)
def test_rejects_temperatures(keywords, message):
    for method in (losses.DINOLoss(9), losses.DINOLoss(9).crop_losses):
        with pytest.raises(ValueError, match=message):
            method(*make_logits((2, 2, 3, 9)), **keywords)
