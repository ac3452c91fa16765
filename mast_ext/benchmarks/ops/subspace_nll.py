"""subspace_nll with one variance per dimension, every pair of views, against plain torch."""

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload


def make_inputs(views, batch, dim, subspaces, dtype):
    x, log_var = (torch.randn(views, batch, dim, dtype=dtype) for _ in range(2))
    return x, log_var, torch.rand(subspaces, dim)


def fused(x: Tensor, log_var: Tensor, masks: Tensor) -> Tensor:
    pairs = functional.subspace_nll(x, log_var, masks=masks, variance="diagonal")
    return (pairs.sum() - pairs.diagonal(dim1=1, dim2=2).sum()) / 2


def naive(x: Tensor, log_var: Tensor, masks: Tensor) -> Tensor:
    """The formula as it stands, [K, B, D] at a time."""
    weights = masks.square()[:, None]
    total = x.new_zeros((), dtype=torch.float32)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            log_s = torch.logaddexp(log_var[i], log_var[j])
            terms = weights * ((x[i] - x[j]).square() * torch.exp(-log_s) + log_s)
            total = total + (terms.sum(-1) / weights.sum(-1)).sum() / 2
    return total


def gemm(x: Tensor, log_var: Tensor, masks: Tensor) -> Tensor:
    """All pairs at once, times the squared masks: what one can do in plain torch."""
    x, log_var, weights = x.float(), log_var.float(), masks.square()
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    log_s = torch.logaddexp(log_var[i], log_var[j])
    terms = (x[i] - x[j]).square() * torch.exp(-log_s) + log_s
    return (terms @ weights.T / weights.sum(-1)).sum() / 2


def least(views: int, batch: int, dim: int, subspaces: int) -> tuple[int, int]:
    """Views and log-variances read twice, gradients written."""
    return 6 * views * batch * dim, 0


WORKLOAD = Workload(
    name="subspace_nll",
    cases=[
        {"views": 2, "batch": 256, "dim": 128, "subspaces": 5},
        {"views": 4, "batch": 1024, "dim": 512, "subspaces": 8},
        {"views": 2, "batch": 1024, "dim": 2048, "subspaces": 16},
    ],
    gpu_cases=({"views": 8, "batch": 4096, "dim": 2048, "subspaces": 16},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": fused,
        "naive": naive,
        "GEMM form": gemm,
        "torch.compile": torch.compile(naive, dynamic=False),
    },
)
