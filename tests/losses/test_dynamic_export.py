"""`torch.export` of losses with a batch whose size is not fixed."""

import copy

import pytest
import torch
from loss_calls import CASES, inputs_of
from torch import nn
from torch.testing import assert_close

NAMES = [
    *("NTXentLoss", "DCLLoss", "DCLWLoss", "DirectCLRLoss", "InfoNCELoss", "SigLIPLoss"),
    *("CO2Regularizer", "EquivarianceLoss", "DINOLoss", "SwaVLoss", "KoLeoLoss"),
    *("GramAnchoringLoss", "MMCRLoss", "LeWMLoss", "VISRegLoss"),
]


class Called(nn.Module):
    def __init__(self, loss, call):
        super().__init__()
        self.loss, self.call = loss, call

    def forward(self, x, y):
        result = self.call(self.loss, x, y)
        return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_a_dynamic_batch(name):
    make, call = CASES[name][0]
    x, y = (t.detach() for t in inputs_of(torch.float32))
    batch = {1: torch.export.Dim("batch", min=8, max=64)}
    torch.manual_seed(0)
    called = Called(make(), call)
    few = x[:, :10], y[:, :10]
    want = copy.deepcopy(called)(*few)
    program = torch.export.export(called, (x, y), dynamic_shapes=(batch, batch)).module()
    found = program(*few)
    if name not in ("LeWMLoss", "VISRegLoss"):  # which draw directions
        assert_close(found, want)
