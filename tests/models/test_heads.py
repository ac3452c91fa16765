import pytest
import torch
from torch import nn

from mast_ext.models import PairUncertainty, Projector


@pytest.mark.parametrize(
    ("widths", "norms"), [((5,), 0), ((7, 5), 1), ((7, 9, 5), 2)], ids=["one", "two", "three"]
)
def test_projector(widths, norms):
    projector = Projector(6, widths)
    kinds = [type(layer) for layer in projector]
    assert projector(torch.randn(4, 6)).shape == (4, 5)
    assert projector.dim == 5
    assert kinds.count(nn.BatchNorm1d) == kinds.count(nn.ReLU) == norms
    assert kinds[-1] is nn.Linear and projector[-1].bias is None


def test_last_norm():
    torch.manual_seed(0)
    projector = Projector(6, (7, 5), last_norm=True)
    out = projector(torch.randn(50, 6))
    assert torch.allclose(out.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(out.var(0, unbiased=False), torch.ones(5), atol=1e-2)
    assert projector.dim == 5 and projector[-1].weight is None


@pytest.mark.parametrize("widths", [(), (8, 0), (-1,)])
def test_projector_refuses(widths):
    with pytest.raises(ValueError, match="projector widths must be positive"):
        Projector(6, widths)


def test_pair_uncertainty_starts_at_zero_learns_and_is_bounded():
    head = PairUncertainty(6)
    log_variance = head(torch.randn(5, 6))
    assert torch.equal(log_variance, torch.zeros(5))
    log_variance.sum().backward()
    assert head[-1].weight.grad.abs().sum() > 0
    torch.nn.init.constant_(head[-1].bias, -1e4)
    assert (head(torch.randn(5, 6)) == -8).all()
    torch.nn.init.constant_(head[-1].bias, 0.1)
    torch.testing.assert_close(head(torch.randn(5, 6)), torch.full((5,), 0.1), atol=1e-4, rtol=0)


def test_pairs_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"^pairs must have shape \[B, 6\], got \[3, 5\]$"):
        PairUncertainty(6)(torch.zeros(3, 5))
