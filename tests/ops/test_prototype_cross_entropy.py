"""prototype_cross_entropy against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# T, S, B, C, with a center
SHAPES = [
    (2, 2, 0, 5, True),
    (1, 1, 1, 1, False),
    (2, 3, 1, 1, True),
    (1, 1, 1, 7, True),
    (2, 2, 5, 16, False),
    (2, 10, 3, 33, True),
    (4, 12, 2, 257, True),
    (3, 4, 4, 511, False),
    (1, 1, 70, 64, True),  # tokens
    (2, 2, 3, 512, True),
    (1, 3, 2, 1030, True),
    (5, 6, 2, 100, True),  # more teachers than registers are kept for
    (9, 17, 1, 21, False),
    (2, 2, 2, 2048, False),
    (4, 2, 2, 2049, True),
    (3, 2, 1, 6161, True),
    (2, 2, 1, 65537, True),
]
SMALL = [(2, 3, 4, 40, True), (1, 1, 5, 2100, False)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),  # [B, V, C] in memory
    lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),  # C is not the dense dimension
    lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],  # rows wider than C
    lambda x: x[:, :1].expand_as(x),
    lambda x: torch.cat([x.flatten(), x.flatten()])[1 : 1 + x.numel()].view_as(x),  # misaligned
]
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    """Student, teacher and center; only the first may require a gradient."""
    teachers, students, batch, prototypes, centered = shape
    student = torch.randn(students, batch, prototypes, device=device).to(dtype)
    teacher = torch.randn(teachers, batch, prototypes, device=device).to(dtype)
    accumulation = torch.promote_types(dtype, torch.float32)
    center = torch.randn(prototypes, device=device, dtype=accumulation) if centered else None
    return student.requires_grad_(requires_grad), teacher, center


def to_double(inputs):
    """Leaf copies in float64 on the CPU: where the truth is computed."""
    return tuple(t if t is None else t.detach().cpu().double() for t in inputs)


def evaluate(module, inputs, grads, **temperatures):
    """Cross-entropies, the teacher's mean, and the student's gradient."""
    student, teacher, center = inputs
    student = student.detach().requires_grad_()
    ce, mean = module.prototype_cross_entropy_with_mean(
        student, teacher, center=center, **(TEMPERATURES | temperatures)
    )
    (grad,) = torch.autograd.grad(ce, [student], grads.to(ce))
    return ce.detach(), mean, grad


def error(got, truth, scale):
    """Norm of the error, relative to that of the truth, or of `scale` where that is tiny."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(scale)).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    inputs = make_inputs(shape, device, dtype)
    grads = torch.randn(shape[:3], device=device)
    ce, mean, grad = evaluate(functional, inputs, grads)
    want_ce, want_mean, want_grad = evaluate(reference, to_double(inputs), grads)
    assert ce.dtype == mean.dtype == torch.float32 and grad.dtype == dtype
    assert ce.shape == want_ce.shape and grad.shape == want_grad.shape
    assert error(ce, want_ce, 1.0) < 1e-6
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert error(grad, want_grad, 1.0) < 2e-6 + rounding
    if shape[2] > 0:
        assert error(mean, want_mean, 1.0) < 1e-6
    else:
        assert mean.isnan().all()
    alone = functional.prototype_cross_entropy(
        inputs[0], inputs[1], center=inputs[2], **TEMPERATURES
    )
    assert torch.equal(alone, ce)


def make_data(kind, views, batch, prototypes):
    x = torch.randn(views, batch, prototypes)
    if kind == "large":
        return x.sign() * 1e4 + x * 100
    if kind == "common offset":
        return x + 1e4
    if kind == "equal":
        return torch.full_like(x, 3.0)
    if kind == "one-hot":
        return 1e4 * torch.nn.functional.one_hot(x.argmax(-1), prototypes)
    return x


