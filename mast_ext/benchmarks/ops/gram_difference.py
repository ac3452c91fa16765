"""Gram anchoring, whose teacher has no gradient, against the products in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload


def make_inputs(images, tokens, dim, dtype):
    """Student and teacher, in one tensor."""
    student = F.normalize(torch.randn(images, tokens, dim), dim=2)
    teacher = F.normalize(student + 0.02 * torch.randn_like(student), dim=2)
    return (torch.stack((student, teacher)).to(dtype),)


def pair_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[0].float(), x[1].detach().float()


def fused(x: Tensor) -> Tensor:
    return functional.gram_difference(*pair_of(x)).mean()


def products(x: Tensor) -> Tensor:
    s, t = pair_of(x)
    return F.mse_loss(s @ s.mT, t @ t.mT)


def moments(x: Tensor) -> Tensor:
    s, t = pair_of(x)
    own, both, other = ((a.mT @ b).square().sum() for a, b in ((s, s), (s, t), (t, t)))
    return (own - 2 * both + other) / (len(s) * s.shape[1] ** 2)


def fused_without_negatives(x: Tensor) -> Tensor:
    return functional.gram_difference(*pair_of(x), remove_negative="both").mean()


def products_without_negatives(x: Tensor) -> Tensor:
    s, t = pair_of(x)
    return F.mse_loss((s @ s.mT).clamp_min(0), (t @ t.mT).clamp_min(0))


def least(images: int, tokens: int, dim: int) -> tuple[int, int]:
    """Both tensors read twice, gradients written; two products of the smaller side each way."""
    return 6 * images * tokens * dim, 8 * images * min(tokens, dim) * tokens * dim


WORKLOAD = Workload(
    name="gram_difference",
    cases=[
        {"images": 64, "tokens": 196, "dim": 384},
        {"images": 16, "tokens": 1024, "dim": 384},
        {"images": 1, "tokens": 6272, "dim": 384},
    ],
    gpu_cases=(
        {"images": 64, "tokens": 256, "dim": 1024},
        {"images": 1, "tokens": 16384, "dim": 1024},
    ),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": fused,
        "products": products,
        "D x D products": moments,
        "torch.compile(products)": torch.compile(products, dynamic=False),
    },
    beside={
        "mast_ext without negatives": fused_without_negatives,
        "products without negatives": products_without_negatives,
    },
)
