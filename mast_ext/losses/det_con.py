"""DetCon (Hénaff et al., ICCV 2021), drop-ins for lightly's classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import explains_types, require_one_device
from mast_ext.distributed import gather_batch, rank, require_distributed
from mast_ext.losses.common.inputs import (
    Reduction,
    reduce,
    require_option,
    require_temperature,
    require_tensors,
)


class DetConBLoss(nn.Module):
    r"""Finds the same region in the other view of an image, among the regions of all images::

        loss = Σ over both views v of the mean over regions m of images b of
               w_vbm · mean over positives p of −log [ exp(s(m, p)) / Σ_r exp(s(m, r)) ]

    with ``s`` the cosine of a prediction and a target over ``temperature``. The positives of region
    ``m`` of view ``v`` are the regions of the same mask in the other view of the image. ``r`` runs
    over all regions of both views of all images, but for those of the same mask in view ``v``
    itself. ``w`` is 1 over the number of the latter, ``m`` included, and 0 where there is no
    positive (Hénaff et al. 2021, section 3).

    The similarities of many images are not stored: with regions as views of an image, the
    contrastive operator leaves an image's own regions out of its sums and gives them by themselves,
    ``[2M, 2M, B]``, to be masked.

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32,
    and a temperature below 0 is an error.

    Args:
        temperature: Divides the cosines; above 0.
        gather_distributed: Contrasts with the regions of all processes, whose batches must be of
            equal size.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``temperature`` is not positive, ``reduction`` unknown, or
            ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        gather_distributed: bool = True,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.temperature = require_temperature(temperature)
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        pred_view0: Tensor,
        pred_view1: Tensor,
        target_view0: Tensor,
        target_view1: Tensor,
        mask_view0: Tensor,
        mask_view1: Tensor,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            pred_view0: Predictions ``[B, M, D]`` of ``M`` regions of one view: float32, float16,
                bfloat16 or (CPU) float64.
            pred_view1: Of the other view.
            target_view0: Targets of the same regions, ``[B, M, D]``.
            target_view1: Of the other view.
            mask_view0: Integers ``[B, M]``: which mask a region of the first view is of. Several
                may be of one.
            mask_view1: Of the other view.

        Returns:
            A scalar, or ``[B]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, there is no image to take the mean over, or the
                processes' batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        embeddings = (pred_view0, pred_view1, target_view0, target_view1)
        shape = pred_view0.shape
        if len(shape) != 3 or not shape[1] or any(x.shape != shape for x in embeddings):
            raise ValueError(
                "predictions and targets must have one shape [B, M, D] with M >= 1, got "
                f"{[list(x.shape) for x in embeddings]}"
            )
        named = {
            "pred_view0": pred_view0,
            "pred_view1": pred_view1,
            "target_view0": target_view0,
            "target_view1": target_view1,
        }
        require_tensors(**named)
        require_one_device(mask_view0=mask_view0, mask_view1=mask_view1)
        for name, mask in (("mask_view0", mask_view0), ("mask_view1", mask_view1)):
            if mask.shape != shape[:2]:
                raise ValueError(
                    f"{name} must have shape {list(shape[:2])}, got {list(mask.shape)}"
                )
        masks = torch.stack((mask_view0, mask_view1)).transpose(1, 2)  # [2, M, B]
        dtype = torch.promote_types(pred_view0.dtype, target_view0.dtype)
        predictions = torch.cat((pred_view0, pred_view1), 1).transpose(0, 1).to(dtype)
        targets = torch.cat((target_view0, target_view1), 1).transpose(0, 1).to(dtype)
        if self.gather_distributed:
            targets = gather_batch(targets, 1)
        # Blocks [2M, 2M, B]: sums over other images, and the image's own regions.
        others, own = functional.contrastive_logsumexp(
            predictions,
            targets,
            temperature=self.temperature,
            offset=rank() * shape[0] if self.gather_distributed else 0,
            exclude_positive=True,
        )
        per_region = self._cross_entropies(others[0], own[0], masks.to(own.device))
        per_image = per_region.unflatten(0, (2, -1)).mean(1).sum(0)
        return reduce(per_image, self.reduction, "pred_view0")

    @staticmethod
    def _cross_entropies(others: Tensor, own: Tensor, masks: Tensor) -> Tensor:
        """Weighted, of every region: ``[2M, B]``."""
        regions = masks.shape[1]
        flat = masks.flatten(0, 1)
        same_mask = flat.unsqueeze(1) == flat.unsqueeze(0)  # [2M, 2M, B]
        view = torch.arange(2 * regions, device=own.device) // regions
        same_view = (view[:, None] == view[None, :]).unsqueeze(-1)
        positives = same_mask & ~same_view
        found = positives.any(1, keepdim=True)
        weights = found.squeeze(1).to(own) / (same_mask & same_view).sum(1)
        negatives = torch.cat((others, own.masked_fill(same_mask, -torch.inf)), 1).logsumexp(1)
        positives = positives | ~found  # what has none gets weight 0, and shall be finite
        log_positives = own.masked_fill(~positives, -torch.inf).logsumexp(1)
        mean_positive = own.masked_fill(~positives, 0).sum(1) / positives.sum(1)
        # With one positive, −log p of it, which keeps its digits where p is near 1.
        missed = F.softplus(negatives - log_positives, threshold=40)
        return weights * (missed + (log_positives - mean_positive))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DetConSLoss(nn.Module):
    """`DetConBLoss` without a predictor and a target network: of embeddings with themselves.

    Differences to lightly 1.6.0 are those of `DetConBLoss`.

    Args:
        temperature: See `DetConBLoss`.
        gather_distributed: See `DetConBLoss`.
        reduction: See `DetConBLoss`.

    Raises:
        ValueError: As `DetConBLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        gather_distributed: bool = True,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.detconbloss = DetConBLoss(temperature, gather_distributed, reduction=reduction)

    @explains_types
    def forward(
        self, view0: Tensor, view1: Tensor, mask_view0: Tensor, mask_view1: Tensor
    ) -> Tensor:
        """The loss of a batch.

        Args:
            view0: Embeddings ``[B, M, D]`` of ``M`` regions of one view: float32, float16, bfloat16
                or (CPU) float64.
            view1: Of the other view.
            mask_view0: Integers ``[B, M]``: which mask a region of the first view is of.
            mask_view1: Of the other view.

        Returns:
            As `DetConBLoss.forward`.

        Raises:
            ValueError: As there.
            TypeError: As there.
            RuntimeError: Another process died or is late.
        """
        require_tensors(view0=view0, view1=view1)
        return self.detconbloss(view0, view1, view0, view1, mask_view0, mask_view1)
