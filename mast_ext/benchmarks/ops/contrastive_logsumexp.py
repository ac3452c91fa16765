"""NT-Xent in every subspace (contrastive_logsumexp with masks) against plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload

TEMPERATURE = 0.1


def make_inputs(views, batch, dim, subspaces, dtype):
    return torch.randn(views, batch, dim, dtype=dtype), torch.rand(subspaces, dim)


def fused(x: Tensor, masks: Tensor) -> Tensor:
    lse, positive = functional.contrastive_logsumexp(x, masks=masks, temperature=TEMPERATURE)
    return (torch.logaddexp(lse[:, 0, 0], lse[:, 0, 1]) - positive[:, 0, 1]).mean() / 2 + (
        torch.logaddexp(lse[:, 1, 1], lse[:, 1, 0]) - positive[:, 1, 0]
    ).mean() / 2


def loop(x: Tensor, masks: Tensor) -> Tensor:
    """Mask by mask, all similarities as one matrix."""
    rows = 2 * x.shape[1]
    own = torch.eye(rows, dtype=torch.bool, device=x.device)
    total = x.new_zeros((), dtype=torch.float32)
    for mask in masks:
        z = F.normalize(mask * x, dim=-1).flatten(0, 1)
        positive = (z * z.roll(x.shape[1], 0)).sum(1) / TEMPERATURE
        logits = (z @ z.T / TEMPERATURE).masked_fill(own, -1e9)
        total = total + (logits.logsumexp(1) - positive).mean()
    return total / len(masks)


def least(views: int, batch: int, dim: int, subspaces: int) -> tuple[int, int]:
    """As NT-Xent's, in every subspace."""
    rows = views * batch
    return 3 * rows * dim, 5 * subspaces * rows**2 * dim


WORKLOAD = Workload(
    name="contrastive_logsumexp",
    cases=[
        {"views": 2, "batch": 256, "dim": 128, "subspaces": 5},
        {"views": 2, "batch": 1024, "dim": 512, "subspaces": 8},
        {"views": 2, "batch": 1024, "dim": 2048, "subspaces": 8},
    ],
    gpu_cases=({"views": 2, "batch": 1024, "dim": 2048, "subspaces": 16},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": fused,
        "eager": loop,
        "torch.compile": torch.compile(loop, dynamic=False),
    },
)
