"""SigLIP's loss (sigmoid_contrast) against plain torch, as open_clip computes it."""

import pytest
import torch
import torch.nn.functional as F
from harness import MODES, Workload
from torch import Tensor

from mast_ext import functional, losses

SCALE, BIAS = 10.0, -10.0


def make_inputs(batch, dim, dtype):
    return torch.randn(batch, dim, dtype=dtype), torch.randn(batch, dim, dtype=dtype)


def two_sweeps(x: Tensor, y: Tensor) -> Tensor:
    return functional.sigmoid_contrast(x, y, scale=SCALE, bias=BIAS).mean()


def eager(x: Tensor, y: Tensor) -> Tensor:
    logits = SCALE * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T + BIAS
    labels = 2 * torch.eye(len(x), device=x.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(x)


def least(batch: int, dim: int) -> tuple[int, int]:
    """Both tensors read twice, gradients written; a product, and two back."""
    return 6 * batch * dim, 6 * batch**2 * dim


WORKLOAD = Workload(
    file=__file__,
    measured="SigLIPLoss",
    cases=[
        {"batch": 512, "dim": 512},
        {"batch": 2048, "dim": 512},
        {"batch": 8192, "dim": 512},
    ],
    gpu_cases=({"batch": 32768, "dim": 768},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": losses.SigLIPLoss(SCALE, BIAS),
        "mast_ext, backward by itself": two_sweeps,
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_sigmoid_contrast(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
