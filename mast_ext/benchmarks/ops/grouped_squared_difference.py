"""grouped_squared_difference against index_add and a matrix product of indicators."""

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload

GROUPS = 32


def make_inputs(batch, dim, dtype):
    x, y = (torch.randn(batch, dim, dtype=dtype) for _ in range(2))
    return x, y, torch.randint(GROUPS, (batch,)), torch.rand(GROUPS, dim)


def fused(x: Tensor, y: Tensor, group: Tensor, masks: Tensor) -> Tensor:
    sums, _ = functional.grouped_squared_difference(x, y, group, GROUPS)
    return (masks * sums).sum()


def scattered(x: Tensor, y: Tensor, group: Tensor, masks: Tensor) -> Tensor:
    squares = (x.float() - y.float()).square()
    return (masks * torch.zeros_like(masks).index_add(0, group, squares)).sum()


def multiplied(x: Tensor, y: Tensor, group: Tensor, masks: Tensor) -> Tensor:
    belongs = (group == torch.arange(GROUPS, device=x.device)[:, None]).float()
    return (masks * (belongs @ (x.float() - y.float()).square())).sum()


def gathered(x: Tensor, y: Tensor, group: Tensor, masks: Tensor) -> Tensor:
    return (masks[group] * (x.float() - y.float()).square()).sum()


def least(batch: int, dim: int) -> tuple[int, int]:
    """Both tensors read twice, gradients written."""
    return 6 * batch * dim, 0


WORKLOAD = Workload(
    name="grouped_squared_difference",
    cases=[{"batch": 256, "dim": 256}, {"batch": 256, "dim": 2048}, {"batch": 4096, "dim": 512}],
    gpu_cases=({"batch": 65536, "dim": 256},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": fused,
        "index_add": scattered,
        "indicators": multiplied,
        "mask per pair": gathered,
        "torch.compile(mask per pair)": torch.compile(gathered, dynamic=False),
    },
)
