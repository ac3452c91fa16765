"""KoLeo (Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_positive
from mast_ext.compiling import changes_between_calls
from mast_ext.distributed import gather_batch, rank, require_distributed
from mast_ext.losses.common.inputs import Reduction, reduce, require_option, require_tensors
from mast_ext.losses.common.linear_algebra import widen, without_autocast


class KoLeoLoss(nn.Module):
    r"""Spreads embeddings over the sphere, by the distance of each to its nearest neighbor::

        loss = − mean_n log(‖x̂_n − x̂_nn(n) + eps‖_p + eps)       x̂ = x / max(‖x‖₂, eps)

    The Kozachenko-Leonenko estimate of the embeddings' entropy (Sablayrolles et al. 2019); DINOv2
    (Oquab et al. 2024) adds it per global crop. The neighbor is the one of largest cosine, found
    without an ``N × N`` matrix. A single embedding is its own neighbor and gets no gradient.

    With ``topk`` the logarithm is a mean over that many nearest neighbors, and with ``group_size``
    neighbors are sought among the rows of a group, as by DINOv3 (Siméoni et al. 2025). They are
    found by plain torch then, with the cosines of a group's rows in memory, but for no backward
    pass.

    Values equal those of lightly 1.6.0 to float32 accuracy; 16-bit embeddings are compared, and the
    loss returned, in float32, so that it stays finite for duplicates.

    Args:
        p: The norm of the distance to the neighbor.
        eps: Smallest norm to divide by, and what keeps the logarithm finite; above 0.
        gather_distributed: Neighbors are sought among the embeddings of all processes, whose
            batches must be of equal size.
        topk: How many neighbors.
        group_size: Rows of a group, one group after the other; ``None``: all rows.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per embedding.

    Raises:
        ValueError: ``p`` or ``eps`` is not positive, ``topk`` is below 1 or not below
            ``group_size``, ``reduction`` is unknown, or ``gather_distributed`` without
            torch.distributed.
    """

    def __init__(
        self,
        p: float = 2,
        eps: float = 1e-8,
        *,
        gather_distributed: bool = False,
        topk: int = 1,
        group_size: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.topk = require_integer("topk", topk, 1)
        self.group_size = None
        if group_size is not None:
            self.group_size = require_integer("group_size", group_size, 2)
            if self.topk >= self.group_size:
                raise ValueError(f"topk must be below group_size, got {topk} of {group_size}")
        self.p = require_positive("p", p, finite=False)
        self.eps = require_positive("eps", eps)
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(self, x: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            x: Embeddings ``[N, D]``: float32, float16, bfloat16 or (CPU) float64.

        Returns:
            A scalar, or ``[N]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``x`` has another shape, or no embedding to take the mean over; there are
                ``topk`` embeddings or fewer of more than one neighbor, or no whole groups; or the
                processes' batches differ in size.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        if x.ndim != 2:
            raise ValueError(f"x must have shape [N, D], got {list(x.shape)}")
        require_tensors(x=x)
        rows = gather_batch(x, 0) if self.gather_distributed else x
        if rows.shape[0] and (self.topk > 1 or self.group_size is not None):
            distances = self._nearest(rows)
        else:
            distances = self._nearest_one(rows)
        start = rank() * x.shape[0] if self.gather_distributed else 0
        own = distances[start : start + x.shape[0]]
        return reduce(-(own + self.eps).log().mean(1), self.reduction, "x")

    def _nearest_one(self, rows: Tensor) -> Tensor:
        """Distances ``[N, 1]`` of ``rows [N, D]``."""
        if rows.shape[0] == 1:
            rows = rows.expand(2, -1)
        distance, neighbor = functional.nearest_neighbor_distance(rows, eps=self.eps)
        if self.p != 2:
            normal = self._normalized(rows.to(distance.dtype))
            distance = self._norm(normal - normal[neighbor] + self.eps)
        return distance.unsqueeze(1)

    def _nearest(self, rows: Tensor) -> Tensor:
        """Distances ``[N, topk]`` of ``rows [N, D]`` to neighbors of their groups."""
        size = self.group_size or rows.shape[0]
        if rows.shape[0] % size or size <= self.topk:
            raise ValueError(
                f"x must hold whole groups of {size} rows, more than {self.topk}, got {len(rows)}"
            )
        normal = self._normalized(widen(rows))
        with torch.no_grad(), without_autocast(rows):
            groups = normal.view(-1, size, normal.shape[1])
            cosines = groups @ groups.mT
            cosines.diagonal(dim1=1, dim2=2).fill_(-2)
            index = cosines.topk(self.topk, dim=2).indices
            index = index + torch.arange(0, rows.shape[0], size, device=index.device)[:, None, None]
        distances = [
            self._norm(normal - normal[neighbor] + self.eps)
            for neighbor in index.flatten(0, 1).unbind(1)
        ]
        return torch.stack(distances, 1)

    def _norm(self, differences: Tensor) -> Tensor:
        """Norms ``[N]`` of rows."""
        if changes_between_calls(self.p):  # torch takes a norm's number for a constant
            p, sizes = differences.new_ones(()) * self.p, differences.abs()
            # Powers of small numbers vanish, and a root of 0 has no derivative.
            largest = sizes.detach().amax(1).clamp_min(torch.finfo(sizes.dtype).tiny)
            return largest * (sizes / largest[:, None]).pow(p).sum(1).pow(1 / p)
        return differences.norm(self.p, dim=1)

    def _normalized(self, rows: Tensor) -> Tensor:
        """Rows ``[N, D]`` on the sphere."""
        if changes_between_calls(self.eps):  # and this one, too
            least = rows.new_ones(()) * self.eps
            return rows / torch.maximum(rows.norm(dim=1, keepdim=True), least)
        return F.normalize(rows, dim=1, eps=self.eps)

    def extra_repr(self) -> str:
        return f"p={self.p}, eps={self.eps}, topk={self.topk}, group_size={self.group_size}"
