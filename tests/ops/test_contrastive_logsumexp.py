"""contrastive_logsumexp against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# Vx, Vy (None: y is x), N, M, D, K (None: no masks)
SHAPES = [
    (2, None, 0, None, 8, 3),
    (1, None, 1, None, 1, None),
    (2, None, 2, None, 7, None),
    (3, None, 5, None, 16, 2),
    (2, None, 65, None, 33, None),
    (2, None, 70, None, 130, 5),
    (4, None, 33, None, 96, None),
    (2, 2, 5, 9, 257, 2),
    (3, 1, 17, 40, 12, None),
    (1, 1, 3, 150, 5, 2),  # masks get their gradient from other numbers of slices of rows
    (1, 2, 150, 200, 6, 2),
    (1, 2, 3, 0, 4, None),
]
OPTIONS = [
    {"temperature": 0.5},
    {"temperature": 0.01},
    {"temperature": 0.1, "exclude_positive": True},
    {"temperature": 0.02, "within_views": False},
    {"temperature": 0.2, "offset": None},
    {"temperature": 0.07, "offset": 3, "exclude_self": True},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DATA = ["isotropic", "common mean", "duplicates", "near positives", "large", "zero rows"]


def fits(shape, options):
    """Whether an option makes sense for a shape."""
    x_views, y_views, rows, columns, _, _ = shape
    offset = options.get("offset", 0)
    if y_views is None:
        return offset == 0
    if offset is not None and offset + rows > columns:
        return False
    alike = options.get("exclude_self", False) or not options.get("within_views", True)
    return x_views == y_views or not alike


CASES = [(shape, options) for shape in SHAPES for options in OPTIONS if fits(shape, options)]


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    x_views, y_views, rows, columns, dim, subspaces = shape
    accumulation = torch.promote_types(dtype, torch.float32)
    x = torch.randn(x_views, rows, dim, device=device).to(dtype)
    y = None if y_views is None else torch.randn(y_views, columns, dim, device=device).to(dtype)
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


def gradients(outputs, inputs, grads):
    """Of the outputs' finite entries: those of an empty sum have none."""
    total = sum((o.where(o.isfinite(), 0.0) * g).sum() for o, g in zip(outputs, grads, strict=True))
    return torch.autograd.grad(total, [t for t in inputs if t is not None])


def upstream(outputs, seed=0):
    """Gradients for `outputs`; none for the similarity of a row with itself, a constant."""
    generator = torch.Generator().manual_seed(seed)
    lse, positive = (torch.randn(o.shape, generator=generator) for o in outputs)
    if positive.shape == lse.shape:
        own = torch.eye(*positive.shape[1:3], dtype=torch.bool)[:, :, None]
        positive = positive.masked_fill(own, 0.0)
    return lse, positive


