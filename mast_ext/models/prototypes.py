"""The head of self-distillation: features to scores of prototypes (DINO, Caron et al. 2021)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import OptionError


class NormalizedLinear(nn.Module):
    """A linear layer without bias whose weights have a norm of their own parameter.

    ``[N, D] -> [N, C]``, ``y_c = gain_c · ⟨x, w_c / ‖w_c‖⟩`` (weight normalization, Salimans &
    Kingma 2016). For rows of norm 1 and a gain of 1 the outputs are cosines.

    Args:
        inputs: Width of the input ``D``.
        outputs: Number of prototypes ``C``.
        fixed_gain: The gain stays 1 and is no parameter.
    """

    def __init__(self, inputs: int, outputs: int, *, fixed_gain: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.gain = None if fixed_gain else nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.weight, dim=-1)
        if self.gain is not None:
            weight = weight * self.gain[:, None]
        return F.linear(x, weight)


class DINOHead(nn.Module):
    """A perceptron to rows of norm 1, and their scores under every prototype.

    ``[..., F] -> [..., C]``: linear layers with GELU between them, L2 normalization, and a
    `NormalizedLinear`.

    Args:
        num_features: Width of the input ``F``.
        hidden: Width of every hidden layer (the paper's are 2048, 2048).
        bottleneck: Width of the normalized rows (the paper's is 256).
        prototypes: Number of prototypes ``C`` (the paper's is 65536).
        batch_norm: Batch norm behind every hidden layer, as the authors take for ResNets.
        fixed_gain: See `NormalizedLinear`; the prototypes then have norm 1, which is more stable.

    Raises:
        ValueError: A width is below 1.
    """

    def __init__(
        self,
        num_features: int,
        hidden: Sequence[int],
        bottleneck: int,
        prototypes: int,
        *,
        batch_norm: bool = False,
        fixed_gain: bool = True,
    ) -> None:
        super().__init__()
        widths = (*hidden, bottleneck, prototypes)
        if min(widths) < 1:
            raise OptionError(f"the head's widths must be positive numbers, got {list(widths)}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((num_features, *hidden)):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.GELU())
        layers.append(nn.Linear((num_features, *hidden)[-1], bottleneck))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)
        self.prototypes = NormalizedLinear(bottleneck, prototypes, fixed_gain=fixed_gain)

    def embed(self, features: Tensor) -> Tensor:
        """The normalized rows, ``[..., F] -> [..., bottleneck]``."""
        rows = self.layers(features.flatten(0, -2))
        return F.normalize(rows, dim=-1).unflatten(0, features.shape[:-1])

    def forward(self, features: Tensor) -> Tensor:
        return self.prototypes(self.embed(features))
