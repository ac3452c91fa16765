"""Sinkhorn-Knopp assignments of samples to prototypes, several batches of them side by side."""

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.distributed import all_reduce_logsumexp, world_size


@torch.no_grad()
def sinkhorn_centers(
    logits: Tensor,
    *,
    temperature: float,
    iterations: int,
    gather: bool,
    rows_first: bool = False,
) -> Tensor:
    """The centers whose softmax are the assignments, as `mast_ext.functional.sinkhorn_knopp` gives.

    Args:
        logits: ``[P, B, C]``: ``P`` batches, each with assignments of its own.
        temperature: Divides the logits.
        iterations: From 0, a plain softmax.
        gather: Whether a batch is that of all processes, which are asked once per iteration.
        rows_first: Whether samples are divided by their sums before the first iteration, too.

    Returns:
        ``[P, C]`` in float32 (float64 for float64 logits).
    """
    centers = logits.new_zeros(
        logits.shape[0], logits.shape[2], dtype=torch.promote_types(logits.dtype, torch.float32)
    )
    for iteration in range(iterations):
        mass = [
            functional.prototype_column_logsumexp(
                batch,
                temperature=temperature,
                center=center,
                normalize_rows=rows_first or iteration > 0,
            )
            for batch, center in zip(logits, centers, strict=True)
        ]
        total = torch.stack(mass) if mass else centers
        if gather and world_size() > 1:
            total = all_reduce_logsumexp(total)
        shifts = total.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0)  # of -inf none
        centers = centers + temperature * shifts
    return centers
