"""Matrix products and decompositions of torch that autocast does not round to 16 bit.

Nor their gradients': left to autograd, these would be multiplied under whatever autocast there is
around ``backward()``, or around a compiled loss. So every function here makes its own, except in a
compiled transform of torch.func (`compiles_transform`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mast_ext.compiling import Function, compiles_transform, differentiable_once


def widen(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 as it is: what the loss of it is computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off on the device of ``x``; that of shapes without values (meta) has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of matrices, or of two batches of as many."""
    has_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if has_gradient and not compiles_transform():
        return _Product.apply(a, b)
    with without_autocast(a):  # a third of the time, where matrices are small
        return a @ b


class _Product(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with without_autocast(a):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return product(grad, b.mT) if of_a else None, product(a.mT, grad) if of_b else None


def gram(x: Tensor) -> Tensor:
    """``x xᵀ`` of every matrix."""
    return product(x, x.mT) if compiles_transform() else _Gram.apply(x)


class _Gram(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with without_autocast(x):
            return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return product(grad + grad.mT, x)


def smaller_gram(x: Tensor) -> Tensor:
    """``x xᵀ`` or ``xᵀ x`` of every matrix, whichever is smaller: of one norm and spectrum."""
    return gram(x if x.shape[-2] <= x.shape[-1] else x.mT)


def singular_values(x: Tensor) -> Tensor:
    """The singular values of every matrix, the largest first.

    Where some coincide, the gradient of a symmetric function of them, such as their sum, is right.
    """
    if not (x.requires_grad and torch.is_grad_enabled()) or compiles_transform():
        return torch.linalg.svdvals(x)
    return _SingularValues.apply(x)[0]


class _SingularValues(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        return values, left, right

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        _, *vectors = output
        ctx.mark_non_differentiable(*vectors)
        ctx.set_materialize_grads(False)  # no zeros for them
        ctx.save_for_backward(*output)

    @staticmethod
    @differentiable_once("singular_values")
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Tensor | None:
        if grad is None:
            return None
        _, left, right = ctx.saved_tensors
        with without_autocast(grad):
            return (left * grad.unsqueeze(-2)) @ right


def log_determinant(x: Tensor) -> Tensor:
    """Log-determinants ``[...]`` of symmetric positive definite matrices ``[..., N, N]``.

    Raises:
        torch.linalg.LinAlgError: One is not positive definite.
    """
    if compiles_transform():
        return _log_determinant(torch.linalg.cholesky(x))
    return _LogDeterminant.apply(x)[0]


def _log_determinant(factor: Tensor) -> Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class _LogDeterminant(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.linalg.cholesky(x)
        return _log_determinant(factor), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        _, factor = output
        ctx.mark_non_differentiable(factor)
        ctx.set_materialize_grads(False)  # no zeros for it
        ctx.save_for_backward(*inputs, factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Tensor | None:
        if grad is None:
            return None
        x, factor = ctx.saved_tensors
        again = torch.is_grad_enabled()
        inverse = _Inverse.apply(x, factor) if again else torch.cholesky_inverse(factor)
        return grad[..., None, None] * inverse


class _Inverse(Function):
    """Inverses of symmetric positive definite matrices with known Cholesky factors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: Tensor) -> Tensor:
        return torch.cholesky_inverse(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        return -product(product(inverse, grad), inverse), None
