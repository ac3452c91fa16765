"""budgeted_masks: the budgets are met, whatever the logits; products of all subsets."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

MEANS = [0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999]


def masks_of(logits, mean, **options):
    weights = functional.budgeted_masks(logits, mean, **options)
    return weights[2 ** torch.arange(len(logits), device=logits.device)].sqrt()


def with_gradient(function, logits, mean, grad):
    logits = logits.detach().requires_grad_()
    weights = function(logits, mean, sharpness=2.0)
    return weights.detach(), torch.autograd.grad(weights, logits, grad)[0]


def assert_means(logits, mean, tolerance):
    masks = masks_of(logits, mean)
    assert_close(masks.double().mean(1), mean.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("masks", [1, 2, 3, 8])
@pytest.mark.parametrize("dim", [1, 17, 300])
def test_matches_definition(dim, masks, device):
    logits = torch.randn(masks, dim, device=device)
    mean = torch.rand(masks, device=device) * 0.8 + 0.1
    grad = torch.randn(2**masks, dim).to(device)
    found = with_gradient(functional.budgeted_masks, logits, mean, grad)
    exact = [t.cpu().double() for t in (logits, mean, grad)]
    want = with_gradient(reference.budgeted_masks, *exact)
    for mine, truth in zip(found, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [10.0, 17.0, 20.0, 40.0])
def test_saturated_masks_have_the_right_gradient(size, device):
    """Beyond 17 a sigmoid in float32 is 1, but its slope is not 0."""
    shifted = size + torch.rand(1, 256)
    shifted[0, :64] *= -1
    masks = shifted.double().sigmoid()
    weights = torch.cat((torch.ones_like(masks), masks.square()))
    grad = torch.randn(2, 256)
    backward = ops.budgeted_masks.backward_op
    found = backward(*(t.float().to(device) for t in (grad, weights, shifted)), 2.0)

    rest = (-shifted.double()).sigmoid()
    grad_shifted = 2 * rest * grad[1:].double() * weights[1:]
    slope = masks * rest
    want = 2 * (grad_shifted - slope / slope.sum() * grad_shifted.sum())
    assert_close(found.cpu().double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("at", [0, 3, 40])
def test_a_nan_logit_makes_all_of_its_mask_nan(at, device):
    """No shift gives it the mean."""
    logits = torch.randn(2, 50, device=device)
    logits[1, at] = torch.nan
    mean = torch.tensor([0.3, 0.6], device=device)
    weights, grad = with_gradient(
        functional.budgeted_masks, logits, mean, torch.ones(4, 50, device=device)
    )
    assert weights.isnan().all(1).tolist() == [False, False, True, True]
    assert not weights[:2].isnan().any()
    assert grad[1].isnan().all()


def test_no_masks(device):
    none = torch.zeros(0, 5, device=device)
    assert (functional.budgeted_masks(none, none[:, 0]) == torch.ones(1, 5, device=device)).all()


@pytest.mark.parametrize("dim", [1, 3, 16, 100, 2049, 8200])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_means_are_met(scale, dim, device):
    logits = scale * torch.randn(len(MEANS), dim, device=device) + 5
    # float32 sums of more dimensions are less exact; 1e-5 is what is promised.
    assert_means(logits, torch.tensor(MEANS, device=device), 4e-6 if dim < 4096 else 1e-5)


def test_between_two_far_groups(device):
    """Where the mean hardly depends on the shift, which Newton's method would be thrown by."""
    logits = torch.cat((torch.full((3, 40), -60.0), torch.full((3, 60), 60.0)), 1).to(device)
    assert_means(logits, torch.tensor([0.6, 0.59, 0.61], device=device), 2e-6)


def test_a_lone_outlier(device):
    logits = torch.zeros(1, 1000, device=device)
    logits[0, 0] = 1e4
    assert_means(logits, torch.tensor([0.3], device=device), 1e-5)


def test_float64():
    logits = torch.randn(4, 50).double()
    assert_means(logits, torch.full((4,), 0.3).double(), 1e-15)


def test_gradient():
    torch.manual_seed(0)
    logits = torch.randn(3, 7).double().requires_grad_()
    mean = torch.tensor([0.2, 0.5, 0.8]).double()
    assert torch.autograd.gradcheck(
        lambda x: functional.budgeted_masks(x, mean, sharpness=2.0), logits
    )


def test_small_masks_have_finite_gradients(device):
    logits = torch.full((2, 100), -300.0, device=device)
    logits[:, 0] = 300
    logits.requires_grad_()
    weights = functional.budgeted_masks(logits, torch.tensor([0.01, 0.01], device=device))
    weights.sum().backward()
    assert weights.isfinite().all() and logits.grad.isfinite().all()
