"""VISReg (Wu et al., arXiv 2606.02572), a drop-in for lightly's class."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import require_images
from mast_ext.losses.common.linear_algebra import product, widen
from mast_ext.losses.common.slices import random_slices
from mast_ext.losses.lejepa import distance_from_center, stack_crops


class VISRegLossComponents(NamedTuple):
    """The loss and its terms, without their weights.

    Attributes:
        total: The loss.
        pred: Squared distance of the views from the mean of the global ones.
        scale: How far standard deviations are from 1.
        shape: How far sorted projections are from those of a normal distribution.
        center: How far means are from 0.
    """

    total: Tensor
    pred: Tensor
    scale: Tensor
    shape: Tensor
    center: Tensor


class VISRegLoss(nn.Module):
    r"""Draws views together, and embeddings to a normal distribution by sorting projections::

        (1 − lambda_param) · pred + lambda_param · (lambda_scale · scale + lambda_shape · shape
                                                    + lambda_center · center)
        pred   = mean_vnd (z_vnd − c_nd)²                  c: mean of an image's global views
        scale  = mean_vd (1 − std_n z_vnd)²
        center = mean_vd (mean_n z_vnd)²
        shape  = mean_vnm (sort_n(x_vnm) − q_n)²           x = (z − mean) / (std + eps) · slices

    where ``q_n`` is the quantile ``n / (N + 1)`` of the normal distribution, and no gradient goes
    through ``std`` in the last term (Wu et al. 2026, equations 1, 2, 5, 6 and 8). Projections are
    sorted by torch: no kernel of ours is in it.

    Values equal those of lightly 1.6.0 to float32 accuracy, with the same random directions. Those
    for 16-bit embeddings are drawn in float32, and the loss is float32.

    Args:
        lambda_param: Weight of all terms but the first, from 0 to 1.
        num_slices: Number of random directions of every call. Each process draws its own from
            torch's generator: if that is seeded differently on each, they are as many times more.
        lambda_scale: Weight of ``scale``.
        lambda_shape: Weight of ``shape``.
        lambda_center: Weight of ``center``.
        gather_distributed: Takes all terms but the first over the batch of all processes, which
            must be of equal size.
        eps: Added to standard deviations.

    Raises:
        ValueError: ``lambda_param`` is not in [0, 1], another weight is negative, ``num_slices`` or
            ``eps`` is not positive, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        lambda_param: float = 0.9,
        num_slices: int = 4096,
        lambda_scale: float = 1.0,
        lambda_shape: float = 1.0,
        lambda_center: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.lambda_param = require_number("lambda_param", lambda_param, 0, 1)
        self.num_slices = require_integer("num_slices", num_slices, 1)
        self.lambda_scale = require_number("lambda_scale", lambda_scale, 0)
        self.lambda_shape = require_number("lambda_shape", lambda_shape, 0)
        self.lambda_center = require_number("lambda_center", lambda_center, 0)
        self.gather_distributed = require_distributed(gather_distributed)
        self.eps = require_positive("eps", eps)

    @explains_types
    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The loss of a batch: ``total`` of `forward_components`, which describes the arguments."""
        return self.forward_components(local_proj=local_proj, global_proj=global_proj).total

    @explains_types
    def forward_components(
        self, *, local_proj: Tensor, global_proj: Tensor
    ) -> VISRegLossComponents:
        """The loss of a batch, and its terms.

        Args:
            local_proj: Embeddings ``[L, N, D]`` of local views: float32, float16, bfloat16 or
                float64.
            global_proj: Those of global views, ``[G, N, D]``.

        Returns:
            Scalars, float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes do not fit, there is no local or no global view, there are fewer
                than two images (of all processes, with ``gather_distributed``), or the processes'
                batches differ in size.
            RuntimeError: Another process died or is late.
        """
        views = widen(stack_crops(local_proj=local_proj, global_proj=global_proj))
        batch = gather_batch(views, 1) if self.gather_distributed else views
        require_images(batch.shape[1], "global_proj", least=2)
        pred = distance_from_center(views, global_proj)
        mean = batch.mean(1, keepdim=True)
        std = batch.std(1, correction=0, keepdim=True)
        scale = (1 - std).square().mean()
        center = mean.square().mean()
        shape = self._shape((batch - mean) / (std.detach() + self.eps))
        regularization = (
            self.lambda_scale * scale + self.lambda_shape * shape + self.lambda_center * center
        )
        total = (1 - self.lambda_param) * pred + self.lambda_param * regularization
        return VISRegLossComponents(total, pred, scale, shape, center)

    def _shape(self, standard: Tensor) -> Tensor:
        _, images, dim = standard.shape
        slices = random_slices(dim, self.num_slices, standard)
        order = torch.arange(1, images + 1, dtype=standard.dtype, device=standard.device)
        quantiles = torch.special.ndtri(order / (images + 1))
        sorted_ = product(standard, slices).sort(dim=1).values
        return (sorted_ - quantiles[:, None]).square().mean()

    def extra_repr(self) -> str:
        return (
            f"lambda_param={self.lambda_param}, num_slices={self.num_slices}, "
            f"lambda_scale={self.lambda_scale}, lambda_shape={self.lambda_shape}, "
            f"lambda_center={self.lambda_center}"
        )
