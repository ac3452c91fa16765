"""SIGReg: embeddings' distance from a normal distribution along random directions."""

from collections.abc import Callable

import pytest
import torch
from harness import MODES, Workload, lightly_rivals
from torch import Tensor

from mast_ext import losses


def make_views(views: int, batch: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randn(views, batch, dim).to(dtype),)


class Seeded(torch.nn.Module):
    """A loss with the same 1024 directions in every call."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.loss(z)


def least(views: int, batch: int, dim: int) -> tuple[int, int]:
    """Views read twice, the gradient written; a product with 1024 directions, and one back."""
    return 3 * views * batch * dim, 4 * views * batch * dim * 1024


WORKLOAD = Workload(
    file=__file__,
    measured="SIGReg",
    cases=[
        {"views": 2, "batch": 256, "dim": 128},
        {"views": 8, "batch": 128, "dim": 512},
        {"views": 8, "batch": 256, "dim": 512},
    ],
    gpu_cases=({"views": 8, "batch": 1024, "dim": 1024},),
    inputs=make_views,
    graph=False,
    tolerance=5e-2,  # compiled code draws other directions; of 16-bit rows lightly's are 16-bit
    least=least,
    contestants={
        name: Seeded(loss)
        for name, loss in {"mast_ext": losses.SIGReg(), **lightly_rivals("SIGReg")}.items()
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_sliced_characteristic_distance(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
