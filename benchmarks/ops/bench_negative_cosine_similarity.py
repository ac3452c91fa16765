"""NegativeCosineSimilarity (SimSiam, BYOL) against lightly's."""

import pytest
import torch
from harness import MODES, Workload, lightly_rivals

from mast_ext.losses import NegativeCosineSimilarity


def make_inputs(batch, dim, dtype):
    return tuple(torch.randn(batch, dim, dtype=dtype) for _ in range(2))


def least(batch: int, dim: int) -> tuple[int, int]:
    """Both tensors read twice, gradients written."""
    return 6 * batch * dim, 0


WORKLOAD = Workload(
    file=__file__,
    measured="NegativeCosineSimilarity",
    cases=[{"batch": 256, "dim": 128}, {"batch": 256, "dim": 2048}, {"batch": 4096, "dim": 2048}],
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": NegativeCosineSimilarity(),
        **lightly_rivals("NegativeCosineSimilarity"),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_negative_cosine_similarity(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
