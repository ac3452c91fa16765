"""NTXentLoss against lightly's and what one can do in plain torch."""

import pytest
import torch
import torch.nn.functional as F
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext.losses import NTXentLoss


def make_inputs(batch, dim, dtype):
    a = torch.randn(batch, dim, dtype=dtype)
    return a, (a + 0.5 * torch.randn(batch, dim)).to(dtype)


def one_matrix(a: Tensor, b: Tensor) -> Tensor:
    """All similarities by one product, the row itself masked."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (z * z.roll(len(a), 0)).sum(1) / 0.5
    return ((z @ z.T / 0.5).masked_fill(own, -1e9).logsumexp(1) - positive).mean()


def least(batch: int, dim: int) -> tuple[int, int]:
    """Rows read twice, gradients written; a symmetric product, and two whole ones back."""
    return 6 * batch * dim, 5 * (2 * batch) ** 2 * dim


WORKLOAD = Workload(
    file=__file__,
    measured="NTXentLoss",
    cases=[
        {"batch": 256, "dim": 128},
        {"batch": 1024, "dim": 128},
        {"batch": 4096, "dim": 128},
        {"batch": 1024, "dim": 1024},
    ],
    gpu_cases=({"batch": 32768, "dim": 256},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": NTXentLoss(),
        "one matrix": one_matrix,
        "torch.compile": torch.compile(one_matrix, dynamic=False),
        **lightly_rivals("NTXentLoss"),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_ntxent(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