def norm_error(got, want):
    """Largest error over the largest entry."""
    if want.numel() == 0:
        return 0.0
    return ((got.cpu().double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()


def precision(device, dtype, request):
    """Errors that cosines may have: of their products, and of rounded operands.

    A GPU multiplies float16 weighed by masks as the sum of two bfloat16 numbers, and bfloat16 as it
    is, but for embeddings weighed by masks, on both sides, and weights of the gradient, which are
    rounded to it.
    """
    if device.type != "cuda" and not request.config.getoption("--emulated-cuda"):
        return 2e-6, 0.0
    noise = 1e-5 if dtype == torch.float16 else 2e-6
    return noise, 2e-2 if dtype == torch.bfloat16 else 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_matches_definition(shape, options, dtype, device, request):
    torch.manual_seed(0)
    inputs = make_inputs(shape, device, dtype, requires_grad=True)
    exact = to_double(inputs)
    got = functional.contrastive_logsumexp(*inputs, **options)
    want = reference.contrastive_logsumexp(*exact, **options)
    noise, coarse = precision(device, dtype, request)
    noise *= max(1.0, 1 / options["temperature"])
    atol = max(noise, coarse * max(1.0, 0.3 / options["temperature"]))
    for mine, truth in zip(got, want, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == truth.shape
        assert_close(mine.cpu().double(), truth, rtol=0, atol=atol)

    grads = upstream(got)
    mine = gradients(got, inputs, [g.to(device) for g in grads])
    truth = gradients(want, exact, [g.double() for g in grads])
    for a, b in zip(mine, truth, strict=True):
        rounding = torch.finfo(a.dtype).eps if a.dtype != torch.float32 else 0.0
        rounding = max(rounding, coarse * max(3.0, 0.1 / options["temperature"]))
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert_close(a.cpu().double(), b, rtol=rounding, atol=(noise + rounding) * scale)


@pytest.mark.parametrize(("temperature", "masked"), [(0.5, None), (0.02, None), (0.5, 3)])
@pytest.mark.parametrize("dim", [40, 100, 130])
def test_matches_definition_in_tiles_for_many_rows(
    dim, temperature, masked, device, request, chunk_limit
):
    """As if there were so many that a thread block walks along all columns."""
    chunk_limit(1)
    rows = 8200 // 4 if device.type == "cuda" else 150
    shape = (4, None, rows, None, dim, masked)
    test_matches_definition(shape, {"temperature": temperature}, torch.bfloat16, device, request)


@pytest.mark.parametrize("temperature", [0.5])
def test_matches_definition_for_many_wide_rows(temperature, device):
    """Too wide for one kernel on a GPU, and more than the blocks of another walk at once."""
    torch.manual_seed(0)
    x, y, _ = make_inputs((1, 1, 8400, 3, 260, None), device)
    x.requires_grad_()
    exact, columns = to_double((x, y))
    got, _ = functional.contrastive_logsumexp(x, y, temperature=temperature, offset=None)
    want, _ = reference.contrastive_logsumexp(exact, columns, temperature=temperature, offset=None)
    assert_close(got.cpu().double(), want, rtol=0, atol=1e-5)
    grads = torch.randn(got.shape, generator=torch.Generator().manual_seed(0))
    (mine,) = torch.autograd.grad(got, [x], grads.to(device))
    (truth,) = torch.autograd.grad(want, [exact], grads.double())
    assert norm_error(mine, truth) < 1e-5


def make_data(kind, views, rows, dim):
    x = torch.randn(views, rows, dim)
    if kind == "common mean":  # partial collapse: every cosine is near 1
        return x * 0.1 + torch.randn(dim)
    if kind == "duplicates":
        return x[:, :1].expand(-1, rows, -1).contiguous()
    if kind == "near positives":
        return x[:1] + 0.01 * x
    if kind == "large":
        return x * 1e4
    if kind == "zero rows":
        x[:, ::7] = 0
    return x


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01])
@pytest.mark.parametrize("kind", DATA)
def test_is_as_exact_as_plain_torch(kind, temperature, device, request):
    """Error against float64 at most 1.5 times that of the plain version, and rounding."""
    torch.manual_seed(1)
    x = make_data(kind, 2, 100, 64).to(device)
    grads = upstream([torch.empty(1, 2, 2, 100)] * 2)

    def loss_gradient(function, x, dtype):
        x = x.to(dtype).requires_grad_()
        lse, positive = function(x, temperature=temperature)
        ntxent = torch.logaddexp(lse[0, 0, 0], lse[0, 0, 1]) - positive[0, 0, 1]
        total = (ntxent * grads[0][0, 0, 1].to(x)).sum()
        return ntxent, *torch.autograd.grad(total, [x])

    truth = loss_gradient(reference.contrastive_logsumexp, x.cpu(), torch.float64)
    plain = loss_gradient(reference.contrastive_logsumexp, x, torch.float32)
    mine = loss_gradient(functional.contrastive_logsumexp, x, torch.float32)
    tolerance = precision(device, torch.float32, request)[0]
    # What similarities and their gradient measure when nothing cancels.
    scales = 1 / temperature, grads[0].abs().max() / temperature / x.norm(dim=-1).median().cpu()
    for a, b, c, scale in zip(mine, plain, truth, scales, strict=True):
        errors = [(got.cpu().double() - c).abs().max() for got in (a, b)]
        assert errors[0] <= 1.5 * errors[1] + tolerance * max(scale, c.abs().max())


@pytest.mark.parametrize("masked", ["no masks", "binary masks", "soft masks"])
@pytest.mark.parametrize(("dim", "temperature"), [(64, 0.05), (300, 0.08)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_easy_batch_in_16_bit(dtype, dim, temperature, masked, device):
    """The positive must come from the same products as the sum: their difference counts. And an
    entry from the same products as its mirror, whose sum weighs it in the gradient."""
    torch.manual_seed(0)
    base = torch.randn(1, 96, dim)
    x = (base + 0.3 * torch.randn(2, 96, dim)).to(device, dtype).requires_grad_()
    masks = torch.rand(2, dim) if masked == "soft masks" else torch.randint(2, (2, dim)).float()
    masks = masks.to(device).requires_grad_(masked == "soft masks")
    inputs = [x] if masked == "no masks" else [x, masks]
    exact = to_double(inputs)

    def loss(function, x, masks=None):
        lse, positive = function(x, masks=masks, temperature=temperature)
        ways = [lse[:, i].logsumexp(1) - positive[:, i, 1 - i] for i in range(2)]
        return sum(ways).sum()

    mine, truth = (
        loss(functional.contrastive_logsumexp, *inputs),
        loss(reference.contrastive_logsumexp, *exact),
    )
    assert abs(mine.item() - truth.item()) <= 3e-2 * truth.item() + 1e-5
    wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
    grads = torch.autograd.grad(mine, [inputs[i] for i in wanted])
    for got, want in zip(
        grads, torch.autograd.grad(truth, [exact[i] for i in wanted]), strict=True
    ):
        assert (got.cpu().double() - want).norm() <= 3e-2 * want.norm()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, None, 3, None, 4, None), {}),
        ((3, None, 2, None, 3, 2), {"exclude_positive": True}),
        ((2, None, 3, None, 2, 2), {"within_views": False}),
        ((2, 2, 2, 4, 3, 2), {"offset": 1, "exclude_self": True}),
        ((1, 2, 3, 5, 3, None), {"offset": None}),
    ],
    ids=str,
)
def test_gradient(shape, options):
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", torch.float64, requires_grad=True)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    given = [*(t for t in inputs if t is not None), temperature]

    def finite(*given):
        rest = iter(given)
        tensors = [t if t is None else next(rest) for t in inputs]
        outputs = functional.contrastive_logsumexp(*tensors, temperature=next(rest), **options)
        return tuple(o[o.isfinite()] for o in outputs)

    assert torch.autograd.gradcheck(finite, given)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, None, 2700, None, 8, None), {}),
        ((3, None, 900, None, 8, 2), {}),
        ((3, None, 900, None, 8, None), {"exclude_positive": True}),
        ((2, None, 1350, None, 8, 2), {"within_views": False}),
        ((1, 2, 600, 2100, 8, None), {"offset": 1000}),
        ((2, None, 200, None, 400, None), {}),
    ],
    ids=str,
)
def test_many_tiles(shape, options):
    """More rows (512 on few threads, 256 of 384 dimensions) and columns (2048) than a tile has.

    They are cut inside of views.
    """
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", requires_grad=True)
    exact = to_double(inputs)
    got = functional.contrastive_logsumexp(*inputs, temperature=0.1, **options)
    want = reference.contrastive_logsumexp(*exact, temperature=0.1, **options)
    grads = upstream(got)
    for a, b in zip(got, want, strict=True):
        assert_close(a.double(), b, rtol=0, atol=2e-5)
    mine, truth = gradients(got, inputs, grads), gradients(want, exact, [g.double() for g in grads])
    for a, b in zip(mine, truth, strict=True):
        assert norm_error(a, b) < 2e-5


