"""NT-Xent (SimCLR: Chen et al., ICML 2020; MoCo: He et al., CVPR 2020), a drop-in for lightly's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.checks import explains_types, require_one_device
from mast_ext.compiling import copy_of_state
from mast_ext.losses.common.contrast import positive_cross_entropy
from mast_ext.losses.common.inputs import (
    Negatives,
    Reduction,
    in_one_dtype,
    reduce,
    require_alike,
    require_first_call,
    require_views,
)
from mast_ext.losses.common.memory_bank import MemoryBank
from mast_ext.losses.common.view_pairs import ViewPairLoss


class NTXentLoss(ViewPairLoss):
    """Finds the other view of an image among the images of a batch, or of a memory bank::

        without a bank   mean over anchors a, with positive p:  log Σ_{r ≠ a} exp(s(a, r)) − s(a, p)
        with a bank      mean over a = out0, p = out1:
                         log [ exp(s(a, p)) + Σ_{r in bank} exp(s(a, r)) ] − s(a, p)

    with ``s`` the cosine over ``temperature``. Without a bank both ``a`` and ``r`` run over the
    rows of both views (SimCLR's eq. 1). Of more than two views, every ordered pair gives an anchor
    and its positive. An anchor without negatives, such as that of a single image, has loss 0. No
    large ``B × B`` matrix is stored.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the loss of
    16-bit inputs is float32 (theirs is rounded to the inputs' dtype), the memory bank is in
    ``state_dict``, and a temperature below 0 is an error.

    Args:
        temperature: Divides the cosines; above 0.
        memory_bank_size: ``(rows, width)`` of the bank, 0 for none. ``out0`` is then contrasted
            with the bank, which takes ``out1`` in whenever ``out0`` requires a gradient.
        gather_distributed: The negatives are the rows of all processes, whose batches must be of
            equal size. With a bank: it takes in the rows of all processes.
        negatives: Of more than two views: an anchor's negatives are the rows of the ``"pairs"``
            two views, or of ``"all_views"`` (then with the image's other views among them).
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``temperature`` is not positive, ``memory_bank_size`` is not ``(rows, width)``,
            an option is unknown, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        negatives: Negatives = "pairs",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, gather_distributed, negatives, reduction)
        self.memory_bank = MemoryBank(memory_bank_size, gather_distributed)

    @explains_types
    def forward(self, out0: Tensor, out1: Tensor, *views: Tensor) -> Tensor:
        """The loss of two or more views; with a memory bank of two.

        Args:
            out0: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or (CPU) float64.
            out1: Embeddings of another view, like ``out0``.
            *views: Of more views.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes or devices differ, there is no image to take the mean over, a
                memory bank has another width or is given more than two views, or the processes'
                batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its memory bank.
        """
        if not self.memory_bank.rows:
            return super().forward(out0, out1, *views)
        if views:
            raise ValueError(f"a memory bank takes 2 views, got {2 + len(views)}")
        require_alike(out0=out0, out1=out1)
        out0, out1 = in_one_dtype(out0, out1)
        losses = self._bank_losses(out0[None], out1[None], update=out0.requires_grad)
        return reduce(losses[0, 0], self.reduction, "out0")

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """The loss of every pair of views of every image.

        With ``negatives="pairs"`` this is the loss of training on that pair alone, so that
        ``pair_losses(views)[i, j].mean() == forward(views[i], views[j])``.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs); symmetric in the views, unless
            there is a memory bank, which is not updated here.

        Raises:
            ValueError: ``views`` or the memory bank have another width, or the processes' batches
                differ in size.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        if not self.memory_bank.rows:
            return super().pair_losses(views)
        return self._bank_losses(require_views(views), views, update=False)

    def _bank_losses(self, queries: Tensor, keys: Tensor, update: bool) -> Tensor:
        """Of ``queries [V, B, D]`` and ``keys [W, B, D]``, ``[V, W, B]``; one view to update."""
        if update:
            require_first_call("the memory bank")
        bank = self.memory_bank.bank
        require_one_device(embeddings=queries, memory_bank=bank)
        if queries.shape[-1] != bank.shape[1]:
            raise ValueError(
                f"embeddings must have the width of the memory bank, {bank.shape[1]}, "
                f"got {queries.shape[-1]}"
            )
        positive = functional.subspace_similarity(queries, keys)[0] / self.temperature
        # The bank's rows are not rounded to 16 bits.
        dtype = torch.promote_types(queries.dtype, bank.dtype)
        rows = bank.to(dtype)
        if update or torch.is_grad_enabled():
            rows = copy_of_state(rows)  # what the backward pass needs, before an update changes it
        lse, _ = functional.contrastive_logsumexp(
            queries.to(dtype),
            rows[None],
            temperature=self.temperature,
            offset=None,
        )
        if update:
            self.memory_bank.update(keys[0])
        return positive_cross_entropy(lse[0], positive)
