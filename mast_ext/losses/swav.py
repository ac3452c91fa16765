"""SwaV (Caron et al., NeurIPS 2020), a drop-in for lightly's class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_positive
from mast_ext.distributed import all_reduce_logsumexp, require_distributed, world_size
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_option,
    require_tensors,
    shape_of_views,
)


class SwaVLoss(nn.Module):
    r"""Predicts from every crop which prototypes another crop of the image is assigned to::

        CE[h,v,b] = − Σ_c q_hbc · log softmax_c(z_vbc / temperature)
        loss      = mean over images b and crops v ≠ h of CE[h,v,b]      h: high resolution

    where ``z`` are the crops' similarities to the prototypes and the codes ``q`` of crop ``h`` are
    its Sinkhorn-Knopp assignments, which share the prototypes out evenly (Caron et al. 2020, eq. 2
    and 5). Neither codes nor probabilities are ever stored.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the result is a
    scalar (theirs has shape ``[1]``), float32 for 16-bit inputs, and similarities of any size are
    fine (their exponential overflows in 16 bit).

    Args:
        temperature: Divides the similarities that predict.
        sinkhorn_iterations: Number of iterations, at least 1.
        sinkhorn_epsilon: Divides the similarities that codes are made of.
        sinkhorn_gather_distributed: Shares the prototypes out over the batch of all processes.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: A temperature or the number of iterations is not positive, ``reduction`` is
            unknown, or ``sinkhorn_gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.temperature = require_positive("temperature", temperature)
        self.sinkhorn_iterations = require_integer("sinkhorn_iterations", sinkhorn_iterations, 1)
        self.sinkhorn_epsilon = require_positive("sinkhorn_epsilon", sinkhorn_epsilon)
        self.sinkhorn_gather_distributed = require_distributed(sinkhorn_gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        high_resolution_outputs: Tensor | Sequence[Tensor],
        low_resolution_outputs: Tensor | Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            high_resolution_outputs: Similarities of the ``H`` high-resolution crops to the
                prototypes, ``[H, B, C]`` or a list of ``[B, C]``: float32, float16, bfloat16 or
                (CPU) float64.
            low_resolution_outputs: Of the ``L`` low-resolution crops; may be empty.
            queue_outputs: Of past embeddings, ``[Q, C]`` for each high-resolution crop, which its
                codes are shared out with.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, there is a single crop or no image to take the mean
                over, or there is not one queue per high-resolution crop.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        ce = self.crop_losses(high_resolution_outputs, low_resolution_outputs, queue_outputs)
        high, crops, _ = ce.shape
        if crops < 2:
            raise ValueError("SwaVLoss compares different crops, got a single one")
        same = torch.eye(high, crops, dtype=torch.bool, device=ce.device).unsqueeze(-1)
        per_image = ce.masked_fill(same, 0.0).sum((0, 1)) / (high * (crops - 1))
        return reduce(per_image, self.reduction, "high_resolution_outputs")

    @explains_types
    def crop_losses(
        self,
        high_resolution_outputs: Tensor | Sequence[Tensor],
        low_resolution_outputs: Tensor | Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Cross entropies of every pair of crops of every image, to choose hard ones by.

        Args:
            high_resolution_outputs: As in `forward`.
            low_resolution_outputs: As in `forward`.
            queue_outputs: As in `forward`.

        Returns:
            ``CE [H, H+L, B]``, float32 (float64 for float64 inputs), a crop with itself included.

        Raises:
            ValueError: A shape does not fit, or there is not one queue per high-resolution crop.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_tensors(
            high_resolution_outputs=high_resolution_outputs,
            low_resolution_outputs=low_resolution_outputs,
            queue_outputs=queue_outputs,
        )
        high, _, width = shape_of_views(high_resolution_outputs, "high_resolution_outputs")
        if len(low_resolution_outputs):
            shape_of_views(low_resolution_outputs, "low_resolution_outputs")
        crops = in_one_dtype(*high_resolution_outputs, *low_resolution_outputs)
        shape_of_views(crops, "high_resolution_outputs and low_resolution_outputs")
        if queue_outputs is not None and len(queue_outputs) != high:
            raise ValueError(
                f"queue_outputs must hold one queue for each of the {high} high-resolution "
                f"crops, got {len(queue_outputs)}"
            )
        for queue in () if queue_outputs is None else queue_outputs:
            if queue.ndim != 2 or queue.shape[1] != width:
                raise ValueError(
                    f"queue_outputs must have shape [N, {width}] each, got {list(queue.shape)}"
                )
        return torch.cat(
            [
                functional.prototype_cross_entropy(
                    crops,
                    crop.unsqueeze(0),
                    student_temperature=self.temperature,
                    teacher_temperature=self.sinkhorn_epsilon,
                    center=self._center(crop, None if queue_outputs is None else queue_outputs[i]),
                )
                for i, crop in enumerate(crop.detach() for crop in crops[:high])
            ]
        )

    def _center(self, crop: Tensor, queue: Tensor | None) -> Tensor:
        """The center with which a softmax over ``crop [B, C]`` gives its codes."""
        merges = self.sinkhorn_gather_distributed and world_size() > 1
        return functional.sinkhorn_knopp(
            crop if queue is None else torch.cat((crop, queue.detach())),
            temperature=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            merge=all_reduce_logsumexp if merges else None,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"sinkhorn_epsilon={self.sinkhorn_epsilon}"
        )
