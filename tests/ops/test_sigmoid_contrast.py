"""sigmoid_contrast against its definition, near saturation, and what is special to its forms."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

# N, M, D
SHAPES = [
    *((0, 5, 4), (1, 1, 1), (2, 2, 7), (5, 9, 16), (65, 70, 33), (70, 130, 257)),
    (140, 600, 40),  # more than a tile on a GPU, and columns in several shares
]
LOGITS = [(10.0, -10.0), (1.0, 0.0), (-3.0, 2.0)]  # scale, bias
OFFSETS = [0, 3, None]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    (shape, logits, offset)
    for shape in SHAPES
    for logits in (LOGITS if shape == (5, 9, 16) else LOGITS[:1])
    for offset in OFFSETS
    if (offset or 0) <= shape[1] - shape[0]
]
NAMES = ("x", "y", "scale", "bias")


def make_inputs(shape, logits=(10.0, -10.0), device="cpu", dtype=torch.float32):
    """x, y, scale, bias: leaves."""
    rows, columns, dim = shape
    sums = torch.promote_types(dtype, torch.float32)
    x, y = (torch.randn(n, dim).to(device, dtype) for n in (rows, columns))
    return *(t.requires_grad_() for t in (x, y)), *(
        torch.tensor(number, dtype=sums, device=device, requires_grad=True) for number in logits
    )


def to_double(tensors):
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


def with_gradients(function, inputs, grad=None, **options):
    x, y, scale, bias = inputs
    loss = function(x, y, scale=scale, bias=bias, **options)
    return loss, *torch.autograd.grad(loss, inputs, None if grad is None else grad.to(loss))


def assert_equals_definition(inputs, grad, offset, coarse=False):
    """``coarse``: the gradient's operands were rounded to bfloat16."""
    found = with_gradients(functional.sigmoid_contrast, inputs, grad, offset=offset)
    want = with_gradients(
        reference.sigmoid_contrast, to_double(inputs), grad.double(), offset=offset
    )
    assert found[0].dtype == torch.float32
    x, _, logit_scale, _ = inputs
    for name, mine, truth in zip(("loss", *NAMES), found, want, strict=True):
        assert mine.shape == truth.shape
        rounding = torch.finfo(mine.dtype).eps if mine.dtype != torch.float32 else 4e-6
        if name in ("x", "y") and coarse:
            rounding = 2e-2
        scale = truth.abs().max().item() if truth.numel() else 1.0
        if name in ("x", "y") and x.shape[1] == 1:  # cosines are 1 or -1: the gradient cancels
            scale = abs(logit_scale.item()) * grad.abs().sum().item() / x.abs().min().item()
        if name in ("scale", "bias"):  # sums over all pairs, of either sign
            scale = max(scale, grad.abs().sum().item() * 1e-1)
        assert_close(mine.cpu().double(), truth, rtol=rounding, atol=rounding * scale)


def is_coarse(device, dtype, request):
    """A GPU rounds the gradient's weights of bfloat16 embeddings, and their products."""
    emulated = request.config.getoption("--emulated-cuda")
    return dtype == torch.bfloat16 and (device.type == "cuda" or emulated)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "logits", "offset"), CASES, ids=str)
def test_matches_definition(shape, logits, offset, dtype, device, request):
    torch.manual_seed(0)
    inputs = make_inputs(shape, logits, device, dtype)
    assert_equals_definition(
        inputs, torch.randn(shape[0]), offset, is_coarse(device, dtype, request)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0, 7, None])
def test_in_chunks_of_rows(offset, dtype, device, request, chunk_limit):
    """Three of them, the last one short, for the gradient on a GPU."""
    chunk_limit(1)  # the least there is: 128 rows
    torch.manual_seed(0)
    inputs = make_inputs((300, 310, 12), device=device, dtype=dtype)
    assert_equals_definition(inputs, torch.randn(300), offset, is_coarse(device, dtype, request))


@pytest.mark.parametrize("offset", [0, 1500, None])
def test_many_rows_on_the_cpu(offset):
    """Several tiles in both directions, with positives on both sides of their borders."""
    torch.manual_seed(0)
    assert_equals_definition(make_inputs((600, 2100, 24)), torch.randn(600), offset)


