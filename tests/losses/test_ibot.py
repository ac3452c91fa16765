"""IBOTPatchLoss against lightly's over several steps, and what goes beyond it."""

import lightly.loss
import pytest
import torch
from torch.testing import assert_close

from mast_ext import losses

PROTOTYPES = 9
SHARES = [0.0, 0.3, 1.0]  # of the tokens that are masked


def make_batch(device="cpu", share=0.3, dtype=torch.float32, batch=(4,), prototypes=PROTOTYPES):
    """The teacher's logits of all tokens, the student's of the masked ones, and the mask."""
    mask = torch.rand(*batch, 3, 5, device=device) < share
    mask[..., 0, :, :] &= share == 1  # an image without a masked token
    teacher = (0.5 * torch.randn(mask.numel(), prototypes, device=device)).to(dtype)
    student = (0.5 * torch.randn(int(mask.sum()), prototypes, device=device)).to(dtype)
    return teacher.requires_grad_(), student.requires_grad_(), mask


def masked_only(teacher, student, mask):
    return teacher[mask.flatten()], student, mask


def loss_and_gradient(module, teacher, student, mask, **keywords):
    loss = module(teacher, student, mask, **keywords)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def truth_of(module, teacher, student, mask, **keywords):
    """Lightly's class in float64."""
    teacher, student = (t.detach().cpu().double() for t in (teacher, student))
    return loss_and_gradient(module, teacher, student.requires_grad_(), mask.cpu(), **keywords)


def cross_entropies(teacher, student, center=0.0):
    teacher, student = (t.detach().cpu().double() for t in (teacher, student))
    target = ((teacher - center) / 0.04).softmax(-1)
    return -(target * (student / 0.1).log_softmax(-1)).sum(-1)


@pytest.mark.parametrize(
    "arguments", [{}, {"teacher_temp": 0.1, "student_temp": 0.3, "center_momentum": 0.5}], ids=str
)
def test_equals_lightly_step_by_step(arguments, device):
    ours = losses.IBOTPatchLoss(PROTOTYPES, **arguments).to(device)
    theirs = lightly.loss.IBOTPatchLoss(PROTOTYPES, **arguments).double()
    for keywords in ({}, {"teacher_temp": 0.07}, {}):
        for share in SHARES[1:]:
            batch = masked_only(*make_batch(device, share))
            got = loss_and_gradient(ours, *batch, **keywords)
            want = truth_of(theirs, *batch, **keywords)
            for mine, truth in zip(got, want, strict=True):
                assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-6)
            center = ours.center.value.cpu().double()
            assert_close(center, theirs.center.value, rtol=1e-5, atol=1e-6)
    assert center.abs().max() > 0


@pytest.mark.parametrize("center_tokens", ["masked", "all"])
@pytest.mark.parametrize("weighting", ["image", "token"])
@pytest.mark.parametrize("center_mode", ["mean", "sinkhorn"])
def test_without_a_masked_token(center_mode, weighting, center_tokens, device):
    """Loss 0, gradient 0; the center of masked tokens stays."""
    options = {"weighting": weighting, "center_tokens": center_tokens, "center_mode": center_mode}
    loss = losses.IBOTPatchLoss(PROTOTYPES, **options).to(device)
    teacher, _, mask = make_batch(device, 0.0)
    layer = torch.nn.Linear(3, PROTOTYPES).to(device)
    student = layer(torch.empty(0, 3, device=device))
    value = loss(teacher if center_tokens == "all" else teacher[:0], student, mask)
    value.backward()
    assert value.item() == 0 and not layer.weight.grad.any() and not layer.bias.grad.any()
    moves = center_tokens == "all" and center_mode == "mean"
    assert loss.center.value.isfinite().all() and loss.center.value.any() == moves


