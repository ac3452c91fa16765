"""The projector on a backbone's features, and the uncertainty of a pair of views."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mast_ext.checks import OptionError, require_integers


class Projector(nn.Sequential):
    """A multi-layer perceptron with batch norm and ReLU between its layers.

    ``[N, F] -> [N, widths[-1]]``; the last layer is linear, without bias, batch norm or ReLU
    (the expander of VICReg, Bardes et al. 2022).

    Args:
        num_features: Width of the input ``F``.
        widths: Width of every layer; the last one is the embedding's dimension.
        last_norm: Whether a batch norm without scale and shift follows the last layer, as in the
            heads of contrastive methods (SimCLR, Chen et al. 2020).

    Raises:
        ValueError: No widths, or one below 1.
    """

    def __init__(
        self, num_features: int, widths: Sequence[int], *, last_norm: bool = False
    ) -> None:
        widths = require_integers("projector widths", widths)
        if not widths or min(widths) < 1:
            raise OptionError(f"projector widths must be positive numbers, got {list(widths)}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((num_features, *widths[:-1])):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        inputs = (num_features, *widths)[-2]
        layers.append(nn.Linear(inputs, widths[-1], bias=False))
        if last_norm:
            layers.append(nn.BatchNorm1d(widths[-1], affine=False))
        super().__init__(*layers)
        self.dim = widths[-1]


class PairUncertainty(nn.Sequential):
    """How uncertain it is that two views belong together: ``[B, inputs] -> [B]`` log-variances.

    A perceptron of one hidden layer on numbers that tell how differently two views were made. It
    starts at log-variance 0 everywhere, so that training begins with equal trust in every pair, and
    stays within ±8, so that equal views, whose likeliest variance is 0, have a finite one.

    Args:
        inputs: Numbers that describe a pair.
        hidden: Width of the hidden layer.

    Raises:
        ValueError: Pairs have another shape than ``[B, inputs]``.
    """

    limit = 8.0

    def __init__(self, inputs: int, hidden: int = 32) -> None:
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), last)

    def forward(self, pairs: Tensor) -> Tensor:
        inputs = self[0].in_features
        if pairs.ndim != 2 or pairs.shape[1] != inputs:
            raise ValueError(f"pairs must have shape [B, {inputs}], got {list(pairs.shape)}")
        return self.limit * (super().forward(pairs)[:, 0] / self.limit).tanh()
