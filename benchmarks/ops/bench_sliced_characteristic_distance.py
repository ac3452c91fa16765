"""SIGReg: embeddings' distance from a normal distribution along random directions."""

from collections.abc import Callable

import pytest
import torch
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext import losses


def make_views(views: int, batch: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randn(views, batch, dim).to(dtype),)


def seeded(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """With the same 1024 directions in every call."""

    def call(z: Tensor) -> Tensor:
        torch.manual_seed(0)
        return loss(z)

    return call


WORKLOAD = Workload(
    file=__file__,
    cases=[
        {"views": 2, "batch": 256, "dim": 128},
        {"views": 8, "batch": 128, "dim": 512},
        {"views": 8, "batch": 256, "dim": 512},
    ],
    gpu_cases=({"views": 8, "batch": 1024, "dim": 1024},),
    inputs=make_views,
    tolerance=5e-2,  # compiled code draws other directions; of 16-bit rows lightly's are 16-bit
    contestants={
        name: seeded(loss)
        for name, loss in {"mast_ext": losses.SIGReg(), **lightly_rivals("SIGReg")}.items()
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_sliced_characteristic_distance(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
