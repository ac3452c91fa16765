"""What a pretraining method is: a view policy, heads on the backbone's features, and a loss.

A method owns no backbone: features come from outside, so that the same backbone can be trained,
probed and saved without it. It holds no arithmetic of a loss either: that is `mast_ext.losses`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, ViewBatch, ViewPolicy


@dataclass(frozen=True)
class Subspaces:
    """How an embedding is divided into subspaces, for probes and pictures.

    Attributes:
        names: Name of every subspace.
        masks: Weight of every dimension in every subspace, ``[K, D]`` float32, non-negative.
        effective_dimensions: How many dimensions each subspace uses in effect, ``[K]``.
        overlap: How much each pair of subspaces shares, ``[K, K]``, 1 on the diagonal.
    """

    names: tuple[str, ...]
    masks: Tensor
    effective_dimensions: Tensor
    overlap: Tensor


class Method(nn.Module, ABC):
    """Base class of the methods.

    A subclass is built as ``(num_features, recipe, options)``, where ``options`` is an instance
    of its frozen dataclass ``Options`` and ``recipe`` the one its views are made with.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]]

    projector: nn.Module

    @abstractmethod
    def policy(self, recipe: AugmentationRecipe) -> ViewPolicy:
        """Which views of an image the method trains on."""

    @abstractmethod
    def forward(self, features: Tensor, batch: ViewBatch) -> dict[str, Tensor]:
        """The training loss of a batch.

        Args:
            features: The backbone's features of every view, ``[V, B, F]``.
            batch: The views they come from.

        Returns:
            ``"loss"``, a scalar with gradient, and detached scalars to log.
        """

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of features ``[..., F]``.

        Leading axes are one batch to the projector, so batch norm sees all views together.
        """
        return self.projector(features.flatten(0, -2)).unflatten(0, features.shape[:-1])

    def subspaces(self) -> Subspaces | None:
        """The subspaces of the embedding, on the CPU; None when there is only the whole."""
        return None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay, beside biases and norms."""
        return set()
