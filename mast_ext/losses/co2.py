"""CO2 (Wei et al., ICLR 2021), a drop-in for lightly's regularizer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_number, require_one_device, require_positive
from mast_ext.compiling import copy_of_state
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_alike,
    require_first_call,
    require_option,
)
from mast_ext.losses.common.linear_algebra import product, widen
from mast_ext.losses.common.memory_bank import MemoryBank


class CO2Regularizer(nn.Module):
    r"""Two views of an image shall be as similar as each other to any other image::

        loss = alpha/2 · mean_b [ KL(p_b ‖ q_b) + KL(q_b ‖ p_b) ]
        p_b  = softmax over { b's other view, negatives n } of cos(out0_b, n) / t_consistency
        q_b  = the same of out1_b

    The negatives are the other images' other views, or the rows of a memory bank, which gets no
    gradient (Wei et al. 2021, "CO2: Consistent Contrast for Unsupervised Visual Representation
    Learning"). Gradients flow through ``p`` and ``q``.

    Both distributions learn, which no operator of ours covers: this is plain torch, with no kernel
    of ours in it. Stored are the similarities, ``B × B`` or ``B × (rows + 1)`` with a bank, both
    softmaxes of them and the differences.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: **there is a
    gradient** (theirs returns a copy without one, so that adding it to a loss changes nothing), the
    result of 16-bit inputs is float32, the memory bank is in ``state_dict``, and a temperature
    below 0 is an error.

    Args:
        alpha: Weight of the result.
        t_consistency: Divides the cosines; above 0.
        memory_bank_size: ``(rows, width)`` of the bank, 0 for none. Every call adds ``out1`` to it.
        gather_distributed: The negatives are the images of all processes, whose batches must be of
            equal size. With a bank: it takes in the rows of all processes.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``t_consistency`` is not positive, ``memory_bank_size`` is not
            ``(rows, width)``, ``reduction`` is unknown, or ``gather_distributed`` without
            torch.distributed.
    """

    def __init__(
        self,
        alpha: float = 1,
        t_consistency: float = 0.05,
        memory_bank_size: int | Sequence[int] = 0,
        *,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.alpha = require_number("alpha", alpha)
        self.t_consistency = require_positive("t_consistency", t_consistency)
        self.gather_distributed = require_distributed(gather_distributed)
        self.memory_bank = MemoryBank(memory_bank_size, gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The regularizer of two views.

        Args:
            out0: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or float64.
            out1: Embeddings of the other view, like ``out0``.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes or devices differ, there is no image to take the mean over, the
                memory bank has another width, or the processes' batches differ in size.
            TypeError: The inputs are not of floating point.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its memory bank.
        """
        require_alike(out0=out0, out1=out1)
        both = in_one_dtype(out0, out1)
        first, second = (F.normalize(widen(out), dim=1) for out in both)
        logits = self._with_bank if self.memory_bank.rows else self._with_batch
        of_first, of_second = (each / self.t_consistency for each in logits(first, second))
        # Of log p − log q the normalizers drop out: p − q adds up to 0.
        gap = of_first.softmax(1) - of_second.softmax(1)
        divergence = (gap * (of_first - of_second)).sum(1)
        if self.memory_bank.rows:
            self.memory_bank.update(out1)
        return self.alpha * 0.5 * reduce(divergence, self.reduction, "out0")

    def _with_batch(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of both views with the other views of all images, ``[B, B']``."""
        if not self.gather_distributed:
            cosines = product(first, second.mT)
            return cosines, cosines.mT
        every_first, every_second = gather_batch(first, 0), gather_batch(second, 0)
        return product(first, every_second.mT), product(second, every_first.mT)

    def _with_bank(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of both views with each other and with the bank's rows, ``[B, 1 + rows]``."""
        require_first_call("the memory bank")
        bank = self.memory_bank.bank
        require_one_device(embeddings=first, memory_bank=bank)
        if first.shape[1] != bank.shape[1]:
            raise ValueError(
                f"embeddings must have the width of the memory bank, {bank.shape[1]}, "
                f"got {first.shape[1]}"
            )
        rows = copy_of_state(bank.to(first.dtype))  # the backward pass needs it as it was
        positive = (first * second).sum(1, keepdim=True)
        with_rows = (torch.cat((positive, product(x, rows.mT)), 1) for x in (first, second))
        of_first, of_second = with_rows
        return of_first, of_second

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, t_consistency={self.t_consistency}"
