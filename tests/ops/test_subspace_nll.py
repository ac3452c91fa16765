"""subspace_nll against its definition, its own gradient, and torch's rules for ops."""

import math

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

# Vx, Vy (None: y is x), B, D, K (None: no masks)
SHAPES = [
    (2, None, 0, 8, 3),
    (1, None, 1, 2, None),
    (3, None, 5, 7, 2),
    (2, 3, 4, 33, 5),
    (4, None, 18, 257, 8),
    (3, 2, 3, 130, 17),
    (2, None, 540, 4, 2),
    (2, None, 3, 520, 16),
    (14, None, 2, 8, 3),
    (46, None, 2, 4, 1),
]
FORMS = ["diagonal", "subspace"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, form, device, dtype=torch.float32, requires_grad=False):
    """x, log_var_x, y, log_var_y, masks."""
    x_views, y_views, batch, dim, subspaces = shape
    width = dim if form == "diagonal" else subspaces or 1

    def random(views, last):
        return None if views is None else torch.randn(views, batch, last, device=device).to(dtype)

    masks = None
    if subspaces is not None:
        accumulation = torch.promote_types(dtype, torch.float32)
        masks = torch.rand(subspaces, dim, device=device, dtype=accumulation)
    inputs = (
        random(x_views, dim),
        random(x_views, width),
        random(y_views, dim),
        random(y_views, width),
        masks,
    )
    return tuple(t if t is None else t.requires_grad_(requires_grad) for t in inputs)


def given(tensors):
    return [t for t in tensors if t is not None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, form, device):
    inputs = make_inputs(shape, form, device, dtype, requires_grad=True)
    exact = [t if t is None else t.detach().cpu().double().requires_grad_() for t in inputs]
    got = functional.subspace_nll(*inputs)
    want = reference.subspace_nll(*exact)
    assert got.dtype == torch.float32
    assert_close(got.cpu().double(), want, rtol=2e-6, atol=2e-6)

    grad = torch.randn_like(got)
    mine = torch.autograd.grad(got, given(inputs), grad)
    truth = torch.autograd.grad(want, given(exact), grad.cpu().double())
    for a, b in zip(mine, truth, strict=True):
        rounding = 0.0 if a.dtype == torch.float32 else torch.finfo(a.dtype).eps
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert_close(a.cpu().double(), b, rtol=rounding, atol=5e-6 * scale)


def test_more_subspaces_than_a_grid_has_rows(device):
    inputs = make_inputs((2, None, 1, 4, 65_540), "diagonal", device, requires_grad=True)
    exact = [t if t is None else t.detach().cpu().double().requires_grad_() for t in inputs]
    got = functional.subspace_nll(*inputs)
    want = reference.subspace_nll(*exact)
    assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(got)
    mine = torch.autograd.grad(got, given(inputs), grad)
    truth = torch.autograd.grad(want, given(exact), grad.cpu().double())
    for a, b in zip(mine, truth, strict=True):
        assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape", [(1, None, 2, 3, None), (3, None, 2, 5, 2), (2, 2, 3, 4, 9)], ids=str
)
def test_gradient(shape, form):
    torch.manual_seed(0)
    inputs = make_inputs(shape, form, "cpu", torch.float64, requires_grad=True)

    def nll(*tensors):
        rest = iter(tensors)
        return functional.subspace_nll(*(t if t is None else next(rest) for t in inputs))

    assert torch.autograd.gradcheck(nll, given(inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("log_var_x", "log_var_y"), [(80, 80), (-80, -80), (80, -80), (-80, 80)])
def test_extreme_log_variances(log_var_x, log_var_y, form, device):
    inputs = make_inputs((2, 2, 3, 10, 4), form, device)
    with torch.no_grad():
        inputs[1].fill_(log_var_x)
        inputs[3].fill_(log_var_y)
    inputs = [t.requires_grad_() for t in inputs]
    nll = functional.subspace_nll(*inputs)
    assert nll.isfinite().all()
    for grad in torch.autograd.grad(nll.sum(), inputs):
        assert grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("upstream", "mask"), [(1.0, None), (4.0, 0.1), (65536.0, 1.0)])
