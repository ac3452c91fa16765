"""DirectCLR (Jing et al., ICLR 2022), a drop-in for lightly's class."""

from collections.abc import Sequence

from torch import Tensor

from mast_ext.checks import explains_types, require_integer
from mast_ext.losses.common.inputs import Negatives, Reduction, require_tensors
from mast_ext.losses.nt_xent import NTXentLoss


class DirectCLRLoss(NTXentLoss):
    """`NTXentLoss` of the first dimensions of a backbone's features, without a projection head.

    (Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised Learning",
    section 5.) Values equal those of lightly 1.6.0 to float32 accuracy; differences are those of
    `NTXentLoss`.

    Args:
        loss_dim: How many dimensions are compared; the others get a gradient of 0.
        temperature: See `NTXentLoss`.
        memory_bank_size: See `NTXentLoss`; of width ``loss_dim``.
        gather_distributed: See `NTXentLoss`.
        negatives: See `NTXentLoss`.
        reduction: See `NTXentLoss`.

    Raises:
        ValueError: As `NTXentLoss`, or ``loss_dim`` is not positive.
    """

    def __init__(
        self,
        loss_dim: int = 64,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        negatives: Negatives = "pairs",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature,
            memory_bank_size,
            gather_distributed,
            negatives=negatives,
            reduction=reduction,
        )
        self.loss_dim = require_integer("loss_dim", loss_dim, 1)

    @explains_types
    def forward(self, out0: Tensor, out1: Tensor, *views: Tensor) -> Tensor:
        """The loss of two or more views; with a memory bank of two.

        Args:
            out0: Features ``[B, ...]`` of one view; what is behind the batch is one dimension.
            out1: Features of another view, like ``out0``.
            *views: Of more views.

        Returns:
            As `NTXentLoss.forward`.

        Raises:
            ValueError: As there.
            TypeError: As there.
            RuntimeError: Another process died or is late.
        """
        every = (out0, out1, *views)
        require_tensors(**{f"out{i}": view for i, view in enumerate(every)})
        return super().forward(*(self._first(view, 1) for view in every))

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """As `NTXentLoss.pair_losses`, of features ``[V, B, ...]``."""
        return super().pair_losses(self._first(views, 2))

    def _first(self, features: Tensor, leading: int) -> Tensor:
        flat = features.flatten(leading) if features.ndim > leading + 1 else features
        return flat[..., : self.loss_dim] if flat.ndim > leading else flat