def test_weighs_images_or_tokens(device):
    batch = masked_only(*make_batch(device))
    ce, counts = cross_entropies(*batch[:2]), batch[2].cpu().sum((1, 2))
    sums = torch.stack([part.sum() for part in ce.split(counts.tolist())])
    for weighting, each in {
        "image": sums / counts.clamp_min(1),
        "token": sums * 4 / len(ce),
    }.items():
        want = {"mean": each.mean(), "sum": each.sum(), "none": each}
        for reduction, truth in want.items():
            options = {"weighting": weighting, "reduction": reduction}
            got = losses.IBOTPatchLoss(PROTOTYPES, **options).to(device)(*batch)
            assert_close(got.cpu().double(), truth, rtol=1e-5, atol=1e-6)
    assert_close(each.mean(), ce.mean())
    assert len(set(counts.tolist())) > 2


@pytest.mark.parametrize("center_mode", ["mean", "sinkhorn"])
def test_center_over_all_tokens(center_mode, device):
    """The loss is that of the masked ones."""
    options = {"center_mode": center_mode, "center_momentum": 0.0}
    masked = losses.IBOTPatchLoss(PROTOTYPES, **options).to(device)
    every = losses.IBOTPatchLoss(PROTOTYPES, **options, center_tokens="all").to(device)
    teacher, student, mask = make_batch(device)
    want = loss_and_gradient(masked, *masked_only(teacher, student, mask))
    for mine, truth in zip(loss_and_gradient(every, teacher, student, mask), want, strict=True):
        assert_close(mine, truth)
    if center_mode == "mean":
        assert_close(every.center.value, teacher.detach().mean(0, keepdim=True))
    else:
        assert not every.center.value.any()


def test_sinkhorn_is_dinov2s(device):
    """Every prototype gets the same share of the tokens, every token sums to 1; three times."""
    teacher, student, mask = masked_only(*make_batch(device))
    q = (teacher.detach().cpu().double() / 0.04).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    ce = -(q * (student.detach().cpu().double() / 0.1).log_softmax(-1)).sum(-1)
    loss = losses.IBOTPatchLoss(PROTOTYPES, center_mode="sinkhorn", weighting="token").to(device)
    assert_close(loss(teacher, student, mask).cpu().double(), ce.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [(4,), (3, 4)], ids=str)
@pytest.mark.parametrize("center_tokens", ["masked", "all"])
def test_patch_losses_leave_the_center(center_tokens, batch, device):
    loss = losses.IBOTPatchLoss(PROTOTYPES, center_tokens=center_tokens).to(device)
    teacher, student, mask = make_batch(device, batch=batch)
    masked = teacher[mask.flatten()]
    before = torch.randn(1, PROTOTYPES, device=device)
    loss.center.center.copy_(before)
    got = loss.patch_losses(teacher if center_tokens == "all" else masked, student, mask)
    ce, counts = cross_entropies(masked, student, before.cpu().double()), mask.sum((-2, -1)).cpu()
    means = [part.mean() if len(part) else 0.0 for part in ce.split(counts.flatten().tolist())]
    want = torch.tensor(means, dtype=torch.float64).view(batch)
    assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss.center.value, before)


def test_the_center_moves_only_when_told(device):
    loss, (teacher, student, mask) = losses.IBOTPatchLoss(PROTOTYPES).to(device), make_batch(device)
    batch = masked_only(teacher, student, mask)
    first = loss(*batch, update_center=False)
    assert torch.equal(loss(*batch), first)
    assert not torch.equal(loss(*batch), first)
    first.backward()
    assert student.grad.any() and teacher.grad is None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_losses_of_16_bit_logits_are_float32(dtype, autocast, device):
    batch = masked_only(*make_batch(device, dtype=dtype, prototypes=129))
    ours, theirs = losses.IBOTPatchLoss(129).to(device), lightly.loss.IBOTPatchLoss(129).double()
    for _ in range(2):
        with torch.autocast(device.type, dtype, enabled=autocast):
            got = loss_and_gradient(ours, *batch)
        want = truth_of(theirs, *batch)
        assert got[0].dtype == torch.float32 and got[1].dtype == dtype
        assert_close(got[0].cpu().double(), want[0], rtol=1e-5, atol=0)
        rounding = torch.finfo(dtype).eps
        assert (got[1].cpu().double() - want[1]).norm() <= 2 * rounding * want[1].norm()