@pytest.mark.parametrize("offset", [0, 1, None])
def test_gradient(offset):
    torch.manual_seed(0)
    inputs = make_inputs((4, 6, 3), (5.0, -1.0), dtype=torch.float64)

    def function(x, y, scale, bias, **options):
        return functional.sigmoid_contrast(x, y, scale=scale, bias=bias, offset=offset, **options)

    assert torch.autograd.gradcheck(function, inputs)
    weights = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: function(*given, weights=weights), inputs)


def plain(x, y, *, scale, bias, weights=None):
    """As open_clip computes it."""
    unit = [torch.nn.functional.normalize(t, dim=1, eps=1e-8) for t in (x, y)]
    logits = scale * unit[0] @ unit[1].T + bias
    signs = 2 * torch.eye(*logits.shape, device=x.device, dtype=logits.dtype) - 1
    loss = -torch.nn.functional.logsigmoid(signs * logits).sum(1)
    return loss if weights is None else (loss * weights).sum()


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(
    ("logits", "distance"),
    [
        ((60.0, -30.0), 1e-2),  # positives near 30, negatives near -30
        ((60.0, -30.0), 1.0),
        ((60.0, 30.0), 1e-2),  # all wrong: negatives near 30
        ((-60.0, 30.0), 1e-2),  # positives near -30
        ((120.0, -60.0), 1e-3),
        ((10.0, -10.0), 1e-3),
    ],
    ids=str,
)
def test_is_as_exact_as_plain_torch_near_saturation(logits, distance, summed, device):
    """Error against float64 at most 1.5 times that of the plain version, and rounding."""
    torch.manual_seed(0)
    x, _, scale, bias = make_inputs((96, 96, 64), logits, device)
    y = (x + distance * torch.randn(96, 64).to(x)).detach().requires_grad_()
    inputs = x, y, scale, bias
    options = {"weights": torch.rand(96).to(device)} if summed else {}
    exact = {name: t.cpu().double() for name, t in options.items()}
    grad = torch.ones(()) if summed else torch.randn(96)
    truth = with_gradients(plain, to_double(inputs), grad.double(), **exact)
    eager = with_gradients(plain, inputs, grad.to(device), **options)
    mine = with_gradients(functional.sigmoid_contrast, inputs, grad.to(device), **options)
    for a, b, c in zip(mine, eager, truth, strict=True):
        errors = [(got.detach().cpu().double() - c).abs().max() for got in (a, b)]
        # A logit's rounding is that of a cosine times the scale.
        rounding = max(4e-6, 2e-7 * abs(logits[0]))
        assert errors[0] <= 1.5 * errors[1] + rounding * c.abs().max()


