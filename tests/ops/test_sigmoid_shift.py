"""sigmoid_shift: the means are met, whatever the logits."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference


def assert_means(logits, mean, tolerance):
    shift = functional.sigmoid_shift(logits, mean)
    found = torch.sigmoid(logits.double() - shift.double()[:, None]).mean(1)
    assert_close(found, mean.double(), rtol=0, atol=tolerance)
    return shift


@pytest.mark.parametrize("dim", [1, 3, 16, 100, 2049])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_means_are_met(scale, dim, device):
    logits = scale * torch.randn(7, dim, device=device) + 5
    mean = torch.tensor([0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999], device=device)
    shift = assert_means(logits, mean, 2e-6)
    want = reference.sigmoid_shift(logits.cpu().double(), mean.cpu().double())
    if scale < 30:  # beyond, and near 0 and 1, the mean hardly tells where the shift is
        assert_close(shift[1:-1].cpu().double(), want[1:-1], rtol=1e-4, atol=1e-4)


def test_between_two_far_groups(device):
    """Where the mean hardly depends on the shift, which Newton's method would be thrown by."""
    logits = torch.cat((torch.full((3, 40), -60.0), torch.full((3, 60), 60.0)), 1).to(device)
    assert_means(logits, torch.tensor([0.6, 0.59, 0.61], device=device), 1e-6)


def test_a_lone_outlier(device):
    logits = torch.zeros(1, 1000, device=device)
    logits[0, 0] = 1e4
    assert_means(logits, torch.tensor([0.3], device=device), 1e-5)


def test_float64():
    logits = torch.randn(4, 50).double()
    assert_means(logits, torch.full((4,), 0.3).double(), 1e-15)
