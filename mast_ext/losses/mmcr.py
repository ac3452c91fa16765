"""Maximum manifold capacity (Yerxa et al., NeurIPS 2023), a drop-in for lightly's class."""

import torch
from torch import Tensor, nn

from mast_ext.checks import explains_types, require_number
from mast_ext.distributed import gather_batch, require_distributed
from mast_ext.losses.common.inputs import require_images, require_tensors
from mast_ext.losses.common.linear_algebra import singular_values, widen


class MMCRLoss(nn.Module):
    r"""Spreads the centroids of images over all dimensions, and draws an image's views together::

        loss = lmda · mean_b ‖Z_b‖_* − ‖C‖_*

    with ``Z_b [2k, D]`` the views of image ``b`` from both networks, ``C [B, D]`` their means, and
    the nuclear norm, which is the sum of singular values (Yerxa et al. 2023). The singular values
    are those of ``torch.linalg``: no kernel of ours is in it. The gradient needs no second
    decomposition.

    Values equal those of lightly 1.6.0 to float32 accuracy; 16-bit inputs work (theirs raises) and
    give a float32 loss.

    Args:
        lmda: Weight of the views' nuclear norm, at least 0.
        gather_distributed: Spreads the centroids of all processes, whose batches must be of equal
            size.

    Raises:
        ValueError: ``lmda`` is negative, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(self, lmda: float = 5e-3, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.lmda = require_number("lmda", lmda, 0)
        self.gather_distributed = require_distributed(gather_distributed)

    @explains_types
    def forward(self, online: Tensor, momentum: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            online: Embeddings ``[B, k, D]`` of ``k`` views: float32, float16, bfloat16 or float64.
            momentum: Embeddings by the momentum network, like ``online``.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            AssertionError: The shapes differ (the type lightly raises).
            ValueError: The shape does not fit, there is no image, or the processes' batches differ
                in size.
            TypeError: A dtype is not one of floating point.
            RuntimeError: Another process died or is late.
        """
        if online.shape != momentum.shape:
            raise AssertionError(
                "online and momentum must have the same shape, got "
                f"{tuple(online.shape)} and {tuple(momentum.shape)}"
            )
        require_tensors(online=online, momentum=momentum)
        if online.ndim != 3 or not online.shape[1]:
            raise ValueError(
                f"online must have shape [B, k, D] with k >= 1, got {list(online.shape)}"
            )
        views = torch.cat((widen(online), widen(momentum)), 1)
        centroids = views.mean(1)
        if self.gather_distributed:
            centroids = gather_batch(centroids, 0)
        require_images(len(online), "online")
        within = singular_values(views).sum() / len(views)
        return self.lmda * within - singular_values(centroids).sum()

    def extra_repr(self) -> str:
        return f"lmda={self.lmda}"
