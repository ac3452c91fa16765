import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, normalize

from mast_ext.models import DINOHead, NormalizedLinear


def head(**options):
    torch.manual_seed(0)
    return DINOHead(6, (10, 9), 5, 12, **options)


def test_layers_by_hand():
    made, x = head(), torch.randn(7, 6)
    first, second, third = (layer for layer in made.layers if isinstance(layer, nn.Linear))
    rows = normalize(third(gelu(second(gelu(first(x))))), dim=1)
    torch.testing.assert_close(made.embed(x), rows)
    torch.testing.assert_close(made(x), rows @ normalize(made.prototypes.weight, dim=1).T)


def test_leading_axes():
    made, x = head().eval(), torch.randn(2, 3, 6)
    assert made(x).shape == (2, 3, 12) and made.embed(x).shape == (2, 3, 5)
    torch.testing.assert_close(made(x)[1], made(x[1]))
    assert made(torch.randn(0, 6)).shape == (0, 12)


def test_rows_and_prototypes_have_norm_one():
    """So that scores are cosines, whatever the weights."""
    made = head()
    with torch.no_grad():
        made.prototypes.weight.mul_(torch.rand(12, 1) * 100)
    scores = made(100 * torch.randn(50, 6))
    assert scores.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(made.embed(torch.randn(4, 6)).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("fixed", [True, False])
def test_gain(fixed):
    torch.manual_seed(0)
    layer, x = NormalizedLinear(5, 4, fixed_gain=fixed), torch.randn(3, 5)
    assert dict(layer.named_parameters()).keys() == ({"weight"} if fixed else {"weight", "gain"})
    before = layer(x)
    if not fixed:
        with torch.no_grad():
            layer.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        torch.testing.assert_close(layer(x), before * layer.gain)
        assert layer.gain.ndim == 1  # the optimizer takes it for what does not decay
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_weight_norm_of_torch_agrees():
    torch.manual_seed(0)
    layer = NormalizedLinear(5, 4, fixed_gain=False)
    other = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        layer.gain.uniform_(0.5, 2)
        other.parametrizations.weight.original0.copy_(layer.gain[:, None])
        other.parametrizations.weight.original1.copy_(layer.weight)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), other(x))


def test_batch_norm_behind_hidden_layers():
    made = head(batch_norm=True)
    norms = [m.num_features for m in made.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms == [10, 9]
    biases = [m.bias is not None for m in made.layers if isinstance(m, nn.Linear)]
    assert biases == [False, False, True]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in head().modules())


@pytest.mark.parametrize("widths", [((10, 0), 5, 12), ((10,), 0, 12), ((10,), 5, -1)])
def test_refuses(widths):
    with pytest.raises(ValueError, match="the head's widths must be positive"):
        DINOHead(6, *widths)
