"""subspace_similarity against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

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
    (2, None, 540, 4, 2),
    (2, None, 3, 520, 16),
    (1, 1, 2, 8200, None),
    (1, 1, 70, 65, None),
    (2, 0, 5, 3, None),
    (0, 2, 5, 3, None),
    (16, None, 2, 8, 3),
    (46, None, 2, 4, 1),
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


def test_in_chunks_of_many_pairs(device):
    """So many that a GPU's warps do not divide each chunk of a pair's dimensions among them."""
    test_matches_definition((1, 1, 2100, 130, 1), torch.float32, "cosine", device)


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


def test_self_comparison_is_symmetric(device):
    x, _, masks = make_inputs((4, None, 6, 40, 3), device)
    similarity = functional.subspace_similarity(x, masks=masks)
    assert torch.equal(similarity, similarity.transpose(1, 2))
    assert_close(similarity, functional.subspace_similarity(x, x.clone(), masks))
