"""Learnable masks that pick a subspace of the embedding for every augmentation.

"MAST: Masked Augmentation Subspace Training" (Huang et al., ICLR 2023) learns such masks; the
parameterizations here are ours. What matters is the *budget*: a mask that
may concentrate shrinks to the one or two dimensions that are easiest to make invariant. The
default gives every subspace and every dimension the same budget; so do fixed blocks.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Parameterization = Literal["balanced", "softmax", "sigmoid", "relu", "blocks", "ones"]


class SubspaceMasks(nn.Module):
    """Masks ``[K, D]`` of ``K`` subspaces of an embedding of ``D`` dimensions.

    An operator multiplies embeddings by the mask ``m``, so a squared distance is weighted with
    ``w = m²``. The parameterizations, of the learned ``logits [K, D]``:

    * ``balanced``: ``w`` is the matrix nearest to ``exp(logits)`` (in relative entropy) with
      ``Σ_d w_kd = D`` for every subspace and ``Σ_k w_kd = K`` for every dimension: Sinkhorn
      iterations in the log domain. The dimensions' sums hold to rounding; the subspaces' within
      1e-6 for logits of standard deviation 1, and 1e-3 at 3.
    * ``softmax``: ``w = D · softmax_d(logits)``: every subspace has the budget ``D`` and may spend
      it on few dimensions.
    * ``sigmoid``: ``m = sigmoid(logits)``, no budget.
    * ``relu``: ``m = relu(logits)``, no budget. It starts positive everywhere; an entry that
      reaches 0 gets no more gradient.
    * ``blocks``: nothing is learned; each subspace has a block of consecutive dimensions for
      itself, all of the same size where ``K`` divides ``D`` (else the first ones have one more).
      The budgets are those of ``balanced``.
    * ``ones``: nothing is learned; every subspace is the whole embedding, as without masks.

    Args:
        subspaces: ``K``, at least 1.
        dim: ``D``, at least 1.
        parameterization: One of the above.
        spread: Standard deviation of the initial logits; 0 makes all subspaces alike, and then
            only their data can tell them apart.
        iterations: Sinkhorn iterations (``balanced`` only).
        generator: Source of the initial logits; torch's global one by default.

    Raises:
        ValueError: A number is out of range or the parameterization is unknown.
    """

    fixed: Tensor
    logits: nn.Parameter | None

    def __init__(
        self,
        subspaces: int,
        dim: int,
        parameterization: Parameterization = "balanced",
        *,
        spread: float = 1.0,
        iterations: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("subspaces", subspaces), ("dim", dim), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if parameterization not in get_args(Parameterization):
            raise ValueError(
                f"parameterization must be one of {', '.join(get_args(Parameterization))}, "
                f"got {parameterization!r}"
            )
        if parameterization == "blocks" and dim < subspaces:
            raise ValueError(f"dim must be at least {subspaces}, one per subspace, got {dim}")
        if not spread >= 0:
            raise ValueError(f"spread must not be negative, got {spread}")
        self.subspaces = subspaces
        self.dim = dim
        self.parameterization = parameterization
        self.spread = spread
        self.iterations = iterations
        if parameterization in ("blocks", "ones"):
            fixed = torch.ones(subspaces, dim)
            if parameterization == "blocks":
                fixed = _blocks(subspaces, dim)
            self.register_buffer("fixed", fixed, persistent=False)
            self.register_parameter("logits", None)
        else:
            self.logits = nn.Parameter(torch.empty(subspaces, dim))
            self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the logits anew, where there are any."""
        if self.logits is None:
            return
        with torch.no_grad():
            self.logits.normal_(std=self.spread, generator=generator)
            if self.parameterization == "relu":
                self.logits.add_(1).abs_()

    def forward(self) -> Tensor:
        """The masks ``[K, D]``, non-negative, float32 (float64 for float64 parameters)."""
        if self.logits is None:
            return self.fixed.to(torch.promote_types(self.fixed.dtype, torch.float32))
        # Not what `module.half()` made of the parameters: budgets are sums over all dimensions.
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        if self.parameterization == "balanced":
            return (self._log_balanced(logits) / 2).exp()
        if self.parameterization == "softmax":
            return ((logits.log_softmax(1) + math.log(self.dim)) / 2).exp()
        return logits.sigmoid() if self.parameterization == "sigmoid" else logits.relu()

    def _log_balanced(self, logits: Tensor) -> Tensor:
        """``log w``: each iteration fixes the subspaces' sums, then the dimensions' sums."""
        log_budget = math.log(self.dim / self.subspaces)
        shares = logits.log_softmax(0)  # of every dimension, over the subspaces
        for _ in range(self.iterations):
            logits = logits + (log_budget - shares.logsumexp(1, keepdim=True))
            shares = logits.log_softmax(0)
        return shares + math.log(self.subspaces)

    def l1(self) -> Tensor:
        """Mean of the masks, ``‖M‖₁ / (K·D)``: a scalar with gradient."""
        return self().mean()

    @torch.no_grad()
    def effective_dimensions(self) -> Tensor:
        """``(Σ_d w_kd)² / Σ_d w_kd²`` of every subspace, ``[K]``: ``D`` if even, 1 if one-hot."""
        weights = self().square()
        return weights.sum(1).square() / weights.square().sum(1).clamp_min(1e-30)

    @torch.no_grad()
    def overlap(self) -> Tensor:
        """Cosine of the subspaces' weights ``w``, ``[K, K]``: 1 if alike, 0 if disjoint."""
        weights = nn.functional.normalize(self().square(), dim=1)
        return (weights[:, None] * weights).sum(-1)

    def extra_repr(self) -> str:
        text = f"{self.subspaces}, {self.dim}, {self.parameterization!r}, spread={self.spread:g}"
        return text + (
            f", iterations={self.iterations}" if self.parameterization == "balanced" else ""
        )


def _blocks(subspaces: int, dim: int) -> Tensor:
    """Masks of consecutive dimensions, scaled to the budget ``Σ_d w_kd = D``."""
    masks = torch.zeros(subspaces, dim)
    for mask, members in zip(masks, torch.arange(dim).tensor_split(subspaces), strict=True):
        mask[members] = math.sqrt(dim / len(members))
    return masks
