"""One mask per augmentation: the dimensions of an embedding that are invariant to it.

"MAST: Masked Augmentation Subspace Training" (Huang et al., ICLR 2023) learns masks that select a
subspace per augmentation, with features that are shared by subspaces and features unique to some.
How the masks are made here is ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import (
    OptionError,
    explains_types,
    require_integer,
    require_numbers,
    require_positive,
)
from mast_ext.losses.common.linear_algebra import widen

SMALLEST = 1e-6  # share of the dimensions, to which a sum in float32 is exact
MOST_MASKS = 8  # kMostMasks of csrc/kernels/budgeted_masks: every subset of them has a group


def masks_of(weights: Tensor) -> Tensor:
    """The masks whose squares are these weights, with a finite gradient where one is 0."""
    return weights.clamp_min(1e-30).sqrt() * (weights > 0)


class AugmentationMasks(nn.Module):
    """Masks ``m [K, D]`` in ``[0, 1]`` of ``K`` augmentations of an embedding of ``D`` dimensions.

    Where ``m_k`` is 1 the embedding shall not change under augmentation ``k``; where it is 0, the
    dimension is *freed*: it may tell what ``k`` changes. A pair of views that differs by the
    augmentations ``A`` is compared under ``Π_{k∈A} m_k``: on all dimensions that none of them has
    freed. So the invariant dimensions are shared by every such subspace, and those that an
    augmentation frees are unique to the subspaces of the others. An operator multiplies embeddings
    by the mask, so a squared difference is weighted with ``Π m_k²``.

    Learned masks are a sigmoid with a *budget*, of logits ``θ``::

        m_k = sigmoid(sharpness · θ_k − c_k)        c_k such that  mean_d m_kd = 1 − freed_k

    A mask may choose what to free, and trade dimensions, but neither free more nor collapse. Which
    dimension is freed first is arbitrary, as all are alike before training; what is learned is how
    the freed dimensions of several augmentations overlap, and which dimensions keep what they
    have found. Masks that are not learned free blocks of dimensions, apart for every augmentation.

    With a *price*, how many are freed is learned, too: ``m_k = sigmoid(sharpness · θ_k)`` has no
    budget then, and :class:`mast_ext.losses.MASTLoss` moves it towards 0 where freeing the
    dimension saves more than the price, and towards 1 where it saves less. What it saves is the
    mean squared difference of all pairs less that of those that do not differ by ``k``: with a
    share ``p`` of pairs that do, and a difference that is larger by ``Δ`` in them, ``p · Δ``.
    Unrelated images differ by 2 in a dimension of variance 1, so nothing is worth ``2 p``.

    Args:
        freed: The share of the dimensions that each augmentation frees: 0, whose mask is ones, or
            from 1e-6 to 1 − 1e-6. At most 8 augmentations may free some. With a price, the share
            to start from.
        dim: ``D``, at least 1.
        learned: Whether masks are learned.
        price: What freeing one dimension costs, in units of its squared difference; positive.
            None, the default: each augmentation frees exactly its share.
        sharpness: Multiplies the logits, which are drawn with standard deviation 1: the larger, the
            nearer are the first masks to 0 and 1.
        generator: Source of the initial logits; torch's global one by default.

    Attributes:
        groups: ``G = 2^F``, the number of subsets of the ``F`` augmentations that free dimensions.

    Raises:
        ValueError: A number is out of range, or blocks take more than all dimensions.
    """

    logits: nn.Parameter | None
    bits: Tensor
    freeing_index: Tensor
    kept: Tensor
    blocks: Tensor

    def __init__(
        self,
        freed: Sequence[float],
        dim: int,
        *,
        learned: bool = True,
        price: float | None = None,
        sharpness: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        dim = require_integer("dim", dim, 1)
        freed = require_numbers("freed", freed)
        if not all(share == 0 or SMALLEST <= share <= 1 - SMALLEST for share in freed):
            raise OptionError(
                f"freed must hold shares of the dimensions, 0 or from {SMALLEST:g} to "
                f"{1 - SMALLEST:g}, got {freed}"
            )
        if price is not None:
            price = require_positive("price", price)
        if price is not None and not learned:
            raise OptionError(f"price must be None for masks that are not learned, got {price}")
        self.freed = tuple(map(float, freed))
        self.dim = dim
        self.learned = learned
        self.price = price
        self.sharpness = require_positive("sharpness", sharpness)
        self.freeing = [k for k, share in enumerate(self.freed) if share > 0]
        if len(self.freeing) > MOST_MASKS:
            raise OptionError(
                f"freed must be above 0 for at most {MOST_MASKS} augmentations, got {freed}"
            )
        self.groups = 2 ** len(self.freeing)
        for name, buffer in self._constants().items():
            self.register_buffer(name, buffer, persistent=False)
        self.register_parameter("logits", None)
        if learned and self.freeing:
            self.logits = nn.Parameter(torch.empty(len(self.freeing), dim))
            self.reset_parameters(generator)

    def _constants(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """The buffers: they follow from the options, and are in no state."""
        bits = [2**f for f in range(len(self.freeing))]
        kept = [1 - self.freed[k] for k in self.freeing]
        blocks, end = torch.ones(len(self.freeing), self.dim, device=device), self.dim
        for mask, k in zip(() if self.learned else blocks, self.freeing, strict=False):
            begin = end - max(1, round(self.freed[k] * self.dim))
            if begin < 0:
                raise OptionError(
                    f"freed must leave room for blocks of {self.dim} dimensions, apart for every "
                    f"augmentation, got {self.freed}"
                )
            mask[begin:end] = 0
            end = begin
        return {
            # Bit f of a group says whether its pairs differ by the f-th augmentation that frees.
            "bits": torch.tensor(bits, dtype=torch.int64, device=device),
            "freeing_index": torch.tensor(self.freeing, dtype=torch.int64, device=device),
            # Their bits as integers, which `module.half()` leaves alone.
            "kept": torch.tensor(kept, dtype=torch.float32, device=device).view(torch.int32),
            "blocks": blocks,
        }

    @torch.no_grad()
    def _set_constants(self) -> None:
        """Anew: of masks made on the meta device they have no values, or any."""
        like = self.blocks if self.logits is None else self.logits
        for name, constant in self._constants(None if like.is_meta else like.device).items():
            buffer = getattr(self, name)
            if buffer.device == constant.device:
                buffer.copy_(constant)
            else:
                setattr(self, name, constant.to(buffer.dtype))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._set_constants()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the logits anew, where there are any, and sets what follows from the options.

        So masks that were made on the meta device begin after ``to_empty``. (Loading a state sets
        the latter, too.)
        """
        self._set_constants()
        if self.logits is not None:
            with torch.no_grad():
                self.logits.normal_(generator=generator)
                if self.price is not None:  # shifted, so that they start with the shares freed
                    masks = masks_of(self._budgeted()[self.bits])
                    self.logits.copy_(masks.logit(SMALLEST) / self.sharpness)

    def forward(self) -> Tensor:
        """The masks ``[K, D]``, float32 (float64 for float64 parameters)."""
        of_one = masks_of(self.group_weights()[self.bits])  # the groups of a single augmentation
        masks = of_one.new_ones(len(self.freed), self.dim)
        return masks.index_copy(0, self.freeing_index, of_one)

    @explains_types
    def group(self, changed: Tensor) -> Tensor:
        """The group of every pair, ``[N]`` int64: which freeing augmentations it differs by.

        Args:
            changed: ``[N, K]`` bool, the augmentations by which each pair's views differ.

        Raises:
            ValueError: The shape does not fit.
            TypeError: It is not bool.
        """
        if changed.ndim != 2 or changed.shape[1] != len(self.freed):
            raise ValueError(
                f"changed must have shape [N, {len(self.freed)}], a column for every augmentation, "
                f"got {list(changed.shape)}"
            )
        if changed.dtype != torch.bool:
            raise TypeError(f"changed must be bool, got {changed.dtype}")
        if len(self.freeing) == 1:  # a single launch on a GPU
            return changed[:, self.freeing[0]].long()
        if len(self.freeing) < len(self.freed):
            changed = changed.index_select(1, self.freeing_index)
        return (changed * self.bits).sum(1)

    def group_weights(self) -> Tensor:
        """Weights of squared differences, ``Π m_k²`` over a group's augmentations: ``[G, D]``."""
        if self.logits is not None and self.price is None:
            return self._budgeted()
        masks = widen(self.blocks)
        if self.logits is not None:
            masks = (self.sharpness * widen(self.logits)).sigmoid().square()
        weights = masks.new_ones(1, self.dim)
        for mask in masks:
            weights = torch.cat((weights, weights * mask))
        return weights

    def freed_share(self) -> Tensor:
        """The share of the dimensions that each augmentation frees, ``mean_d (1 − m_kd)``: ``[K]``.

        In float32 (float64 for float64 parameters), with gradient where masks have a price.
        """
        return (1 - self()).mean(1)

    def _budgeted(self) -> Tensor:
        assert self.logits is not None
        logits = widen(self.logits)
        return functional.budgeted_masks(
            logits, self.kept.view(torch.float32).to(logits), sharpness=self.sharpness
        )

    @torch.no_grad()
    def invariant_dimensions(self) -> Tensor:
        """The dimensions that are invariant to each augmentation, ``Σ_d m_kd``: ``[K]``."""
        return self().sum(1)

    @torch.no_grad()
    def overlap(self) -> Tensor:
        """Cosine of what each two augmentations free, ``1 − m``: ``[K, K]``.

        1 if they free the same dimensions, 0 if different ones or none; 1 on the diagonal.
        """
        freed = F.normalize(1 - self(), dim=1)
        return (freed[:, None] * freed).sum(-1).fill_diagonal_(1)

    def extra_repr(self) -> str:
        kind = f"learned, sharpness={self.sharpness:g}" if self.learned else "blocks"
        if self.price is not None:
            kind += f", price={self.price:g}"
        return f"freed={self.freed}, dim={self.dim}, {kind}"