@pytest.mark.parametrize("z", [-30.0, -80.0, 0.0, 30.0, 80.0])
def test_a_single_confident_pair_keeps_its_digits(z, device):
    """softplus(-z) is 1e-13 at 30: what is left to learn, to float32's last digits."""
    x = torch.tensor([[1.0, 0.0]], device=device)
    for offset, sign in ((0, 1.0), (None, -1.0)):
        bias = torch.tensor(sign * z, device=device, requires_grad=True)
        loss = functional.sigmoid_contrast(x, x.flip(1), scale=3.0, bias=bias, offset=offset)
        (grad,) = torch.autograd.grad(loss.sum(), [bias])
        exact = torch.tensor(z, dtype=torch.float64)
        want = torch.nn.functional.softplus(-exact, threshold=100.0)
        assert_close(loss.cpu().double(), want[None], rtol=4e-5, atol=0)
        assert_close(grad.cpu().double(), -sign * torch.sigmoid(-exact), rtol=4e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_give_the_sum_and_its_gradient(dtype, device):
    torch.manual_seed(0)
    inputs = make_inputs((40, 60, 24), device=device, dtype=dtype)
    weights = torch.rand(40, device=device)
    for factor in (None, 3.0):  # 3: the backward scales
        grad = None if factor is None else torch.tensor(factor)
        found = with_gradients(functional.sigmoid_contrast, inputs, grad, weights=weights)
        each = with_gradients(functional.sigmoid_contrast, inputs, weights * (factor or 1.0))
        assert found[0].shape == () and found[0].dtype == each[0].dtype
        assert_close(found[0], (weights * each[0]).sum())
        for mine, truth in zip(found[1:], each[1:], strict=True):
            rounding = 4 * torch.finfo(dtype).eps  # in another order, and once more
            assert_close(mine, truth, rtol=rounding, atol=rounding * truth.abs().max().item())


def test_a_kept_graph_gives_the_gradient_twice(device):
    inputs = make_inputs((6, 6, 5), device=device)
    x, y, scale, bias = inputs
    total = functional.sigmoid_contrast(x, y, scale=scale, bias=bias, weights=torch.ones(6).to(x))
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    kept = [grad.clone() for grad in first]
    for grad in first:
        grad.fill_(7.0)  # whoever has it may change it
    for again, want in zip(torch.autograd.grad(total, inputs), kept, strict=True):
        assert torch.equal(again, want)


def test_weights_broadcast_and_value_is_the_same_without_gradient(device):
    x, y, scale, bias = make_inputs((6, 6, 5), device=device)

    def total(weights):
        return functional.sigmoid_contrast(x, y, scale=scale, bias=bias, weights=weights)

    half = torch.tensor(0.5, device=device)
    assert torch.equal(total(half), total(half.expand(6)))
    with torch.no_grad():
        without = total(half)
    assert torch.equal(without, total(half).detach())


def test_numbers_and_tensors_are_the_same(device):
    x, y, *_ = make_inputs((6, 8, 5), device=device)
    for dtype in DTYPES:
        given = x.to(dtype), y.to(dtype)
        numbers = functional.sigmoid_contrast(*given, scale=7.0, bias=-2.0)
        tensors = functional.sigmoid_contrast(
            *given, scale=torch.tensor(7.0).to(device), bias=torch.tensor(-2.0).to(device)
        )
        assert torch.equal(numbers, tensors)


def test_parts_of_the_columns_add_up(device):
    """As processes in a ring see them: the positives are in one part."""
    x, y, scale, bias = make_inputs((20, 60, 16), device=device)
    whole = functional.sigmoid_contrast(x, y, scale=scale, bias=bias, offset=20)
    parts = sum(
        functional.sigmoid_contrast(x, part, scale=scale, bias=bias, offset=offset)
        for part, offset in zip(y.split(20), (None, 0, None), strict=True)
    )
    assert_close(parts, whole)


def test_scale_of_zero_has_a_gradient(device):
    inputs = make_inputs((12, 12, 8), (0.0, -1.0), device)
    found = with_gradients(functional.sigmoid_contrast, inputs, torch.ones(12))
    want = with_gradients(reference.sigmoid_contrast, to_double(inputs), torch.ones(12).double())
    for mine, truth in zip(found, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-5)
    assert found[3] != 0


def test_zero_rows_have_finite_gradients(device):
    x, y, scale, bias = make_inputs((9, 9, 8), device=device)
    with torch.no_grad():
        x[3], y[5] = 0.0, 0.0
    loss, *grads = with_gradients(functional.sigmoid_contrast, (x, y, scale, bias), torch.ones(9))
    assert_close(loss[3], torch.nn.functional.softplus(bias.detach()) * 8
                 + torch.nn.functional.softplus(-bias.detach()))  # fmt: skip
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_its_row(value, device):
    x, y, scale, bias = make_inputs((9, 12, 8), device=device)
    with torch.no_grad():
        x[3, 2] = value
    loss, grad_x, grad_y, *_ = with_gradients(
        functional.sigmoid_contrast, (x, y, scale, bias), torch.ones(9)
    )
    others = [row for row in range(9) if row != 3]
    assert loss[3].isnan() and loss[others].isfinite().all()
    assert grad_x[3].isnan().any() and grad_x[others].isfinite().all()
    assert grad_y.isnan().all()  # every column meets that row
