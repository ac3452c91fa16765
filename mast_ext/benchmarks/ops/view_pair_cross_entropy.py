"""The mean NT-Xent over pairs of views, from sums that are there: against plain torch."""

import torch
from torch import Tensor

from mast_ext import functional, reference
from mast_ext.benchmarks.harness import Workload


def make_inputs(views: int, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """In float32, as they are of embeddings in any dtype."""
    lse = 3 * torch.randn(views, views, images) + 5
    return lse, lse + torch.randn_like(lse)


def ours(lse: Tensor, positive: Tensor) -> Tensor:
    return functional.view_pair_cross_entropy(lse, positive, reduction="mean")


def plain(lse: Tensor, positive: Tensor) -> Tensor:
    return reference.view_pair_cross_entropy(lse, positive, reduction="mean")


def least(views: int, images: int) -> tuple[int, int]:
    """Both read twice, both gradients written."""
    return 6 * views**2 * images, 0


WORKLOAD = Workload(
    name="view_pair_cross_entropy",
    cases=[
        {"views": 2, "images": 256},
        {"views": 2, "images": 4096},
        {"views": 8, "images": 1024},
    ],
    gpu_cases=({"views": 2, "images": 65536},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": ours,
        "plain": plain,
        "torch.compile": torch.compile(plain, dynamic=False),
    },
)
