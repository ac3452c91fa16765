"""KoLeo (Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019)."""

from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.distributed import gather_batch, rank, require_distributed
from mast_ext.losses.common.inputs import Reduction, reduce, require_option


class KoLeoLoss(nn.Module):
    r"""Spreads embeddings over the sphere, by the distance of each to its nearest neighbor::

        loss = − mean_n log(‖x̂_n − x̂_nn(n) + eps‖_p + eps)       x̂ = x / max(‖x‖₂, eps)

    The Kozachenko-Leonenko estimate of the embeddings' entropy (Sablayrolles et al. 2019); DINOv2
    (Oquab et al. 2024) adds it per global crop. The neighbor is the one of largest cosine, found
    without an ``N × N`` matrix. A single embedding is its own neighbor and gets no gradient.

    Values equal those of lightly 1.6.0 to float32 accuracy; 16-bit embeddings are compared, and the
    loss returned, in float32, so that it stays finite for duplicates.

    Args:
        p: The norm of the distance to the neighbor.
        eps: Smallest norm to divide by, and what keeps the logarithm finite; above 0.
        gather_distributed: Neighbors are sought among the embeddings of all processes, whose
            batches must be of equal size.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per embedding.

    Raises:
        ValueError: ``p`` or ``eps`` is not positive, ``reduction`` is unknown, or
            ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        p: float = 2,
        eps: float = 1e-8,
        *,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not (p > 0 and eps > 0):
            raise ValueError(f"p and eps must be positive, got {p} and {eps}")
        self.p = p
        self.eps = eps
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    def forward(self, x: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            x: Embeddings ``[N, D]``: float32, float16, bfloat16 or (CPU) float64.

        Returns:
            A scalar, or ``[N]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``x`` has another shape, or no embedding to take the mean over, or the
                processes' batches differ in size.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        if x.ndim != 2:
            raise ValueError(f"x must have shape [N, D], got {list(x.shape)}")
        rows = gather_batch(x, 0) if self.gather_distributed else x
        if len(rows) == 1:
            rows = rows.expand(2, -1)
        distance, neighbor = functional.nearest_neighbor_distance(rows, eps=self.eps)
        if self.p != 2:
            normal = F.normalize(rows.to(distance.dtype), dim=1, eps=self.eps)
            distance = (normal - normal[neighbor] + self.eps).norm(self.p, dim=1)
        start = rank() * len(x) if self.gather_distributed else 0
        own = distance[start : start + len(x)]
        return reduce(-(own + self.eps).log(), self.reduction, "x")

    def extra_repr(self) -> str:
        return f"p={self.p}, eps={self.eps}"
