"""Three iterations of Sinkhorn-Knopp over samples and prototypes. Forward only."""

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload

TEMPERATURE = 0.07


def make_logits(rows: int, prototypes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return ((0.3 * torch.randn(rows, prototypes)).to(dtype),)


def center(logits: Tensor) -> Tensor:
    """The largest assignment of the first sample, as of the other contestants."""
    shift = functional.sinkhorn_knopp(logits, temperature=TEMPERATURE)
    return ((logits[0].float() - shift) / TEMPERATURE).softmax(0).amax()


def dinov2_form(logits: Tensor) -> Tensor:
    """The assignments as DINOv2 writes them, in float32; overflows beyond logits of 6."""
    q = (logits.float() / TEMPERATURE).exp().T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1])[:, 0].amax()


def log_domain(logits: Tensor) -> Tensor:
    """The assignments without overflow, in plain torch."""
    q = logits.float() / TEMPERATURE
    for _ in range(3):
        q = q - q.logsumexp(0)
        q = q.log_softmax(1)
    return q[0].amax().exp()


def least(rows: int, prototypes: int) -> tuple[int, int]:
    """Logits read once."""
    return rows * prototypes, 0


WORKLOAD = Workload(
    name="sinkhorn_knopp",
    cases=[
        {"rows": 256, "prototypes": 4096},
        {"rows": 32, "prototypes": 65536},
        {"rows": 512, "prototypes": 65536},
    ],
    inputs=make_logits,
    least=least,
    backward=False,
    contestants={
        "mast_ext": center,
        "DINOv2's form": dinov2_form,
        "log domain": log_domain,
        "torch.compile(DINOv2's form)": torch.compile(dinov2_form, dynamic=False),
        "torch.compile(log domain)": torch.compile(log_domain, dynamic=False),
    },
)
