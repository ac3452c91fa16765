"""subspace_similarity against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# Vx, Vy (None: y is x), B, D, K (None: no masks)
SHAPES = [
    (2, None, 0, 8, 3),
    (2, None, 3, 0, 2),
    (1, None, 1, 1, None),
    (3, None, 5, 7, 2),
    (2, 3, 4, 33, 5),
    (1, 4, 17, 16, None),
    (4, None, 18, 257, 8),
    (5, 2, 3, 130, 17),
]
METRICS = ["cosine", "sqeuclidean"]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    x_views, y_views, batch, dim, subspaces = shape
    accumulation = torch.promote_types(dtype, torch.float32)
    x = torch.randn(x_views, batch, dim, device=device).to(dtype)
    y = None if y_views is None else torch.randn(y_views, batch, dim, device=device).to(dtype)
    masks = None
    if subspaces is not None:
        masks = torch.rand(subspaces, dim, device=device, dtype=accumulation)
    inputs = (x, y, masks)
    return tuple(t if t is None else t.requires_grad_(requires_grad) for t in inputs)


def to_double(tensors):
    """Leaf copies in float64 on the CPU: where the truth is computed."""
    return tuple(
        t if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad)
        for t in tensors
    )


def gradients(output, inputs, grad):
    return torch.autograd.grad(output, [t for t in inputs if t is not None], grad)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, metric, device):
    inputs = make_inputs(shape, device, dtype, requires_grad=True)
    exact = to_double(inputs)
    got = functional.subspace_similarity(*inputs, metric=metric)
    want = reference.subspace_similarity(*exact, metric=metric)
    assert got.dtype == torch.float32
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    assert_close(got.cpu().double(), want, rtol=0, atol=TOLERANCE[dtype] * scale)

    grad = torch.randn_like(got)
    for mine, truth in zip(
        gradients(got, inputs, grad), gradients(want, exact, grad.cpu().double()), strict=True
    ):
        # A 16-bit gradient is rounded once, at the very end.
        rounding = 0.0 if mine.dtype == torch.float32 else torch.finfo(mine.dtype).eps
        scale = max(1.0, truth.abs().max().item()) if truth.numel() else 1.0
        assert_close(mine.cpu().double(), truth, rtol=rounding, atol=4e-6 * scale)


def test_more_subspaces_than_a_grid_has_rows(device):
    inputs = make_inputs((2, None, 1, 4, 65_540), device, requires_grad=True)
    exact = to_double(inputs)
    got = functional.subspace_similarity(*inputs)
    want = reference.subspace_similarity(*exact)
    assert_close(got.cpu().double(), want, rtol=0, atol=1e-6)
    grad = torch.randn_like(got)
    mine = gradients(got, inputs, grad)
    truth = gradients(want, exact, grad.cpu().double())
    for a, b in zip(mine, truth, strict=True):
        assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "shape", [(1, None, 2, 3, None), (3, None, 2, 5, 2), (2, 2, 3, 4, 9)], ids=str
)
def test_gradient(shape, metric):
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", torch.float64, requires_grad=True)
    given = [t for t in inputs if t is not None]

    def similarity(*given):
        rest = iter(given)
        return functional.subspace_similarity(
            *(t if t is None else next(rest) for t in inputs), metric=metric
        )

    assert torch.autograd.gradcheck(similarity, given)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_wanted_gradients(wanted, device):
    inputs = make_inputs((2, 3, 4, 9, 3), device)
    for tensor, flag in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(flag)
    alone = torch.autograd.grad(
        functional.subspace_similarity(*inputs).sum(), [inputs[wanted.index(True)]]
    )
    every = [t.detach().requires_grad_() for t in inputs]
    together = torch.autograd.grad(functional.subspace_similarity(*every).sum(), every)
    assert_close(alone[0], together[wanted.index(True)])


def test_blank_mask_and_zero_row(device):
    x, _, masks = make_inputs((3, None, 4, 6, 2), device, requires_grad=True)
    with torch.no_grad():
        masks[0] = 0
        x[1, 2] = 0
    similarity = functional.subspace_similarity(x, masks=masks)
    assert_close(similarity[0], torch.zeros_like(similarity[0]))
    assert_close(similarity[:, 1, :, 2], torch.zeros_like(similarity[:, 1, :, 2]))
    for grad in torch.autograd.grad(similarity.sum(), [x, masks]):
        assert grad.isfinite().all()


def test_near_pairs_keep_their_digits(device):
    x = torch.randn(1, 16, 512, device=device)
    y = x + 1e-3 * torch.randn_like(x)
    got = functional.subspace_similarity(x, y, metric="sqeuclidean").cpu().double()
    want = reference.subspace_similarity(x.cpu().double(), y.cpu().double(), metric="sqeuclidean")
    assert_close(got, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_stays_in_its_image(bad, metric, device):
    x, _, masks = make_inputs((3, None, 5, 20, 2), device)
    clean = functional.subspace_similarity(x, masks=masks, metric=metric)
    x[1, 3, 7] = bad
    got = functional.subspace_similarity(x, masks=masks, metric=metric)
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[:, 1, :, 3] = touched[:, :, 1, 3] = True
    assert not got[touched].isfinite().any()
    assert_close(got[~touched], clean[~touched], rtol=0, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_same_bits_twice_and_on_any_number_of_threads(metric, device):
    x, y, masks = make_inputs((3, 2, 300, 70, 5), device, requires_grad=True)

    def run():
        similarity = functional.subspace_similarity(x, y, masks, metric=metric)
        return similarity, *torch.autograd.grad(similarity.square().sum(), [x, y, masks])

    threads = torch.get_num_threads()
    first = run()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        second = run()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),  # [B, V, D] in memory
        lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),  # D is not the dense dimension
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],  # rows wider than D
        lambda x: x[:, :1].expand_as(x),
        lambda x: torch.cat([x.flatten(), x.flatten()])[1 : 1 + x.numel()].view_as(x),  # misaligned
    ],
)
def test_strides(layout, device):
    x, y, masks = make_inputs((2, 3, 6, 8, 2), device)
    x, y = layout(x), layout(y)
    got = functional.subspace_similarity(x, y, masks)
    assert_close(
        got, functional.subspace_similarity(x.clone(), y.clone(), masks), rtol=0, atol=1e-6
    )


def test_self_comparison_is_symmetric(device):
    x, _, masks = make_inputs((4, None, 6, 40, 3), device)
    similarity = functional.subspace_similarity(x, masks=masks)
    assert torch.equal(similarity, similarity.transpose(1, 2))
    assert_close(similarity, functional.subspace_similarity(x, x.clone(), masks))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", [(3, None, 2, 5, None), (2, 3, 4, 6, 2)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_registration(metric, shape, requires_grad, device):
    inputs = make_inputs(shape, device, torch.float32, requires_grad)
    torch.library.opcheck(ops.subspace_similarity.op, (*inputs, metric, 1e-6))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False)])
def test_registration_of_backward(wanted, metric, device):
    inputs = make_inputs((2, 3, 4, 6, 2), device)
    outputs = ops.subspace_similarity.op(*inputs, metric, 1e-6)
    grad = torch.randn_like(outputs[0])
    torch.library.opcheck(
        ops.subspace_similarity.backward_op, (grad, *inputs, *outputs, metric, 1e-6, wanted)
    )


def test_compiles_whole(device):
    x, y, masks = make_inputs((2, 2, 5, 12, 3), device, requires_grad=True)

    def step(x, y, masks):
        return functional.subspace_similarity(x * 2, y, masks).sum()

    want = torch.autograd.grad(step(x, y, masks), [x, y, masks])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(x, y, masks), [x, y, masks]), want, strict=True):
        assert_close(a, b)


def test_under_autocast(device):
    layer = torch.nn.Linear(8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        x = layer(torch.randn(6, 8, device=device)).view(2, 3, 8)
        similarity = functional.subspace_similarity(x, masks=torch.rand(2, 8, device=device))
    assert x.dtype == torch.bfloat16 and similarity.dtype == torch.float32
    similarity.sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_second_derivative_is_refused(device):
    x = torch.randn(2, 3, 4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(
        functional.subspace_similarity(x).square().sum(), [x], create_graph=True
    )
    with pytest.raises(RuntimeError, match="subspace_similarity has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(3, 5)}, ValueError, r"x must have shape \[Vx, B, D\], got \[3, 5\]"),
        (
            {"y": torch.ones(2, 3, 4)},
            ValueError,
            r"y must have shape \[Vy, 3, 5\] to fit x of shape \[2, 3, 5\], got \[2, 3, 4\]",
        ),
        ({"y": torch.ones(2, 3, 5).half()}, TypeError, "y must be Float like x, got Half"),
        ({"x": torch.ones(2, 3, 5).long()}, TypeError, "x must be float32, .* got Long"),
        (
            {"masks": torch.ones(5)},
            ValueError,
            r"masks must have shape \[K, 5\] to fit x of shape \[2, 3, 5\], got \[5\]",
        ),
        ({"masks": torch.ones(2, 5).double()}, TypeError, "masks must be Float beside Float embed"),
        (
            {"masks": torch.tensor([[1.0, -0.5, 0, 0, 0]])},
            ValueError,
            "masks must be non-negative, got a minimum of -0.5",
        ),
        ({"metric": "dot"}, ValueError, "metric must be 'cosine' or 'sqeuclidean', got 'dot'"),
        ({"eps": 0.0}, ValueError, "eps must be positive, got 0"),
    ],
)
def test_rejects(change, error, message):
    inputs = {
        "x": torch.ones(2, 3, 5),
        "y": torch.ones(2, 3, 5),
        "masks": torch.ones(2, 5),
    } | change
    with pytest.raises(error, match=message):
        functional.subspace_similarity(**inputs)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_rejects_other_devices(device):
    x = torch.ones(2, 3, 5, device=device)
    with pytest.raises(ValueError, match="masks must be on cuda:0 like x, got cpu"):
        functional.subspace_similarity(x, masks=torch.ones(2, 5))
