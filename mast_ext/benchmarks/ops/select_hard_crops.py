"""The hardest tuple of crops: exact by sorting terms, against the score of every tuple.

Half of the local crops are kept, so that 4 global and 16 local ones make 51,480 tuples.
Forward only.
"""

import functools
import itertools

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload


def make_losses(
    num_globals: int, local_crops: int, batch: int, dtype: torch.dtype
) -> tuple[Tensor]:
    return ((torch.randn(num_globals, num_globals + local_crops, batch) + 10).to(dtype),)


def kept(ce: Tensor) -> int:
    return (ce.shape[1] - ce.shape[0]) // 2


def exact(ce: Tensor) -> Tensor:
    return functional.select_hard_crops(ce, num_locals=kept(ce))[1].sum()


@functools.cache
def all_tuples(
    num_globals: int, crops: int, count: int, device: torch.device
) -> tuple[Tensor, ...]:
    even, odd = range(0, num_globals, 2), range(1, num_globals, 2)
    subsets = list(itertools.combinations(range(num_globals, crops), count))
    pairs = itertools.product(even, odd)
    tuples = [(*pair, *subset) for pair in pairs for subset in subsets]
    return torch.tensor(tuples, device=device).unbind(1)


def enumeration(ce: Tensor) -> Tensor:
    """Every tuple's score ``[tuples, B]``, the tuples listed beforehand."""
    ce = ce.float()
    a, c, *chosen = all_tuples(*ce.shape[:2], kept(ce), ce.device)
    scores = ce[a, c] + ce[c, a]
    for local in chosen:
        scores = scores + ce[a, local] + ce[c, local]
    return scores.amax(0).sum()


def topk_per_pair(ce: Tensor) -> Tensor:
    """The exact search in plain torch."""
    ce = ce.float()
    best = []
    for a in range(0, len(ce), 2):
        for c in range(1, len(ce), 2):
            terms = ce[a, len(ce) :] + ce[c, len(ce) :]
            best.append(ce[a, c] + ce[c, a] + terms.topk(kept(ce), 0).values.sum(0))
    return torch.stack(best).amax(0).sum()


WORKLOAD = Workload(
    name="select_hard_crops",
    backward=False,
    cases=[
        {"num_globals": 4, "local_crops": 8, "batch": 64},
        {"num_globals": 4, "local_crops": 16, "batch": 64},
    ],
    inputs=make_losses,
    contestants={
        "mast_ext": exact,
        "top-k per pair": topk_per_pair,
        "torch.compile(top-k per pair)": torch.compile(topk_per_pair, dynamic=False),
        "enumeration": enumeration,
    },
)