@pytest.mark.parametrize("student_temperature", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("teacher_temperature", [1.0, 0.07, 0.02])
@pytest.mark.parametrize("kind", ["normal", "large", "common offset", "equal", "one-hot"])
def test_is_as_exact_as_plain_torch(kind, student_temperature, teacher_temperature, device):
    """Error against float64 at most 1.5 times that of the plain version, and rounding."""
    inputs = (
        make_data(kind, 3, 4, 2600).to(device),
        make_data(kind, 2, 4, 2600).to(device),
        torch.randn(2600, device=device),
    )
    grads = torch.randn(2, 3, 4, device=device)
    temperatures = {
        "student_temperature": student_temperature,
        "teacher_temperature": teacher_temperature,
    }
    got = evaluate(functional, inputs, grads, **temperatures)
    plain = evaluate(reference, inputs, grads, **temperatures)
    truth = evaluate(reference, to_double(inputs), grads, **temperatures)
    for mine, theirs, want in zip(got, plain, truth, strict=True):
        assert mine.isfinite().all()
        assert error(mine, want, 1.0) <= 1.5 * error(theirs, want, 1.0) + 1e-6


def test_large_logits_keep_their_digits(device):
    """Only differences from the largest count: an offset changes what it rounds away, no more."""
    student, teacher, _ = make_inputs((2, 3, 2, 700, False), device)
    student, teacher = ((t * 2**6).round() / 2**6 for t in (student, teacher))
    grads = torch.randn(2, 3, 2, device=device)
    got = evaluate(functional, (student + 2**13, teacher - 2**13, None), grads)
    want = evaluate(functional, (student, teacher, None), grads)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 3, False), (2, 3, 2, 5, True), (5, 2, 2, 9, True)], ids=str
)
def test_gradient(shape):
    torch.manual_seed(0)
    student, teacher, center = make_inputs(shape, "cpu", torch.float64, requires_grad=True)

    def ce(student):
        return functional.prototype_cross_entropy(
            student, teacher, center=center, student_temperature=0.5, teacher_temperature=0.3
        )

    assert torch.autograd.gradcheck(ce, [student])


def test_only_the_student_has_a_gradient(device):
    student, teacher, center = make_inputs((2, 3, 4, 40, True), device)
    teacher.requires_grad_()
    center.requires_grad_()
    ce, mean = functional.prototype_cross_entropy_with_mean(
        student, teacher, center=center, **TEMPERATURES
    )
    assert not ce.requires_grad and not mean.requires_grad
    student.requires_grad_()
    ce, mean = functional.prototype_cross_entropy_with_mean(
        student, teacher, center=center, **TEMPERATURES
    )
    assert ce.requires_grad and not mean.requires_grad
    ce.sum().backward()
    assert teacher.grad is None and center.grad is None and student.grad is not None


@pytest.mark.parametrize("shape", [(1, 1, 2200, 3, False), (3, 1, 300, 70, False)], ids=str)
def test_mean_of_many_rows(shape, device):
    student, teacher, _ = make_inputs(shape, device)
    teacher = teacher + 100
    _, mean = functional.prototype_cross_entropy_with_mean(student, teacher, **TEMPERATURES)
    assert_close(mean.cpu().double(), teacher.cpu().double().mean((0, 1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(2, 10, 40, 96, True), (2, 4, 3, 5000, True)], ids=str)
def test_an_image_does_not_depend_on_its_batch(shape, device):
    student, teacher, center = make_inputs(shape, device)
    whole = functional.prototype_cross_entropy(student, teacher, center=center, **TEMPERATURES)
    for b in (0, shape[2] - 1):
        alone = functional.prototype_cross_entropy(
            student[:, b : b + 1], teacher[:, b : b + 1], center=center, **TEMPERATURES
        )
        assert_close(alone[..., 0], whole[..., b])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 40, True), (2, 3, 4, 4500, False)], ids=str)
def test_non_finite_stays_in_its_row(shape, of, bad, device):
    inputs = make_inputs(shape, device)
    grads = torch.randn(shape[:3], device=device)
    ce, mean, grad = evaluate(functional, inputs, grads)
    inputs[of == "teacher"][1, 2, 7] = bad
    bad_ce, bad_mean, bad_grad = evaluate(functional, inputs, grads)
    hit, hit_grad = torch.zeros_like(ce, dtype=torch.bool), torch.zeros_like(grad).bool()
    if of == "student":
        hit[:, 1, 2], hit_grad[1, 2] = True, True
        assert torch.equal(mean, bad_mean)
    else:
        hit[1, :, 2], hit_grad[:, 2] = True, True
        assert not bad_mean[7].isfinite()
        assert torch.equal(mean[8:], bad_mean[8:]) and torch.equal(mean[:7], bad_mean[:7])
    assert bad_ce[hit].isnan().all() and bad_grad[hit_grad].isnan().any()
    assert torch.equal(bad_ce[~hit], ce[~hit]) and torch.equal(bad_grad[~hit_grad], grad[~hit_grad])


