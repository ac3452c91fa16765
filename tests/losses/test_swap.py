"""Training with our NTXentLoss in the place of lightly's."""

import lightly.loss
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mast_ext import losses

STEPS, BATCH, FEATURES = 50, 32, 24
# Both losses round every step to float32, and training carries that along.
TOLERANCE = 1e-5


def train(loss_class, device, **options):
    """SimCLR of a small encoder on noisy views of random images: the loss of every step."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)
    ).to(device)
    criterion = loss_class(temperature=0.2, **options).to(device)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.2, momentum=0.9)
    images = torch.randn(4 * BATCH, FEATURES)
    curve = []
    for step in range(STEPS):
        batch = images[step % 4 * BATCH :][:BATCH]
        a, b = (
            encoder(F.dropout(batch + 0.3 * torch.randn_like(batch), 0.2).to(device))
            for _ in range(2)
        )
        loss = criterion(a, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return torch.tensor(curve)


@pytest.mark.parametrize("options", [{}, {"memory_bank_size": (100, 16)}], ids=str)
def test_the_loss_curve_is_lightlys(options, device):
    ours, theirs = (train(p.NTXentLoss, device, **options) for p in (losses, lightly.loss))
    assert theirs.max() - theirs.min() > 0.5  # it does learn
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
