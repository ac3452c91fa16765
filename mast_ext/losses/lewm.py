"""LeWorldModel's loss (arXiv 2603.19312), a drop-in for lightly's class."""

from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import explains_types, require_number
from mast_ext.functional import Interval
from mast_ext.losses.common.inputs import require_images, require_tensors
from mast_ext.losses.common.linear_algebra import widen
from mast_ext.losses.lejepa import SIGReg


class LeWMLoss(nn.Module):
    r"""Predicts the embeddings of a clip's next frames, and draws all to a normal distribution::

        mean (predicted − target)² + lambda_param · SIGReg(embeddings)

    The target gets no gradient. `SIGReg` compares the clips of a batch at each time by itself, and
    keeps embeddings from collapsing (LeWorldModel, 2026).

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32.

    Args:
        lambda_param: Weight of SIGReg.
        normalize: Compares embeddings after a layer normalization of each.
        gather_distributed: See `SIGReg`. The first term is of each process's own clips.
        sigreg_knots: ``knots`` of `SIGReg`.
        sigreg_t_max: Its ``t_max``.
        sigreg_num_vectors: Its ``num_vectors``.
        sigreg_interval: Its ``interval``.
        sigreg_pooled: Its ``pooled``, over times.
        sigreg_seed: Its ``seed``.

    Raises:
        ValueError: ``lambda_param`` is negative, or see `SIGReg`.
    """

    def __init__(
        self,
        lambda_param: float = 0.1,
        normalize: bool = False,
        gather_distributed: bool = False,
        sigreg_knots: int = 17,
        sigreg_t_max: float = 3.0,
        sigreg_num_vectors: int = 1024,
        *,
        sigreg_interval: Interval = "half",
        sigreg_pooled: bool = False,
        sigreg_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.lambda_param = require_number("lambda_param", lambda_param, 0)
        self.normalize = normalize
        self.sigreg = SIGReg(
            knots=sigreg_knots,
            t_max=sigreg_t_max,
            num_vectors=sigreg_num_vectors,
            gather_distributed=gather_distributed,
            interval=sigreg_interval,
            pooled=sigreg_pooled,
            seed=sigreg_seed,
        )

    @explains_types
    def forward(self, *, predicted: Tensor, target: Tensor, embeddings: Tensor) -> Tensor:
        """The loss of a batch of clips.

        Args:
            predicted: Predicted embeddings ``[B, T, D]``: float32, float16, bfloat16 or (CPU)
                float64.
            target: Those of the frames that were predicted, like ``predicted``.
            embeddings: Those of all frames, ``[B, S, D]``.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes do not fit, or there is no clip, or no frame of one.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_tensors(embeddings=embeddings, predicted=predicted, target=target)
        if embeddings.ndim != 3:
            raise ValueError(f"embeddings must have shape [B, S, D], got {[*embeddings.shape]}")
        if predicted.shape != target.shape:
            raise ValueError(
                "predicted and target must have one shape, got "
                f"{[*predicted.shape]} and {[*target.shape]}"
            )
        images, _, dim = embeddings.shape
        if predicted.ndim < 2 or (predicted.shape[0], predicted.shape[-1]) != (images, dim):
            raise ValueError(
                f"predicted must have shape [{images}, ..., {dim}] to fit embeddings of shape "
                f"{[*embeddings.shape]}, got {[*predicted.shape]}"
            )
        regularization = self.sigreg.of_views(embeddings.transpose(0, 1))
        require_images(images, "embeddings")
        require_images(predicted[0].numel() // max(dim, 1), "a clip of predicted")
        found, truth = widen(predicted), widen(target.detach())
        if self.normalize:
            found, truth = (F.layer_norm(each, (dim,)) for each in (found, truth))
        prediction = (found - truth).square().mean()
        return prediction + self.lambda_param * regularization

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param}, normalize={self.normalize}"
