"""subspace_similarity (cosine, every pair of views, every mask) against plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload


def make_inputs(views, batch, dim, subspaces, dtype):
    return torch.randn(views, batch, dim, dtype=dtype), torch.rand(subspaces, dim)


def fused(x: Tensor, masks: Tensor) -> Tensor:
    pairs = functional.subspace_similarity(x, masks=masks)
    return (pairs.sum() - pairs.diagonal(dim1=1, dim2=2).sum()) / 2


def naive(x: Tensor, masks: Tensor) -> Tensor:
    """The K masked copies of every view, pair by pair."""
    copies = (masks[:, None, None] * x).unbind(1)  # V × [K, B, D]
    total = x.new_zeros((), dtype=torch.float32)
    for i, a in enumerate(copies):
        for b in copies[i + 1 :]:
            total = total + F.cosine_similarity(a, b, dim=-1).sum()
    return total


def gemm(x: Tensor, masks: Tensor) -> Tensor:
    """Products of the views times the squared masks: what one can do in plain torch."""
    x = x.float()
    weights = masks.square().T
    inverse_norms = (x.square() @ weights).rsqrt()
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return ((x[i] * x[j]) @ weights * inverse_norms[i] * inverse_norms[j]).sum()


def least(views: int, batch: int, dim: int, subspaces: int) -> tuple[int, int]:
    """Views read twice, the gradient written."""
    return 3 * views * batch * dim, 0


WORKLOAD = Workload(
    name="subspace_similarity",
    cases=[
        {"views": 2, "batch": 256, "dim": 128, "subspaces": 5},
        {"views": 4, "batch": 256, "dim": 128, "subspaces": 5},
        {"views": 4, "batch": 1024, "dim": 512, "subspaces": 8},
        {"views": 4, "batch": 256, "dim": 2048, "subspaces": 16},
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
