"""KoLeoLoss, minus the mean logarithm of distances to nearest neighbors, against lightly's."""

import pytest
import torch
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext.losses import KoLeoLoss


def make_rows(rows: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randn(rows, dim).to(dtype),)


def least(rows: int, dim: int) -> tuple[int, int]:
    """Rows read twice, the gradient written; one product."""
    return 3 * rows * dim, 2 * rows**2 * dim


WORKLOAD = Workload(
    file=__file__,
    measured="KoLeoLoss",
    cases=[{"rows": 256, "dim": 384}, {"rows": 1024, "dim": 768}, {"rows": 4096, "dim": 384}],
    gpu_cases=({"rows": 16384, "dim": 768},),
    inputs=make_rows,
    tolerance=1e-2,  # lightly's distances of 16-bit rows are 16-bit numbers
    least=least,
    contestants={"mast_ext": KoLeoLoss(), **lightly_rivals("KoLeoLoss")},
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_nearest_neighbor_distance(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
