"""Training with our NTXentLoss and DINOLoss in the place of lightly's."""

import copy

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


def distill(loss_class, device):
    """DINO of a small encoder with two large and three local views: the loss of every step."""
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 48), nn.LayerNorm(48)
    ).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    criterion = loss_class(48, 0.1, 0.2, 5, student_temp=0.3).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    images = 2 * torch.randn(4 * BATCH, FEATURES)
    curve = []
    for step in range(STEPS):
        batch = images[step % 4 * BATCH :][:BATCH]
        noisy = [batch + 0.3 * torch.randn_like(batch) for _ in range(5)]
        crops = [*noisy[:2], *(F.dropout(view, 0.5) for view in noisy[2:])]
        crops = [crop.to(device) for crop in crops]
        loss = criterion(
            [teacher(crop) for crop in crops[:2]], [student(x) for x in crops], epoch=step // 5
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        curve.append(loss.item())
    return torch.tensor(curve)


def test_the_loss_curve_of_dino_is_lightlys(device):
    ours, theirs = (distill(package.DINOLoss, device) for package in (losses, lightly.loss))
    assert theirs.max() - theirs.min() > 0.5  # it does learn
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
