"""gather_views against indexing: any dtype, layout and row length."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# V, S, B, what follows
SHAPES = [
    (2, 2, 0, (3,)),
    (3, 0, 4, (3,)),
    (3, 2, 4, (0, 5)),
    (1, 1, 1, ()),
    (4, 2, 7, ()),
    (4, 2, 5, (14,)),
    (3, 3, 4, (3, 5, 7)),
    (4, 2, 3, (3, 32, 32)),
    (2, 5, 6, (1, 1)),
    (5, 1, 2, (2311,)),
]
DTYPES = [
    torch.uint8,
    torch.bool,
    torch.int64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
]
GRADIENT_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, device, dtype=torch.float32):
    views, selected, batch, row = shape
    values = torch.randn(views, batch, *row, device=device) * 100
    index = torch.randint(views, (selected, batch), device=device)
    return values.to(dtype), index


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_indexing(shape, dtype, device):
    views, index = make_inputs(shape, device, dtype)
    got = functional.gather_views(views, index)
    want = reference.gather_views(views, index)
    assert got.dtype == dtype and got.is_contiguous()
    assert torch.equal(got, want)


def channels_last(views):
    return views.transpose(2, 3).transpose(3, 4).contiguous().transpose(3, 4).transpose(2, 3)


LAYOUTS = {
    "channels last": channels_last,
    "images outermost": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "odd offset": lambda x: torch.cat([x.flatten(), x.flatten()])[1 : 1 + x.numel()].view_as(x),
    "wider rows": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "one view for all": lambda x: x[:1].expand_as(x),
    "one value for all": lambda x: x[..., :1].expand_as(x),
    "every other image": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, dtype, device):
    views, index = make_inputs((3, 2, 4, (3, 8, 6)), device, dtype)
    views = LAYOUTS[name](views)
    got = functional.gather_views(views, index)
    assert torch.equal(got, reference.gather_views(views, index))
    strided_index = torch.stack([index, index], -1)[..., 0]
    assert torch.equal(functional.gather_views(views, strided_index), got)


def test_keeps_channels_last(device):
    views, index = make_inputs((3, 2, 4, (3, 8, 6)), device)
    views = channels_last(views).requires_grad_()
    got = functional.gather_views(views, index)
    assert got.stride() == (4 * 3 * 8 * 6, 3 * 8 * 6, 1, 6 * 3, 3)
    assert got.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(got.square().sum(), views)
    assert grad[0].is_contiguous(memory_format=torch.channels_last)
    want = torch.autograd.grad(reference.gather_views(views, index).square().sum(), views)
    assert_close(grad, want[0])


@pytest.mark.parametrize("dtype", GRADIENT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_is_a_scatter(shape, dtype, device):
    views, index = make_inputs(shape, device, dtype)
    views.requires_grad_()
    got = functional.gather_views(views, index)
    weights = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, views, weights)
    exact = views.detach().cpu().double().requires_grad_()
    want = reference.gather_views(exact, index.cpu())
    (truth,) = torch.autograd.grad(want, exact, weights.cpu().double())
    assert grad.dtype == dtype and grad.shape == views.shape
    # A sum of 16-bit gradients is rounded once, at the very end.
    rounding = torch.finfo(dtype).eps
    assert_close(grad.cpu().double(), truth, rtol=rounding, atol=1e-6)


def test_gradient_of_an_expanded_sum(device):
    views, index = make_inputs((4, 3, 5, (6,)), device)
    views.requires_grad_()
    (grad,) = torch.autograd.grad(functional.gather_views(views, index).sum(), views)
    count = torch.stack([(index == view).sum(0) for view in range(4)])
    assert_close(grad, count.unsqueeze(-1).expand(4, 5, 6).to(grad))


@pytest.mark.parametrize("row", [16, 3072, 150528])
def test_gradient_where_nothing_was_selected(row, device):
    """The gradient of a sum has strides of 0, by which no memory may be measured."""
    views = torch.randn(4, 8, row, device=device, requires_grad=True)
    index = torch.empty(0, 8, dtype=torch.int64, device=device)
    (grad,) = torch.autograd.grad(functional.gather_views(views, index).sum(), views)
    assert grad.is_contiguous() and not grad.any()


def test_float64_gradients_of_any_order():
    torch.manual_seed(0)
    views, index = make_inputs((3, 4, 2, (3,)), "cpu", torch.float64)
    views.requires_grad_()
    assert torch.autograd.gradcheck(functional.gather_views, (views, index))
    assert torch.autograd.gradgradcheck(functional.gather_views, (views, index))


def test_non_finite_stays_in_its_row(device):
    views, index = make_inputs((3, 2, 5, (9,)), device)
    index[:, 2] = torch.tensor([1, 1], device=device)
    views.requires_grad_()
    weights = torch.randn(2, 5, 9, device=device)
    weights[0, 2, 4] = float("nan")
    (grad,) = torch.autograd.grad(functional.gather_views(views, index), views, weights)
    bad = torch.zeros_like(grad, dtype=torch.bool)
    bad[1, 2, 4] = True
    assert torch.equal(grad.isnan(), bad)


@pytest.mark.dispatch
@pytest.mark.parametrize("layout", [channels_last, LAYOUTS["wider rows"]])
def test_registration(layout, device):
    """Shape-only kernels know the layout of the result."""
    views, index = make_inputs((3, 2, 4, (3, 4, 6)), device)
    views = layout(views).detach().requires_grad_()
    torch.library.opcheck(ops.gather_views.op, (views, index))
    grad = layout(torch.randn(2, 4, 3, 4, 6, device=device)).requires_grad_()
    torch.library.opcheck(ops.gather_views.backward_op, (grad, index, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [-1, 3, 2**62])
def test_no_view_is_never_read(bad, dtype, device):
    """An error where the index can be looked at; else a row that no view has."""
    views, index = make_inputs((3, 2, 4, (5,)), device, dtype)
    want = reference.gather_views(views, index)
    index[1, 2] = bad
    try:
        got = functional.gather_views(views, index)
    except ValueError as error:
        assert "index must be in [0, 3)" in str(error)
        return
    row = got[1, 2]
    assert row.isnan().all() if dtype.is_floating_point else (row == row.new_tensor(-1)).all()
    got[1, 2] = want[1, 2]
    assert torch.equal(got, want)


def test_rejects_gradients_it_cannot_add():
    views = torch.ones(3, 4, 5, dtype=torch.complex64, requires_grad=True)
    out = functional.gather_views(views, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeError, match="grad must be float32, .* got ComplexFloat"):
        out.abs().sum().backward()
