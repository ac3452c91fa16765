"""SigLIP's sigmoid loss (Zhai et al., ICCV 2023): every pair is told apart by itself."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_number, require_one_device, require_positive
from mast_ext.compiling import Function, differentiable_once, never_compiled, out_of_inference
from mast_ext.distributed import (
    require_distributed,
    require_equal_batches,
    start_ring_shift,
    world_size,
)
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_alike,
    require_images,
    require_option,
    require_views,
)
from mast_ext.losses.common.linear_algebra import widen
from mast_ext.ops import sigmoid_contrast


class SigLIPLoss(nn.Module):
    """Cross-entropy of telling of every image and every text whether they belong together::

        mean_n  softplus(−z_nn) + Σ_{m ≠ n} softplus(z_nm)      z_nm = logit_scale · cos(x_n, y_m)
                                                                       + logit_bias

    (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", eq. 1.) ``x`` and ``y`` are
    of images and their texts, or of two views. No ``N × N`` matrix is ever stored.

    With ``gather_distributed`` the texts are those of all processes. They are not gathered: each
    process's go round a ring of all processes, forward and again backward with their gradient, so
    that a process holds its own batch of them and two more, however many processes there are.

    Args:
        logit_scale: Multiplies the cosines; above 0. The paper starts at 10.
        logit_bias: Added to them. The paper starts at -10, as most pairs do not belong together.
        learnable: Makes parameters of both, ``log_scale``, which starts at the logarithm of
            ``logit_scale``, and ``bias``, as in the paper. For those of a model, give them to
            `forward` instead.
        gather_distributed: Against the texts of all processes, whose batches must be of equal size.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per image.

    Raises:
        ValueError: ``logit_scale`` is not positive, ``reduction`` is unknown, or
            ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        *,
        learnable: bool = False,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.logit_scale = require_positive("logit_scale", logit_scale)
        self.logit_bias = require_number("logit_bias", logit_bias)
        self.log_scale: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if learnable:
            self.log_scale = nn.Parameter(torch.tensor(math.log(self.logit_scale)))
            self.bias = nn.Parameter(torch.tensor(float(self.logit_bias)))
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @explains_types
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor | None = None,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            image_features: Embeddings ``[N, D]``: float32, float16, bfloat16 or (CPU) float64, of
                any norm.
            text_features: The embedding that belongs to each, like ``image_features``.
            logit_scale: Instead of the module's, such as a model's own ``logit_scale.exp()``: a
                number, or a scalar tensor, which may require gradient.
            logit_bias: Instead of the module's, likewise.

        Returns:
            A scalar, or ``[N]`` with ``reduction="none"``: of every image, against all texts.
            float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape or device does not fit, there is no image to take the mean over,
                what the module learns is given, or the processes' batches differ in size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_alike(image_features=image_features, text_features=text_features)
        image_features, text_features = in_one_dtype(image_features, text_features)
        scale, bias = self._scale_and_bias(image_features, logit_scale, logit_bias)
        if self.reduction == "none" or self._many():
            terms = self._terms(image_features, text_features, scale, bias)
            return reduce(terms, self.reduction, "image_features")
        images = image_features.shape[0]
        if self.reduction == "mean":
            require_images(images, "image_features")
        share = 1 / images if self.reduction == "mean" else 1.0
        weights = torch.full_like(scale, share).detach()
        return functional.sigmoid_contrast(
            image_features, text_features, scale=scale, bias=bias, weights=weights
        )

    @explains_types
    def pair_losses(self, views: Tensor) -> Tensor:
        """The loss of every view as images with every view as texts, per image.

        Args:
            views: Embeddings ``[V, B, D]``.

        Returns:
            ``[V, V, B]``, float32 (float64 for float64 inputs):
            ``pair_losses(views)[i, j].mean() == forward(views[i], views[j])``.

        Raises:
            ValueError: ``views`` has another shape, or the processes' batches differ in size.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        scale, bias = self._scale_and_bias(require_views(views))
        rows = [torch.stack([self._terms(x, y, scale, bias) for y in views]) for x in views]
        return torch.stack(rows)

    def _terms(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """``[N]``."""
        if self._many():
            return _contrast_in_ring(x, y, scale, bias)
        return functional.sigmoid_contrast(x, y, scale=scale, bias=bias)

    def _many(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _scale_and_bias(
        self,
        embeddings: Tensor,
        logit_scale: float | Tensor | None = None,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """In the dtype that the operator takes beside ``embeddings``."""
        dtype = torch.promote_types(embeddings.dtype, torch.float32)

        def scalar(
            name: str, given: float | Tensor | None, own: float, learned: Tensor | None
        ) -> Tensor:
            if given is not None and learned is not None:
                raise ValueError(f"{name} must not be given where it is learned by the loss")
            value = given if given is not None else own if learned is None else learned
            if isinstance(value, Tensor):
                require_one_device(embeddings=embeddings, **{name: value})
                return value.to(dtype)
            return embeddings.new_ones((), dtype=dtype) * require_number(name, value)

        log_scale = self.log_scale
        learned = None if log_scale is None else log_scale.to(dtype).exp()
        return (
            scalar("logit_scale", logit_scale, self.logit_scale, learned),
            scalar("logit_bias", logit_bias, self.logit_bias, self.bias),
        )

    def extra_repr(self) -> str:
        learned = ", learnable=True" if self.log_scale is not None else ""
        return f"logit_scale={self.logit_scale}, logit_bias={self.logit_bias}{learned}"


@never_compiled
def _contrast_in_ring(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every row of ``x [N, D]`` against the columns of all processes: ``y`` are this one's.

    Returns:
        ``[N]``. If every process reduces it to a loss, the gradients of ``x`` and ``y`` are those
        of the sum of all processes' losses; those of ``scale`` and ``bias`` are shares that add up
        to it. ``y`` must require gradient on all processes or on none.

    Raises:
        ValueError: The processes' batches differ in size.
        RuntimeError: Another process died or is late.
    """
    require_equal_batches(y, 0)
    return _RingContrast.apply(out_of_inference(x), out_of_inference(y), scale, bias)


def _offset(step: int) -> int | None:
    """The first columns are this process's own, and hold the positives."""
    return 0 if step == 0 else None


def _sum(so_far: Tensor | None, more: Tensor) -> Tensor:
    return widen(more) if so_far is None else so_far.add_(more)


class _RingContrast(Function):
    """At step ``s`` this process has the columns of the ``s``-th one before it.

    The next columns are on their way while a block is computed. The backward computes blocks again;
    the gradient of columns follows them, one step behind, and each process adds its own.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        loss = x.new_zeros(len(x), dtype=scale.dtype)
        for step in range(world_size()):
            next_columns = start_ring_shift(y) if step + 1 < world_size() else None
            loss += sigmoid_contrast.op(x, y, scale, bias, _offset(step))
            if next_columns is not None:
                y = next_columns()
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @differentiable_once("sigmoid_contrast")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = x, y, scale, bias = ctx.saved_tensors  # once: checkpoints allow no more
        of_x, of_y, *_ = wanted = ctx.needs_input_grad
        sums: list[Tensor | None] = [None] * 4
        for step in range(world_size()):
            next_columns = start_ring_shift(y) if step + 1 < world_size() else None
            # What the processes before this one have found for these columns.
            found = start_ring_shift(sums[1]) if of_y and sums[1] is not None else None
            block = sigmoid_contrast.backward_op(grad, x, y, scale, bias, _offset(step), wanted)
            if found is not None:
                sums[1] = found()
            sums = [_sum(*pair) for pair in zip(sums, block, strict=True)]
            del block, found  # not to be held during the next step
            if next_columns is not None:
                y = next_columns()
        if of_y and sums[1] is not None:
            sums[1] = start_ring_shift(sums[1])()  # home
        return tuple(
            found.to(t.dtype) if of_it and found is not None else None
            for t, found, of_it in zip(saved, sums, wanted, strict=True)
        )
