"""gram_difference against its definition, and the digits it keeps where s is close to t."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mast_ext import functional, reference

# B, N, D: the Gram form, up to N = 2 D, and the moment form behind it; both on either side of
# blocks of 32 rows and vectors of 16 dimensions.
SHAPES = [
    *((1, 1, 1), (3, 5, 7), (2, 33, 40), (2, 64, 32), (2, 65, 32), (1, 70, 33), (3, 150, 17)),
    *((2, 3, 1), (1, 300, 20), (5, 49, 64)),
]
REMOVALS = [None, "teacher", "both"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, device="cpu", dtype=torch.float32):
    return [torch.randn(shape, device=device).to(dtype) for _ in range(2)]


def with_gradients(function, s, t, grad, **options):
    leaves = [x.detach().requires_grad_() for x in (s, t)]
    difference = function(*leaves, **options)
    return difference.detach(), *torch.autograd.grad(difference, leaves, grad.to(difference))


def exact(s, t, grad, **options):
    given = (x.detach().cpu().double() for x in (s, t, grad))
    return with_gradients(reference.gram_difference, *given, **options)


def error(mine, truth):
    return ((mine.cpu().double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, remove, dtype, device):
    torch.manual_seed(0)
    s, t = make_inputs(shape, device, dtype)
    grad = torch.randn(shape[0]).to(device)
    found = with_gradients(functional.gram_difference, s, t, grad, remove_negative=remove)
    for mine, truth in zip(found, exact(s, t, grad, remove_negative=remove), strict=True):
        rounding = torch.finfo(mine.dtype).eps
        scale = truth.abs().max().item()
        assert_close(mine.cpu().double(), truth, rtol=20 * rounding, atol=4 * rounding * scale)


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 11, 4), (1, 40, 3)], ids=str)
def test_gradient(shape, remove):
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda s, t: functional.gram_difference(s, t, remove_negative=remove), leaves
    )


@pytest.mark.parametrize("remove", ["teacher", "both"])
def test_tiles_of_many_tokens(remove, device):
    """Over several tiles, of which those off the diagonal stand for two; the last is narrow."""
    torch.manual_seed(0)
    s, t = make_inputs((2, 2100, 3), device)
    found = with_gradients(functional.gram_difference, s, t, torch.ones(2), remove_negative=remove)
    truth = exact(s, t, torch.ones(2), remove_negative=remove)
    for mine, want in zip(found, truth, strict=True):
        assert error(mine, want) < 5e-6


@pytest.mark.parametrize(
    ("shape", "limit", "remove"),
    [
        ((5, 20, 12), 1000, None),  # two images at a time, and one
        ((5, 20, 12), 1000, "both"),
        ((3, 70, 6), 32, None),  # the moment form: an image, of which 32, 32 and 6 rows
    ],
    ids=["Gram", "both", "moments"],
)
def test_in_chunks_of_images_and_rows(shape, limit, remove, device, chunk_limit):
    chunk_limit(limit)
    torch.manual_seed(0)
    s, t = make_inputs(shape, device)
    grad = torch.randn(shape[0]).to(device)
    found = with_gradients(functional.gram_difference, s, t, grad, remove_negative=remove)
    for mine, want in zip(found, exact(s, t, grad, remove_negative=remove), strict=True):
        assert error(mine, want) < 5e-6


@pytest.mark.parametrize(
    ("shape", "remove"),
    [((200, 100, 60), None), ((70, 130, 60), None), ((90, 100, 60), "both")],
    ids=["Gram", "moments", "both"],
)
def test_many_images_on_the_cpu(shape, remove):
    """Some at a time, for the memory, and the last time fewer; what is kept is of all."""
    torch.manual_seed(0)
    s, t = make_inputs(shape)
    grad = torch.randn(shape[0])
    found = with_gradients(functional.gram_difference, s, t, grad, remove_negative=remove)
    for mine, want in zip(found, exact(s, t, grad, remove_negative=remove), strict=True):
        assert error(mine, want) < 5e-6


@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("shape", [(2, 100, 60), (2, 400, 60)], ids=["Gram", "moments"])
def test_near_tokens_keep_their_digits(shape, remove, noise, device):
    """The loss of plain torch in float32 is nothing but rounding at a distance of 1e-7."""
    torch.manual_seed(0)
    s = F.normalize(torch.randn(shape, dtype=torch.float64), dim=2)
    t = (s + noise * torch.randn(shape, dtype=torch.float64)).float().to(device)
    s = s.float().to(device)
    grad = torch.ones(shape[0])
    found = with_gradients(functional.gram_difference, s, t, grad, remove_negative=remove)
    for mine, want in zip(found, exact(s, t, grad, remove_negative=remove), strict=True):
        assert error(mine, want) < 5e-6


@pytest.mark.parametrize("form", ["Gram", "moments"])
def test_rotated_tokens(form, device):
    """The matrix does not change with a rotation of all tokens, and only its rounding is left.

    The moment form's is that of |a bᵀ|²; the Gram form's, of every element, is squared.
    """
    torch.manual_seed(0)
    dim = 40
    s = F.normalize(torch.randn(2, 60 if form == "Gram" else 400, dim), dim=2)
    rotation = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    t = (s.double() @ rotation).float() + 1e-3 * torch.randn_like(s)
    scale = ((s - t) @ (s + t).mT).square().mean((1, 2)).max().item()
    grad = torch.ones(2)
    found = with_gradients(functional.gram_difference, s.to(device), t.to(device), grad)
    value, *gradients = exact(s, t, grad)
    assert (found[0] >= 0).all()
    allowed = 2e-5 if form == "Gram" else 1e-7 * scale / value.min().item()
    assert error(found[0], value) < allowed
    for mine, want in zip(found[1:], gradients, strict=True):
        assert error(mine, want) < 2e-2
    plain = reference.gram_difference(s, t)
    if form == "Gram":
        assert error(found[0], value) <= 1.5 * error(plain, value) + 1e-6


@pytest.mark.parametrize("shape", [(2, 20, 30), (2, 90, 30)], ids=["Gram", "moments"])
def test_equal_tokens_have_no_difference(shape, device):
    s = torch.randn(shape, device=device)
    difference, *gradients = with_gradients(functional.gram_difference, s, s, torch.ones(2))
    assert not difference.any()
    for gradient in gradients:
        assert not gradient.any()


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 90, 30)], ids=["few tokens", "many"])
def test_nan_stays_in_its_image(shape, remove, device):
    s, t = make_inputs(shape, device)
    s[1, 4, 2] = float("nan")
    difference, grad_s, grad_t = with_gradients(
        functional.gram_difference, s, t, torch.ones(3), remove_negative=remove
    )
    for tensor in (difference, grad_s, grad_t):
        assert tensor[[0, 2]].isfinite().all()
        assert tensor[1].isnan().any()


@pytest.mark.parametrize("remove", REMOVALS)
def test_no_images(remove, device):
    s, t = make_inputs((0, 5, 4), device)
    found = with_gradients(functional.gram_difference, s, t, torch.ones(0), remove_negative=remove)
    assert [tuple(x.shape) for x in found] == [(0,), (0, 5, 4), (0, 5, 4)]


@pytest.mark.parametrize(("tokens", "kept"), [(30, 30 * 30), (90, 40 * 40)])
@pytest.mark.parametrize("remove", [None, "both"])
def test_keeps_the_smaller_product(remove, tokens, kept):
    """For the backward pass, beside its inputs; with removal nothing."""
    s, t = torch.randn(2, 3, tokens, 20, requires_grad=True).unbind()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        functional.gram_difference(s, t, remove_negative=remove)
    product = 3 * kept if remove is None else 0
    assert sorted(sizes) == sorted([s.numel(), t.numel(), product])
