"""SIGReg: embeddings' distance from a normal distribution along random directions."""

from collections.abc import Callable

import torch
from torch import Tensor

from mast_ext import losses
from mast_ext.benchmarks.harness import Workload, lightly_rivals


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
    name="sliced_characteristic_distance",
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
        "mast_ext": Seeded(losses.SIGReg()),
        **{name: Seeded(loss) for name, loss in lightly_rivals("SIGReg").items()},
    },
)