def test_checkpoints_are_lightlys(device):
    ours, theirs = (
        package.IBOTPatchLoss(PROTOTYPES).to(device) for package in (losses, lightly.loss)
    )
    batches = [masked_only(*make_batch(device)) for _ in range(3)]
    theirs(*batches[0])
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(*batches[1]), theirs(*batches[1]))
    resumed = losses.IBOTPatchLoss(PROTOTYPES).to(device)
    resumed.load_state_dict(ours.state_dict())
    assert torch.equal(resumed(*batches[2]), ours(*batches[2]))


def test_compiles_whole(device):
    loss, module = (
        losses.IBOTPatchLoss(PROTOTYPES, weighting="token").to(device) for _ in range(2)
    )
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        batch = masked_only(*make_batch(device))
        want = loss_and_gradient(loss, *batch)
        for mine, truth in zip(loss_and_gradient(compiled, *batch), want, strict=True):
            assert_close(mine, truth)
        assert_close(module.center.value, loss.center.value)


def test_a_mask_that_is_not_looked_at_gives_nan(device):
    """As on a GPU, which is not waited for."""
    loss = losses.IBOTPatchLoss(PROTOTYPES).to(device)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    teacher, student, mask = masked_only(*make_batch(device))
    mask[0, 0, 0] = ~mask[0, 0, 0]
    value, gradient = loss_and_gradient(compiled, teacher, student, mask)
    assert value.isnan() and gradient.isnan().all()


@pytest.mark.parametrize(
    ("options", "teacher", "student", "mask", "message"),
    [
        ({}, (2, 9), (2, 9), (2, 4), r"mask must have shape \[B, H, W\], got \[2, 4\]"),
        ({}, (2, 9), (3, 9), (1, 1, 2), r"teacher_out must have shape \[3, 9\], got \[2, 9\]"),
        ({}, (2, 8), (2, 9), (1, 1, 2), r"teacher_out must have shape \[2, 9\], got \[2, 8\]"),
        ({}, (2, 9), (1, 2, 9), (1, 1, 2), r"student_out must have shape \[P, C\], got \[1, 2, 9"),
        ({}, (2, 8), (2, 8), (1, 1, 2), "logits must have the width of the center, 9, got 8"),
        ({}, (3, 9), (3, 9), (1, 1, 2), "must be set for the 3 tokens of student_out, is for 2"),
        ({}, (1, 9), (1, 9), (1, 1, 2), "must be set for the 1 tokens of student_out, is for 2"),
        (
            {"center_tokens": "all"},
            (2, 9),
            (2, 9),
            (1, 2, 2),
            r"teacher_out must have shape \[4, 9\], got \[2, 9\]",
        ),
    ],
)
def test_rejects_shapes(options, teacher, student, mask, message):
    loss = losses.IBOTPatchLoss(9, **options)
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(teacher), torch.ones(student), torch.ones(mask, dtype=torch.bool))
    assert not loss.center.value.any()


def test_rejects_masks():
    loss, logits = losses.IBOTPatchLoss(9), torch.ones(2, 9)
    with pytest.raises(TypeError, match="mask must be bool, got torch.float32"):
        loss(logits, logits, torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match=r"mask must have shape \[..., H, W\], got \[2\]"):
        loss.patch_losses(logits, logits, torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_temp": 0.0}, "teacher_temp must be positive, got 0.0"),
        ({"student_temp": -1.0}, "student_temp must be positive, got -1.0"),
        ({"center_mode": "median"}, "center_mode must be 'mean' or 'sinkhorn', got 'median'"),
        ({"center_tokens": "some"}, "center_tokens must be 'masked' or 'all', got 'some'"),
        ({"weighting": "patch"}, "weighting must be 'image' or 'token', got 'patch'"),
        ({"reduction": "max"}, "reduction must be .*, got 'max'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.IBOTPatchLoss(9, **arguments)


def test_rejects_temperatures():
    batch = masked_only(*make_batch())
    for method in (losses.IBOTPatchLoss(9), losses.IBOTPatchLoss(9).patch_losses):
        with pytest.raises(ValueError, match="teacher_temp must be positive, got 0.0"):
            method(*batch, teacher_temp=0.0)
