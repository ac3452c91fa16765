"""epps_pulley_distance against its definition, and the number of images as a tensor."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

SHAPES = [(1, 1, 1), (2, 3, 5), (3, 17, 100), (2, 40, 300), (1, 17, 1030), (0, 3, 5)]  # V, K, M


def make_inputs(views, knots, slices, device="cpu", dtype=torch.float32):
    """Sums over 50 images, which are close to those of a normal distribution, phi and weights."""
    _, _, phi, weights = functional.epps_pulley_grid(max(knots, 2), 3.0, dtype=dtype)
    phi, weights = phi[:knots], weights[:knots]
    sums = torch.stack((phi, torch.zeros_like(phi)), 1)[..., None].expand(views, knots, 2, slices)
    sums = 50 * (sums + 0.1 * torch.randn(sums.shape, dtype=dtype))
    return [t.to(device) for t in (sums, phi, weights)]


def with_gradient(function, sums, images, *rest):
    leaf = sums.detach().requires_grad_()
    distance = function(leaf, images, *rest)
    grad = torch.linspace(0.5, 2, len(distance)).to(distance)
    return distance.detach(), *torch.autograd.grad(distance, leaf, grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, device):
    inputs = make_inputs(*shape, device)
    found = with_gradient(functional.epps_pulley_distance, inputs[0], 50, *inputs[1:])
    sums, *rest = (t.cpu().double() for t in inputs)
    want = with_gradient(reference.epps_pulley_distance, sums, 50, *rest)
    for mine, truth in zip(found, want, strict=True):
        scale = truth.abs().max().item() if truth.numel() else 1.0
        assert_close(mine.cpu().double(), truth, rtol=2e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("images", [50.0, torch.tensor(50.0, dtype=torch.float64)], ids=str)
def test_gradient(images):
    torch.manual_seed(0)
    sums, phi, weights = make_inputs(2, 4, 3, dtype=torch.float64)
    sums.requires_grad_()
    function = functional.epps_pulley_distance
    assert torch.autograd.gradcheck(lambda s: function(s, images, phi, weights), sums)


def test_number_of_images_as_a_tensor(device):
    sums, phi, weights = make_inputs(2, 17, 70, device)
    number = with_gradient(functional.epps_pulley_distance, sums, 50, phi, weights)
    images = torch.tensor(50.0, device=device)
    tensor = with_gradient(functional.epps_pulley_distance, sums, images, phi, weights)
    for a, b in zip(number, tensor, strict=True):
        assert torch.equal(a, b)


def test_is_zero_where_sums_are_those_of_a_normal_distribution(device):
    _, _, phi, weights = functional.epps_pulley_grid(5, 2.0, device=device)
    sums = torch.stack((64 * phi, torch.zeros_like(phi)), 1)[None, ..., None]
    distance, grad = with_gradient(functional.epps_pulley_distance, sums, 64, phi, weights)
    assert (distance, grad.count_nonzero()) == (0, 0)