@pytest.mark.parametrize("first", [5, 2500])
def test_masked_teacher_prototypes(first, device):
    """Those of -inf have probability 0, also where that is all a chunk has."""
    student, teacher, center = make_inputs((2, 3, 2, 2600, True), device)
    teacher[..., :first] = -torch.inf
    grads = torch.randn(2, 3, 2, device=device)
    ce, _, grad = evaluate(functional, (student, teacher, center), grads)
    want_ce, _, want_grad = evaluate(reference, to_double((student, teacher, center)), grads)
    assert_close(ce.cpu().double(), want_ce, rtol=1e-5, atol=1e-5)
    assert_close(grad.cpu().double(), want_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("masked", [slice(3, 4), slice(0, 2500), slice(None)], ids=str)
def test_infinite_as_the_formula_says(masked, of, device):
    inputs = make_inputs((2, 3, 2, 2600, False), device)
    inputs[of == "teacher"][0, 1, masked] = -torch.inf
    ce = functional.prototype_cross_entropy(
        *inputs[:2], student_temperature=0.1, teacher_temperature=1.0
    )
    want = reference.prototype_cross_entropy(
        *to_double(inputs)[:2], student_temperature=0.1, teacher_temperature=1.0
    )
    assert torch.equal(ce.cpu().isnan(), want.isnan())
    assert torch.equal(ce.cpu() == torch.inf, want == torch.inf)
    assert_close(ce.cpu().double(), want, rtol=1e-5, atol=1e-5, equal_nan=True)


# With images enough for one pass on the CPU, and with fewer.
WEIGHTED = [
    (1, 1, 16, 1, False),
    (2, 3, 16, 40, True),
    (2, 10, 17, 2049, True),
    (4, 2, 33, 257, True),
    (5, 6, 20, 4100, False),
    (1, 1, 2100, 64, True),
    (2, 3, 15, 40, True),
    (2, 3, 0, 40, True),
]


def evaluate_weighted(module, inputs, weights, scale=1.0):
    """Their sum, the teacher's mean, and the student's gradient of `scale` times the sum."""
    student, teacher, center = inputs
    student = student.detach().requires_grad_()
    total, mean = module.prototype_cross_entropy_with_mean(
        student, teacher, center=center, weights=weights, **TEMPERATURES
    )
    (grad,) = torch.autograd.grad(total if scale == 1 else total * scale, [student])
    return total.detach(), mean, grad


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", WEIGHTED, ids=str)
def test_weighted_sum(shape, dtype, scale, device):
    inputs = make_inputs(shape, device, dtype)
    weights = torch.randn(shape[:3], device=device)
    total, mean, grad = evaluate_weighted(functional, inputs, weights, scale)
    want, want_mean, want_grad = evaluate_weighted(
        reference, to_double(inputs), weights.cpu().double(), scale
    )
    assert total.dtype == torch.float32 and total.shape == () and grad.dtype == dtype
    assert error(total, want, 1 + weights.abs().sum().item()) < 2e-6  # terms may cancel
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert error(grad, want_grad, 1.0) < 2e-6 + rounding
    if shape[2] > 0:
        assert error(mean, want_mean, 1.0) < 1e-6
    else:
        assert mean.isnan().all() and total == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_is_rounded_after_it_is_scaled(dtype, device):
    """A GradScaler scales the loss so that a gradient too small for float16 fits: a mean's is."""
    inputs = make_inputs((1, 2, 64, 8192, True), device, dtype)
    weights, scale = torch.full((1, 2, 64), 1 / 128, device=device), 2.0**16
    _, _, grad = evaluate_weighted(functional, inputs, weights, scale)
    *_, want = evaluate_weighted(reference, to_double(inputs), weights.cpu().double(), scale)
    error = (grad.cpu().double() - want).norm() / want.norm()
    assert error < 1e-6 + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("images", [3, 16])
def test_weights_broadcast(images, device):
    inputs = make_inputs((2, 3, images, 40, True), device)
    weights = torch.rand(2, 3, 1, device=device)
    got = evaluate_weighted(functional, inputs, weights)
    want = evaluate_weighted(functional, inputs, weights.expand(2, 3, images).contiguous())
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("images", [3, 16])
def test_weight_of_zero_leaves_a_pair_out(images, device):
    student, teacher, _ = make_inputs((2, 2, images, 40, False), device)
    weights = torch.ones(2, 2, images, device=device)
    want, *_ = evaluate_weighted(functional, (student[1:], teacher, None), weights[:, 1:])
    student[0, :, 5] = -torch.inf  # an infinite cross-entropy
    weights[:, 0] = 0
    got, _, grad = evaluate_weighted(functional, (student, teacher, None), weights)
    assert_close(got, want)
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_non_finite_stays_in_its_row_of_a_weighted_sum(of, bad, device):
    inputs = make_inputs((2, 3, 16, 4500, True), device)
    weights = torch.rand(2, 3, 16, device=device)
    _, _, grad = evaluate_weighted(functional, inputs, weights)
    inputs[of == "teacher"][1, 2, 7] = bad
    total, _, bad_grad = evaluate_weighted(functional, inputs, weights)
    hit = torch.zeros_like(grad, dtype=torch.bool)
    hit[1 if of == "student" else slice(None), 2] = True
    assert total.isnan() and bad_grad[hit].isnan().any()
    assert torch.equal(bad_grad[~hit], grad[~hit])


def test_gradient_of_weighted_sum():
    torch.manual_seed(0)
    student, teacher, center = make_inputs((2, 3, 16, 5, True), "cpu", torch.float64, True)
    weights = torch.randn(2, 3, 16, dtype=torch.float64)

    def total(student):
        return 3 * functional.prototype_cross_entropy(
            student,
            teacher,
            center=center,
            student_temperature=0.5,
            teacher_temperature=0.3,
            weights=weights,
        )

    assert torch.autograd.gradcheck(total, [student])


def test_weighted_sum_is_differentiated_as_often_as_wanted(device):
    student, teacher, center = make_inputs((2, 3, 16, 40, True), device, requires_grad=True)
    total = functional.prototype_cross_entropy(
        student, teacher, center=center, weights=torch.ones(1, device=device), **TEMPERATURES
    )
    total.backward(retain_graph=True)
    first = student.grad.clone()
    (2 * total).backward()
    assert_close(student.grad, 3 * first)


def test_weighted_sum_needs_no_gradient(device):
    inputs = make_inputs((2, 3, 16, 40, True), device)
    weights = torch.rand(2, 3, 16, device=device)
    total, mean = functional.prototype_cross_entropy_with_mean(
        *inputs[:2], center=inputs[2], weights=weights, **TEMPERATURES
    )
    want, want_mean, _ = evaluate_weighted(functional, inputs, weights)
    assert not total.requires_grad
    assert_close(total, want)
    assert_close(mean, want_mean)


# Views of a list: one, several, as many as are not stacked, and one more; and of a teacher.
LISTS = [(1, 1, 3, 40), (2, 10, 16, 2049), (3, 32, 2, 33), (2, 33, 17, 5), (33, 2, 1, 512)]


def as_lists(student, teacher, layout):
    """Views that lie apart, each in another way; those of the student are leaves."""
    layouts = [layout] if layout else [torch.clone, *LAYOUTS]
    lists = [
        [layouts[i % len(layouts)](x[None])[0].detach() for i, x in enumerate(views)]
        for views in (student, teacher)
    ]
    return [x.requires_grad_() for x in lists[0]], lists[1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", [torch.clone, None], ids=["alike", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LISTS, ids=str)
def test_lists_are_as_one_tensor(shape, dtype, layout, weighted, device):
    """The same bits, whatever the views' strides are."""
    student, teacher, center = make_inputs((*shape, True), device, dtype)
    students, teachers = as_lists(student, teacher, layout)
    given = {"center": center, **TEMPERATURES}
    if weighted:
        given["weights"] = torch.rand(shape[:3], device=device)
    found = []
    for logits, leaves in (
        ((students, teachers), students),
        ([torch.stack(students), torch.stack(teachers)], None),
    ):
        if leaves is None:
            leaves = [logits[0].detach().requires_grad_()]
            logits = (leaves[0], logits[1])
        ce, mean = functional.prototype_cross_entropy_with_mean(*logits, **given)
        grads = torch.autograd.grad(ce, leaves, torch.linspace(1, 2, ce.numel()).view_as(ce).to(ce))
        found.append((ce, mean, torch.stack(grads) if len(grads) > 1 else grads[0]))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine.view(theirs.shape), theirs)


def test_lists_and_tensors_mix(device):
    student, teacher, _ = make_inputs((2, 3, 4, 40, False), device)
    want = functional.prototype_cross_entropy(student, teacher, **TEMPERATURES)
    for logits in ((list(student), teacher), (student, tuple(teacher))):
        assert torch.equal(functional.prototype_cross_entropy(*logits, **TEMPERATURES), want)


def test_lists_are_neither_stacked_nor_split(device):
    student, teacher, _ = make_inputs((2, 3, 16, 40, False), device)
    students, teachers = [x.clone().requires_grad_() for x in student], list(teacher)
    for weights in (None, torch.ones(1, device=device)):
        with torch.profiler.profile() as profile:
            ce = functional.prototype_cross_entropy(
                students, teachers, weights=weights, **TEMPERATURES
            )
            torch.autograd.grad(ce.sum(), students)
        called = {event.name for event in profile.events()}
        assert not called & {"aten::stack", "aten::cat", "aten::split", "aten::unbind"}


def test_gradient_of_some_views_of_a_list(device):
    student, teacher, _ = make_inputs((2, 3, 16, 40, False), device)
    want = evaluate_weighted(functional, (student, teacher, None), torch.ones(1, device=device))
    for weights in (None, torch.ones(1, device=device)):
        students = [x.clone() for x in student]
        students[1].requires_grad_()
        ce = functional.prototype_cross_entropy(students, teacher, weights=weights, **TEMPERATURES)
        ce.sum().backward()
        assert students[0].grad is None and students[2].grad is None
        assert_close(students[1].grad, want[2][1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda views: [], r"at least one, got \[\]"),
        (lambda views: views[:1] * 2 + [views[2][:2]], r"one shape \[B, C\].* and \[2, 5\]"),
        (lambda views: [x[None] for x in views], r"one shape \[B, C\].*\[1, 3, 5\]"),
        (lambda views: [views[0][None]], r"one shape \[B, C\].*\[1, 3, 5\]"),
        (lambda views: views * 11 + [views[0][:, :2]], r"one shape \[B, C\].*\[3, 2\]"),
    ],
)
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_lists_of_no_views_are_refused(which, bad, message, device):
    views = list(torch.randn(3, 3, 5, device=device))
    logits = {"student": views, "teacher": views, which: bad(views)}
    with pytest.raises(ValueError, match=f"{which} must hold views.*{message}"):
        functional.prototype_cross_entropy(**logits, **TEMPERATURES)


