"""BarlowTwinsLoss against lightly's and what one can do in plain torch."""

import pytest
import torch
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext.losses import BarlowTwinsLoss


def make_inputs(batch, dim, dtype):
    a = torch.randn(batch, dim, dtype=dtype)
    return a, (a + 0.5 * torch.randn(batch, dim)).to(dtype)


def normalized(z: Tensor) -> Tensor:
    return (z - z.mean(0)) * torch.rsqrt(z.var(0, unbiased=False) + 1e-5)


def gram(a: Tensor, b: Tensor) -> Tensor:
    """The Gram trick in plain torch: no D×D matrix."""
    a, b = normalized(a.float()), normalized(b.float())
    diagonal = (a * b).mean(0)
    total = ((a @ a.T) * (b @ b.T)).sum() / len(a) ** 2
    return (diagonal - 1).square().sum() + 5e-3 * (total - diagonal.square().sum())


def least(batch: int, dim: int) -> tuple[int, int]:
    """Views read twice, gradients written; products of the smaller side, forward and back."""
    return 6 * batch * dim, min(8 * batch**2 * dim, 6 * batch * dim**2)


WORKLOAD = Workload(
    file=__file__,
    measured="BarlowTwinsLoss",
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
        "mast_ext": BarlowTwinsLoss(),
        "Gram form": gram,
        **lightly_rivals("BarlowTwinsLoss"),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_cross_correlation_penalty(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
