"""What the contrastive losses share: views against views, on one process or on many.

Every loss is an algebra on ``lse`` and ``positive`` of `mast_ext.functional.contrastive_logsumexp`,
``[K, V, V, N]``. On many processes the rows are this process's and the columns all processes'. Then
the gradient of an embedding has two parts: through its own row, and through every row of every
process that has it as a column. The second needs no gradient from elsewhere, only the numbers
``[K, V, V, N]`` of the other processes: they are gathered, the columns are here already, and no
``[N, D]`` gradient is ever sent or added up.

Losses take their sums without the positive. What a confident anchor has to learn is how far its
probability is from 1, and ``lse - positive`` of a sum with the positive is the difference of two
large, nearly equal numbers, good to the rounding of the larger; so is the gradient's ``p - 1``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.compiling import Function, differentiable_once, never_compiled, out_of_inference
from mast_ext.distributed import all_gather, rank, require_equal_batches, world_size
from mast_ext.ops import contrastive_logsumexp


def contrast_views(
    views: Tensor,
    masks: Tensor | None = None,
    *,
    temperature: float | Tensor,
    gather: bool,
    within_views: bool = True,
) -> tuple[Tensor, Tensor]:
    """Contrasts every view of this process's images with every view of all processes' images.

    Args:
        views: Embeddings ``[V, N, D]`` of this process.
        masks: ``[K, D]``, the same on every process.
        temperature: A number, or a scalar tensor that is the same on every process.
        gather: Whether the columns are the images of all processes.
        within_views: See :func:`mast_ext.functional.contrastive_logsumexp`.

    Returns:
        ``lse``, of sums without positives, and ``positive``, ``[K, V, V, N]``, as there with
        ``exclude_positive=True``; differentiable in the first three arguments. If every
        process reduces them to a loss, the gradient of ``views`` is that of the sum of all
        processes' losses; those of ``masks`` and ``temperature`` are shares that add up to it.

    Raises:
        ValueError: As there, or the processes' batches differ in size.
        TypeError: As there.
        RuntimeError: Another process died or is late.
    """
    if not gather or world_size() == 1:
        return functional.contrastive_logsumexp(
            views,
            masks=masks,
            temperature=temperature,
            exclude_positive=True,
            within_views=within_views,
        )
    return _contrast_gathered(views, masks, temperature, within_views)


def positive_cross_entropy(negatives: Tensor, positive: Tensor) -> Tensor:
    """``-log p`` of the positive: ``log (exp(negatives) + exp(positive)) - positive``.

    Args:
        negatives: Log of the sum over all others, any shape.
        positive: Logit of the positive, of the same shape.
    """
    # Above the threshold softplus gives its argument, which at 40 is right to float64's last bit.
    return F.softplus(negatives - positive, threshold=40)


@never_compiled
def _contrast_gathered(
    views: Tensor,
    masks: Tensor | None,
    temperature: float | Tensor,
    within_views: bool,
) -> tuple[Tensor, Tensor]:
    if views.ndim != 3:
        raise ValueError(f"views must have shape [V, N, D], got {list(views.shape)}")
    require_equal_batches(views, 1)
    tensor = isinstance(temperature, Tensor)
    return _GatheredContrast.apply(
        out_of_inference(views),
        masks,
        temperature if tensor else None,
        0.0 if tensor else temperature,
        within_views,
        torch.is_grad_enabled(),
    )[:2]


def _options(x: Tensor, temperature: float, within_views: bool) -> tuple[Any, ...]:
    """Of the operator, for this process's rows among those of all."""
    return temperature, rank() * x.shape[1], True, True, within_views


class _GatheredContrast(Function):
    @staticmethod
    def forward(
        x: Tensor,
        masks: Tensor | None,
        temperature_tensor: Tensor | None,
        temperature: float,
        within_views: bool,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        views, rows, dim = x.shape
        y = x.new_empty(views, world_size() * rows, dim)
        for view, columns in zip(x, y, strict=True):
            all_gather(view, out=columns)
        options = _options(x, temperature, within_views)
        return *contrastive_logsumexp.op(x, y, masks, temperature_tensor, *options, keep), y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, masks, temperature_tensor, *numbers, _ = inputs
        lse, _, *kept, y = output
        ctx.options = _options(x, *numbers)
        ctx.mark_non_differentiable(*kept, y)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, masks, temperature_tensor, lse, *kept)

    @staticmethod
    @differentiable_once("contrastive_logsumexp")
    def backward(
        ctx: Any, grad_lse: Tensor | None, grad_positive: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpoints do not let it be done again
        lse = saved[4]
        grad_lse, grad_positive = (
            torch.zeros_like(lse) if grad is None else grad for grad in (grad_lse, grad_positive)
        )
        of_columns = gather_last(torch.stack((lse, grad_lse, grad_positive))).unbind()
        of_x, of_masks, of_temperature = ctx.needs_input_grad[:3]
        grad_x, _, grad_masks, grad_temperature = contrastive_logsumexp.backward_op(
            grad_lse,
            grad_positive,
            *saved,
            *of_columns,
            *ctx.options,
            (of_x, False, of_masks, of_temperature),
        )
        return (
            grad_x if of_x else None,
            grad_masks if of_masks else None,
            grad_temperature if of_temperature else None,
            None,
            None,
            None,
        )


def gather_last(x: Tensor) -> Tensor:
    """Concatenates ``x [..., N]`` of all processes along the last dimension, without gradient."""
    return all_gather(x.movedim(-1, 0)).movedim(0, -1).contiguous()