@pytest.mark.parametrize("bad", [3, [torch.ones(3, 5), 2.0], None])
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_lists_of_no_tensors_are_refused(which, bad):
    logits = {"student": torch.ones(1, 3, 5), "teacher": torch.ones(1, 3, 5), which: bad}
    with pytest.raises(TypeError, match=rf"{which}(\[\d\])? must be a tensor"):
        functional.prototype_cross_entropy(**logits, **TEMPERATURES)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_lists_of_two_dtypes_are_refused(which, device):
    views = [torch.ones(3, 5, device=device), torch.ones(3, 5, device=device).bfloat16()]
    logits = {"student": views[:1] * 2, "teacher": views[:1] * 2, which: views}
    with pytest.raises(TypeError, match=f"{which} must be Float like .*, got BFloat16"):
        functional.prototype_cross_entropy(**logits, **TEMPERATURES)


def test_op_with_grad_refuses_float16():
    student, teacher, _ = make_inputs((1, 1, 16, 8, False), "cpu", torch.float16)
    with pytest.raises(TypeError, match="student must be float32, bfloat16 or float64"):
        ops.prototype_cross_entropy.with_grad_op(
            [student], [teacher], None, torch.ones(1, 1, 16), 0.1, 0.07, False
        )


@pytest.mark.parametrize("batch", [3, 16])
def test_what_gets_no_gradient_stays_out_of_the_graph(device, batch):
    """Two losses of one teacher: the first one's backward must not free, or visit, its graph."""
    student, teacher, center = make_inputs((2, 1, batch, 8, True), device, requires_grad=True)
    scale = torch.ones((), device=device, requires_grad=True)
    given = {"center": center * scale, "weights": torch.ones(1, device=device) * scale}
    seen = teacher * scale
    seen.register_hook(lambda grad: pytest.fail("the teacher was differentiated"))
    for _ in range(2):
        total = functional.prototype_cross_entropy(student, seen, **given, **TEMPERATURES)
        total.backward()
    assert scale.grad is None


def test_gradient_of_a_kept_graph_is_a_copy(device):
    student, teacher, _ = make_inputs((2, 2, 16, 8, False), device, requires_grad=True)
    total = functional.prototype_cross_entropy(
        student, teacher, weights=torch.ones(1, device=device), **TEMPERATURES
    )
    (first,) = torch.autograd.grad(total, [student], retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(total, [student])
    assert_close(second, expected)