@pytest.mark.parametrize(
    "shape",
    [(2, None, 5, None, 7, None), (2, None, 150, None, 40, 3), (2, 2, 70, 200, 40, None)],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_kept_products_give_the_gradient_of_new_ones(temperature, shape):
    """And are as they were after the backward, which may be called again."""
    x, y, masks = make_inputs(shape, "cpu")
    args, options = (x, y, masks, None), (temperature, 0, True, True, True)
    lse, positive, *norms, products = ops.contrastive_logsumexp.op(*args, *options)
    *others, none = ops.contrastive_logsumexp.op(*args, *options, False)
    columns = (shape[0] if y is None else shape[1]) * (shape[3] or shape[2])
    assert products.shape == (shape[5] or 1, shape[0] * shape[2], columns + 16)
    assert none.shape == (0,)
    assert_close((lse, positive, *norms), tuple(others), rtol=1e-6, atol=1e-6)

    def backward(products):
        return ops.contrastive_logsumexp.backward_op(
            *upstream((lse, positive)),
            *args,
            lse,
            *norms,
            products,
            *[None] * 3,
            *options,
            (True, y is not None, masks is not None, False),
        )

    before = products.clone()
    first = backward(products)
    assert_close(products, before, rtol=0, atol=0, equal_nan=True)
    for again in (products, before.mT.contiguous().mT, none):
        assert_close(backward(again), first, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="products must have shape"):
        backward(products[:, 1:])
    with pytest.raises(ValueError, match="those that the forward kept"):
        backward(torch.zeros_like(products))


@pytest.mark.parametrize(("rows", "kept"), [(1016, True), (1017, False)])
def test_products_are_kept_up_to_a_size(rows, kept):
    """4 MB in float32: ``[1, 1016, 1016 + 16]``."""
    x = torch.randn(1, rows, 8)
    *_, products = ops.contrastive_logsumexp.op(x, None, None, None, 0.1, 0, True, False, True)
    assert (products.numel() > 0) == kept


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("options", [{}, {"within_views": False}], ids=str)
@pytest.mark.parametrize("subspaces", [None, 3])
def test_gathered_rows_equal_the_whole(subspaces, options, temperature, device):
    """Each part of a batch against all of it gives that part of the result, and of the gradient."""
    x, _, masks = make_inputs((2, None, 12, None, 20, subspaces), device, requires_grad=True)
    whole = functional.contrastive_logsumexp(x, None, masks, temperature=temperature, **options)
    grads = [g.to(device) for g in upstream(whole)]
    want = gradients(whole, (x, masks), grads)
    flags = (temperature, True, False, options.get("within_views", True))
    found, grad_masks = [], torch.zeros(())
    for part in (slice(0, 5), slice(5, 12)):
        rows = x.detach()[:, part]
        args = (rows, x.detach(), None if masks is None else masks.detach(), None)
        options_ = (flags[0], part.start, *flags[1:])
        lse, positive, *norms = ops.contrastive_logsumexp.op(*args, *options_)
        assert_close(lse, whole[0][..., part], rtol=1e-5, atol=1e-5)
        assert_close(positive, whole[1][..., part], rtol=1e-5, atol=1e-5)
        own = [g[..., part].contiguous() for g in grads]
        columns = (whole[0].detach(), *grads)
        wanted = (True, False, masks is not None, False)
        grad_x, _, share, _ = ops.contrastive_logsumexp.backward_op(
            *own, *args, lse, *norms, *columns, *options_, wanted
        )
        found.append(grad_x)
        grad_masks = grad_masks.to(device) + (share if masks is not None else 0)
    scale = 2e-6 / temperature
    assert_close(torch.cat(found, 1), want[0], rtol=1e-5, atol=scale * want[0].abs().max().item())
    if masks is not None:
        assert_close(grad_masks, want[1], rtol=1e-4, atol=scale * want[1].abs().max().item())


def test_blank_mask_and_zero_row(device):
    x, _, masks = make_inputs((2, None, 6, None, 5, 2), device, requires_grad=True)
    with torch.no_grad():
        masks[0] = 0
        x[1, 2] = 0
    lse, positive = functional.contrastive_logsumexp(x, masks=masks, temperature=0.1)
    assert_close(positive[0], torch.zeros_like(positive[0]))
    assert_close(lse[0, 0, 0], torch.full_like(lse[0, 0, 0], 5.0).log())
    assert_close(lse[0, 0, 1], torch.full_like(lse[0, 0, 1], 6.0).log())
    assert_close(positive[:, 0, 1, 2], torch.zeros_like(positive[:, 0, 1, 2]))
    for grad in torch.autograd.grad(lse.sum() + positive.sum(), [x, masks]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("contrast", [False, True], ids=["self", "y"])
def test_gradients_without_subspaces_are_zero(contrast, device):
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 64, 64, device=device).requires_grad_()
    masks = torch.zeros(0, 64, device=device)
    used = [torch.full((2, 64, 64), 7.0, device=device) for _ in range(4)]
    del used  # memory that is given to the gradients
    given = {"y": y} if contrast else {}
    temperature = torch.tensor(0.1, requires_grad=True)
    lse, *_ = functional.contrastive_logsumexp(x, masks=masks, temperature=temperature, **given)
    for grad in torch.autograd.grad(lse.sum(), [x, temperature, *given.values()]):
        assert not grad.any()


@pytest.mark.parametrize("dim", [16, 300])  # one that tiles take, and a wider one
@pytest.mark.parametrize("shape", [(2, 0), (0, 5)], ids=str)
def test_gradients_without_columns_are_zero(shape, dim, device):
    x = torch.randn(2, 5, dim, device=device, requires_grad=True)
    y = torch.randn(*shape, dim, device=device, requires_grad=True)
    lse, *_ = functional.contrastive_logsumexp(x, y, temperature=0.1, offset=None)
    assert (lse == -torch.inf).all()
    for grad in torch.autograd.grad(lse.sum(), [x, y]):
        assert not grad.any()


def test_a_single_row(device):
    x = torch.randn(2, 1, 8, device=device, requires_grad=True)
    lse, positive = functional.contrastive_logsumexp(x, temperature=0.5)
    assert (lse.diagonal(dim1=1, dim2=2) == -torch.inf).all()  # a sum over nothing
    assert_close(lse[0, 0, 1], positive[0, 0, 1])
    (grad,) = torch.autograd.grad(lse[0, 0, 1].sum() - positive[0, 0, 1].sum(), [x])
    assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_spreads_as_the_formula_says(bad, options, device):
    x, _, masks = make_inputs((3, None, 70, None, 20, 2), device)
    clean = functional.contrastive_logsumexp(x, masks=masks, **options)
    x[1, 3, 7] = bad
    got = functional.contrastive_logsumexp(x, masks=masks, **options)
    want = reference.contrastive_logsumexp(x.cpu(), masks=masks.cpu(), **options)
    for a, b, c in zip(got, want, clean, strict=True):
        assert torch.equal(a.cpu().isnan(), b.isnan())
        assert_close(a[~a.isnan()], c[~a.isnan()], rtol=0, atol=0)


def test_self_contrast_is_the_general_form(device):
    x, _, masks = make_inputs((3, None, 6, None, 40, 2), device)
    own = functional.contrastive_logsumexp(x, masks=masks, temperature=0.1)
    given = functional.contrastive_logsumexp(
        x, x.clone(), masks, temperature=0.1, exclude_self=True
    )
    assert_close(own, given, rtol=1e-5, atol=1e-5)


OPCHECK_CASES = [
    ((3, None, 4, None, 5, None), (None, 0.1, 0, True, False, True)),
    ((2, 3, 4, 6, 6, 2), (None, 0.1, None, False, False, True)),
    ((2, 2, 4, 6, 6, 2), (0.2, 0.0, 2, True, True, False)),
]


@pytest.mark.parametrize(
    ("which", "shape"),
    [("x", (1, 2**31, 1)), ("x", (1, 1, 2**31)), ("y", (1, 2**31, 1))],
    ids=str,
)
def test_rejects_more_than_a_kernel_counts(which, shape, device, request):
    if device.type != "cuda" and not request.config.getoption("--emulated-cuda"):
        pytest.skip("a limit of the CUDA kernels")
    inputs = {name: torch.ones(1, 1, 1, device=device).expand(1, 1, shape[2]) for name in "xy"}
    inputs[which] = inputs[which][:, :, :1].expand(shape)
    message = f"{which} must have at most 2147482624 rows .* on a GPU, got shape .*2147483648"
    with pytest.raises(ValueError, match=message):
        functional.contrastive_logsumexp(**inputs, temperature=0.1, offset=None)
