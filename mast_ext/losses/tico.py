"""TiCo (Zhu et al., arXiv 2206.10698), a drop-in for lightly's class."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_number, require_one_device
from mast_ext.compiling import out_of_inference
from mast_ext.distributed import all_gather_numbers, all_reduce, require_distributed, world_size
from mast_ext.losses.common.inputs import require_first_call, require_tensors
from mast_ext.losses.common.linear_algebra import product, widen


class TiCoLoss(nn.Module):
    r"""Draws two views together, and away from the directions that embeddings took so far::

        C    ← beta · C + (1 − beta) · mean_b a_b a_bᵀ           a = z_a / ‖z_a‖,  b alike
        loss = 1 − mean_b ⟨a_b, b_b⟩ + rho · mean_b a_bᵀ C a_b

    The moving average ``C [D, D]``, which has no gradient, includes this batch (Zhu et al. 2022,
    "TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual
    Representation Learning"). Plain torch: no kernel of ours is in it.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the loss of
    16-bit inputs is float32, and ``C`` is in ``state_dict``, so that training resumes with it.

    Args:
        beta: Weight of the past in ``C``.
        rho: Weight of the second term.
        gather_distributed: ``C`` is that of the images of all processes, whose numbers may differ:
            matrices are added up, embeddings are not sent.

    Attributes:
        C: The moving average, float32; ``None`` before the first batch.

    Raises:
        ValueError: ``beta`` is not in [0, 1], or ``gather_distributed`` without torch.distributed.
    """

    C: Tensor | None

    def __init__(
        self, beta: float = 0.9, rho: float = 8.0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        self.beta = require_number("beta", beta, 0, 1)
        self.rho = require_number("rho", rho)
        self.gather_distributed = require_distributed(gather_distributed)
        self.register_buffer("C", None)

    @explains_types
    def forward(self, z_a: Tensor, z_b: Tensor, update_covariance_matrix: bool = True) -> Tensor:
        """The loss of two views.

        Args:
            z_a: Embeddings ``[B, D]`` of one view: float32, float16, bfloat16 or float64.
            z_b: Embeddings of the other view, such as a momentum network's, like ``z_a``.
            update_covariance_matrix: False leaves ``C`` as it was before the batch.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            AssertionError: The shapes differ, ``B < 2`` (the type lightly raises) or ``D < 1``;
                with ``gather_distributed`` the images of all processes count, of which each has
                one.
            ValueError: ``C`` is of embeddings of another width.
            TypeError: The inputs are not of floating point.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its ``C``.
        """
        if z_a.shape != z_b.shape or z_a.ndim != 2 or not z_a.shape[1]:
            raise AssertionError(
                "z_a and z_b must have the same shape [B, D] with D >= 1, got "
                f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
            )
        require_tensors(z_a=z_a, z_b=z_b)
        if update_covariance_matrix:
            require_first_call("C")
        require_one_device(z_a=z_a, z_b=z_b, C=self.C)
        if self.C is not None and len(self.C) != z_a.shape[1]:
            raise ValueError(
                f"z_a and z_b must have the width of C, {len(self.C)}, got {list(z_a.shape)}: "
                "set C to None to begin anew"
            )
        a, b = (F.normalize(widen(z), dim=1) for z in (z_a, z_b))
        with torch.no_grad():
            covariance, images = self._sums(a)
            if images < 2 or not a.shape[0]:
                raise AssertionError(
                    f"z_a and z_b must have shape [B, D] with B > 1, got {tuple(z_a.shape)}"
                )
            new = covariance * ((1 - self.beta) / images)
            if self.C is not None:
                new = torch.add(new, self.C.to(new), alpha=self.beta)
        loss = 1 + (a * (self.rho * product(a, new) - b)).sum(1).mean()
        if update_covariance_matrix:
            self.C = out_of_inference(new)  # which training goes on with
        return loss

    def _sums(self, a: Tensor) -> tuple[Tensor, float]:
        """``Σ_b a_b a_bᵀ`` and the number of images, of all processes where they are gathered."""
        total = product(a.mT, a)
        if not self.gather_distributed or world_size() == 1:
            return total, a.shape[0]
        images = sum(number for (number,) in all_gather_numbers((a.shape[0],)))
        return all_reduce(total), images

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}C")
        if saved is not None:  # of a width that is not known before
            self.C = torch.empty_like(saved) if self.C is None else self.C.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, rho={self.rho}"
