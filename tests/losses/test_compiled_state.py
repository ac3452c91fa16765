"""Losses whose state moves in their forward pass, compiled: the backward pass needs what was."""

import copy
import shutil

import pytest
import torch
from torch.testing import assert_close

from mast_ext import losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler"),
]
DIM = 8
CASES = {
    "dino": lambda: losses.DINOLoss(DIM, center_momentum=0.1),
    "ibot": lambda: losses.IBOTPatchLoss(DIM, center_momentum=0.1),
    "ibot_plus_plus": lambda: losses.IBOTPlusPlusPatchLoss(DIM, center_momentum=0.1),
    "bank": lambda: losses.NTXentLoss(memory_bank_size=(5, DIM)),
    "co2_bank": lambda: losses.CO2Regularizer(memory_bank_size=(5, DIM)),
    "tico": lambda: losses.TiCoLoss(0.1),
    "whitening": lambda: losses.WMSELoss(2, w_size=4, momentum=0.9),
}
OF_TWO_VIEWS = ("bank", "co2_bank", "tico")


def inputs(name, device):
    if name in OF_TWO_VIEWS:
        return torch.randn(2, 4, DIM, device=device)
    if name == "whitening":
        return [torch.randn(8, 2, device=device)]
    shape = (4,) if name == "ibot" else (2, 4)
    teacher, student = torch.randn(2, *shape, DIM, device=device)
    mask = [torch.ones(1, 2, 2, dtype=torch.bool, device=device)] if name == "ibot" else []
    return teacher, student, *mask


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_of_the_state_before_the_update(name, device):
    """Where a compiler computes things again in the backward pass rather than keep them."""
    want = CASES[name]().to(device)
    loss = copy.deepcopy(want)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    for _ in range(3):
        batch = inputs(name, device)
        of = 0 if name in (*OF_TWO_VIEWS, "whitening") else 1
        gradients = []
        for each in (want, compiled):
            given = [x.clone().requires_grad_(i == of) for i, x in enumerate(batch[:2])]
            torch.manual_seed(0)  # parts of a whitened batch
            each(*given, *batch[2:]).backward()
            gradients.append(given[of].grad)
        assert_close(*gradients)
