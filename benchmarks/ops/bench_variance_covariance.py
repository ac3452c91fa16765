"""VICRegLoss, two views, against lightly's and what one can do in plain torch."""

import pytest
import torch
import torch.nn.functional as F
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext.losses import VICRegLoss


def make_inputs(batch, dim, dtype):
    a = torch.randn(batch, dim, dtype=dtype)
    return a, (a + 0.5 * torch.randn(batch, dim)).to(dtype)


def gram(a: Tensor, b: Tensor) -> Tensor:
    """The Gram trick in plain torch: no D×D matrix."""
    batch, dim = a.shape
    loss = 25 * F.mse_loss(a.float(), b.float())
    for z in (a.float(), b.float()):
        z = z - z.mean(0)
        squares = z.square().sum(0)
        loss = loss + 25 / 2 * F.relu(1 - (squares / (batch - 1) + 1e-4).sqrt()).mean()
        total = (z @ z.T).square().sum() - squares.square().sum()
        loss = loss + total / ((batch - 1) ** 2 * dim)
    return loss


def least(batch: int, dim: int) -> tuple[int, int]:
    """Views read twice, gradients written; a product of the smaller side each way, per view."""
    return 6 * batch * dim, 8 * min(batch, dim) * batch * dim


WORKLOAD = Workload(
    file=__file__,
    measured="VICRegLoss",
    cases=[
        {"batch": 256, "dim": 128},
        {"batch": 256, "dim": 2048},
        {"batch": 1024, "dim": 2048},
        {"batch": 256, "dim": 8192},
    ],
    gpu_cases=({"batch": 1024, "dim": 8192},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": VICRegLoss(),
        "Gram form": gram,
        **lightly_rivals("VICRegLoss"),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_variance_covariance(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