@pytest.mark.parametrize("log_var", [-80.0, -100.0, -160.0, -300.0])
def test_equal_embeddings_stay_finite_where_the_precision_overflows(
    log_var, upstream, mask, form, device
):
    x, log_var_x, _, _, masks = make_inputs((2, None, 3, 10, 4), form, device)
    if mask is not None:
        masks = torch.full_like(masks, mask)
    x, log_var_x = x[:1].expand_as(x).contiguous(), torch.full_like(log_var_x, log_var)
    inputs = [t.requires_grad_() for t in (x, log_var_x, masks)]
    nll = functional.subspace_nll(inputs[0], inputs[1], masks=inputs[2])
    assert_close(nll, torch.full_like(nll, (log_var + math.log(2)) / 2))
    for grad in torch.autograd.grad((upstream * nll).sum(), inputs):
        assert grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_tiny_distances_over_tiny_variances(form, device):
    """1 / s is out of a float's range, the quotient is not."""
    x, log_var_x, _, _, masks = make_inputs((1, None, 3, 10, 4), form, device)
    log_var_x = log_var_x - 100
    y = x.clone()
    y[..., 3] = 1e-18
    x[..., 3] = 0
    got = functional.subspace_nll(x, log_var_x, y, log_var_x, masks=masks)
    exact = [t.cpu().double() for t in (x, log_var_x, y, log_var_x, masks)]
    assert_close(got.cpu().double(), reference.subspace_nll(*exact), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_near_pairs_have_exact_mask_gradients(form, device):
    """The distance is kept for the backward pass, not recovered from the likelihood."""
    x, log_var_x, _, _, masks = make_inputs((1, None, 4, 64, 3), form, device)
    inputs = [x, log_var_x, x + 1e-3 * torch.randn_like(x), log_var_x.clone(), masks]
    exact = [t.cpu().double().requires_grad_() for t in inputs]
    inputs = [t.clone().requires_grad_() for t in inputs]
    grad = torch.autograd.grad(functional.subspace_nll(*inputs).sum(), [masks := inputs[4]])[0]
    want = torch.autograd.grad(reference.subspace_nll(*exact).sum(), [exact[4]])[0]
    assert (grad.cpu() - want).norm() <= 1e-4 * want.norm(), masks.shape


@pytest.mark.parametrize("form", FORMS)
def test_blank_mask_counts_as_no_distance(form, device):
    inputs = make_inputs((2, None, 3, 6, 2), form, device, requires_grad=True)
    with torch.no_grad():
        inputs[4][0] = 0
    nll = functional.subspace_nll(*inputs)
    want = torch.zeros_like(nll[0])
    if form == "subspace":
        log_var = inputs[1][..., 0].float()
        want = torch.logaddexp(log_var[:, None], log_var[None]) / 2
    assert_close(nll[0], want)
    for grad in torch.autograd.grad(nll.sum(), given(inputs)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_non_finite_stays_in_its_image(form, device):
    x, log_var, _, _, masks = make_inputs((3, None, 5, 20, 2), form, device)
    clean = functional.subspace_nll(x, log_var, masks=masks)
    for tensor, column in ((x, 7), (log_var, 1)):
        dirty = tensor.clone()
        dirty[1, 3, column] = float("nan")
        got = functional.subspace_nll(
            dirty if tensor is x else x, dirty if tensor is log_var else log_var, masks=masks
        )
        image = torch.zeros_like(got, dtype=torch.bool)
        image[:, 1, :, 3] = image[:, :, 1, 3] = True
        if tensor is log_var and form == "subspace":
            image[0] = False  # a variance belongs to one subspace
        assert got[image].isnan().all()
        assert_close(got[~image], clean[~image], rtol=0, atol=0)
