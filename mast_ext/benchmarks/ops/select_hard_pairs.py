"""Hard view selection: all pair losses and the choice, against one pair at a time. Forward only."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload
from mast_ext.losses import NTXentLoss

TEMPERATURE = 0.1


def hardest(views: Tensor, loss_of_pair: Callable[[int, int], Tensor]) -> Tensor:
    """Sum of every image's largest loss ``[B]``, from one pair of views after the other."""
    pairs = itertools.combinations(range(len(views)), 2)
    return torch.stack([loss_of_pair(i, j) for i, j in pairs]).amax(0).sum()


def nt_xent_of(similarity: Tensor) -> Tensor:
    """The loss ``[B]`` of a pair from the similarities ``[2B, 2B]`` of its rows, both ways."""
    rows = torch.arange(len(similarity), device=similarity.device)
    logits = (similarity / TEMPERATURE).masked_fill(
        torch.eye(len(rows), device=rows.device) > 0, -1e9
    )
    return F.cross_entropy(logits, rows.roll(len(rows) // 2), reduction="none").view(2, -1).mean(0)


def nt_xent(z: Tensor) -> Tensor:
    return functional.select_hard_pairs(NTXentLoss(TEMPERATURE).pair_losses(z))[1].sum()


def nt_xent_published(z: Tensor) -> Tensor:
    """As published: every pair's similarities by a broadcast, through ``[2B, 2B, D]``."""

    def loss(i: int, j: int) -> Tensor:
        pair = torch.cat([z[i], z[j]]).float()
        return nt_xent_of(F.cosine_similarity(pair[:, None], pair[None], dim=-1))

    return hardest(z, loss)


def nt_xent_matmuls(z: Tensor) -> Tensor:
    """Every pair's similarities by a matrix product."""
    unit = F.normalize(z, dim=-1)

    def loss(i: int, j: int) -> Tensor:
        pair = torch.cat([unit[i], unit[j]])
        return nt_xent_of((pair @ pair.T).float())

    return hardest(z, loss)


def cosine(p: Tensor, z: Tensor) -> Tensor:
    return functional.select_hard_cosine_pairs(p, z)[1].sum()


def cosine_pairs(p: Tensor, z: Tensor) -> Tensor:
    """One call per pair and direction, as published."""

    def loss(i: int, j: int) -> Tensor:
        there, back = F.cosine_similarity(p[i], z[j]), F.cosine_similarity(p[j], z[i])
        return -(there + back).float() / 2

    return hardest(p, loss)


def make_views(views: int, batch: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Views of one image are alike, more or less."""
    noise = torch.rand(views, batch, 1) * torch.randn(views, batch, dim)
    return ((torch.randn(batch, dim) + noise).to(dtype),)


def make_predictions_and_targets(**sizes: Any) -> tuple[Tensor, ...]:
    return make_views(**sizes) + make_views(**sizes)


NT_XENT = Workload(
    name="select_hard_pairs_nt_xent",
    backward=False,
    least=lambda views, batch, dim: (views * batch * dim, (views * batch) ** 2 * dim),
    cases=[{"views": 4, "batch": 256, "dim": 128}, {"views": 4, "batch": 1024, "dim": 128}],
    inputs=make_views,
    tolerance=1e-2,  # 16-bit similarities on a GPU
    contestants={
        "mast_ext": nt_xent,
        "published form": nt_xent_published,
        "matmul per pair": nt_xent_matmuls,
        "torch.compile(matmul per pair)": torch.compile(nt_xent_matmuls, dynamic=False),
    },
)
COSINE = Workload(
    name="select_hard_pairs_cosine",
    backward=False,
    least=lambda views, batch, dim: (2 * views * batch * dim, 0),
    cases=[{"views": 4, "batch": 256, "dim": 2048}, {"views": 4, "batch": 1024, "dim": 2048}],
    inputs=make_predictions_and_targets,
    tolerance=1e-2,
    contestants={
        "mast_ext": cosine,
        "cosine per pair": cosine_pairs,
        "torch.compile": torch.compile(cosine_pairs, dynamic=False),
    },
)
