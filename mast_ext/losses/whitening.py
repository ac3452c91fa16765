"""Whitening MSE (Ermolov et al., ICML 2021), drop-ins for lightly's classes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_number, require_one_device
from mast_ext.compiling import Function, compiles_transform, differentiable_once
from mast_ext.losses.common.inputs import require_images, require_tensors
from mast_ext.losses.common.linear_algebra import widen, without_autocast


def normalized_mse(x0: Tensor, x1: Tensor) -> Tensor:
    """Mean squared distance ``2 − 2 cos`` of the rows of ``[N, D]`` on the sphere: a scalar."""
    return 2 - 2 * functional.subspace_similarity(x0[None], x1[None]).mean()


class Whitening2d(nn.Module):
    r"""Turns a batch into one of mean 0 and covariance I::

        y = L⁻¹ (x − mean)      L Lᵀ = (1 − eps) · Cov + eps · I,  L lower triangular

    (Ermolov et al. 2021, section 3.) In training the mean and the unbiased covariance are the
    batch's; in evaluation they are moving averages if there are any, and the batch's otherwise. The
    Cholesky factor and the solution are those of ``torch.linalg``: no kernel of ours is in it. The
    gradient is the formula's in closed form.

    Values, buffers and their updates equal those of lightly 1.6.0 to float32 accuracy; 16-bit
    inputs work (theirs raises) and give float32. Statistics are those of this process.

    Args:
        num_features: ``D``.
        momentum: Weight of a batch in the moving averages.
        track_running_stats: Whether there are moving averages.
        eps: Share of the identity in the covariance, in [0, 1]. It has to be above 0 for a
            covariance without full rank, as of ``D`` or fewer rows.

    Attributes:
        running_mean: ``[1, D, 1, 1]`` float32, of ``track_running_stats``.
        running_variance: The covariance ``[D, D]`` float32, of ``track_running_stats``.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.01,
        track_running_stats: bool = True,
        eps: float = 0,
    ) -> None:
        super().__init__()
        self.num_features = require_integer("num_features", num_features, 1)
        self.momentum = require_number("momentum", momentum, 0, 1)
        self.track_running_stats = track_running_stats
        self.eps = require_number("eps", eps, 0)
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
            self.register_buffer("running_variance", torch.eye(num_features))

    @explains_types
    def forward(self, x: Tensor) -> Tensor:
        """A whitened batch.

        Args:
            x: ``[N, D]``: float32, float16, bfloat16 or float64.

        Returns:
            ``[N, D]`` in float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``x`` has another shape, or fewer than two rows to take a covariance of.
            torch.linalg.LinAlgError: The covariance does not have full rank, and ``eps`` is 0.
        """
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(f"x must have shape [N, {self.num_features}], got {list(x.shape)}")
        require_tensors(x=x)
        if self.track_running_stats:
            require_one_device(x=x, running_mean=self.running_mean)
        x = widen(x)
        if self.track_running_stats and not self.training:
            mean, covariance = self.running_mean.view(1, -1), self.running_variance
            return _solve(self._factor(covariance.to(x)), x - mean.to(x))
        require_images(len(x), "x", least=2)
        of_autograd = compiles_transform()  # left to it
        with nullcontext() if of_autograd else torch.no_grad(), without_autocast(x):
            mean = x.mean(0, keepdim=True)
            centered = x - mean
            covariance = centered.T @ centered / (len(x) - 1)
            factor = self._factor(covariance)
            if self.track_running_stats and self.training:
                moved = (
                    (self.running_mean, mean.view(1, -1, 1, 1)),
                    (self.running_variance, covariance),
                )
                for average, new in moved:
                    change = self.momentum * new.detach().to(average)
                    average.mul_(1 - self.momentum).add_(change)
        if of_autograd:
            return _solve(factor, centered)
        return _Whiten.apply(x, mean, factor, (1 - self.eps) / (len(x) - 1))

    def _factor(self, covariance: Tensor) -> Tensor:
        identity = torch.eye(self.num_features, dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.cholesky((1 - self.eps) * covariance + self.eps * identity)

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}, eps={self.eps}"


def _solve(factor: Tensor, x: Tensor) -> Tensor:
    """``L⁻¹ x`` of every row ``[N, D]``."""
    return torch.linalg.solve_triangular(factor.T, x, upper=True, left=False)


class _Whiten(Function):
    """``y = L⁻¹ (x − mean)`` of every row ``[N, D]``, with the batch's mean and covariance.

    ``share`` is what ``L Lᵀ`` takes of ``Σ_n (x_n − mean)(x_n − mean)ᵀ``. With ``S`` the symmetric
    matrix of the lower triangle of ``gradᵀ y``, the gradient of a row less the mean is then
    ``(grad − share · y S) L⁻¹``, by the derivative of a Cholesky factor.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, factor: Tensor, share: float) -> Tensor:
        return _solve(factor, x - mean)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor
    ) -> None:
        _, _, factor, ctx.share = inputs
        ctx.save_for_backward(output, factor)

    @staticmethod
    @differentiable_once("Whitening2d")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        y, factor = ctx.saved_tensors
        with without_autocast(grad):
            lower = (grad.T @ y).tril()
            symmetric = lower + lower.tril(-1).T
            grad = grad - ctx.share * (y @ symmetric)
            grad = torch.linalg.solve_triangular(factor, grad, upper=False, left=False)
        return grad - grad.mean(0), None, None, None


class WMSELoss(nn.Module):
    """Mean squared distance of views of an image, whitened in parts of the batch::

        loss = mean over iterations of  mean over pairs of samples (i, j) of  loss_fn(y_i, y_j)

    In every iteration the images are dealt out to parts of ``w_size`` at random, and every sample
    of a part is whitened by itself (Ermolov et al. 2021, section 3). `Whitening2d` says what is
    torch's in it.

    Values, buffers and the random order (from torch's default generator on the CPU) are those of
    lightly 1.6.0. Parts are of this process's images, as they would be of one process's.

    Args:
        embedding_dim: ``D``.
        momentum: See `Whitening2d`.
        eps: See `Whitening2d`.
        track_running_stats: See `Whitening2d`.
        w_iter: How often images are dealt out.
        w_size: Images of a part, at least ``2 D``.
        loss_fn: Gives the loss of ``[B, D]`` and ``[B, D]``; on the sphere by default.
        num_samples: Views of an image, at least 2.

    Raises:
        ValueError: ``w_size`` or ``num_samples`` is too small.
    """

    def __init__(
        self,
        embedding_dim: int = 128,
        momentum: float = 0.01,
        eps: float = 0.0,
        track_running_stats: bool = True,
        w_iter: int = 1,
        w_size: int = 256,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = normalized_mse,
        num_samples: int = 2,
    ) -> None:
        super().__init__()
        embedding_dim = require_integer("embedding_dim", embedding_dim, 1)
        self.w_iter = require_integer("w_iter", w_iter, 1)
        self.w_size = require_integer("w_size", w_size)
        if w_size < 2 * embedding_dim:
            raise ValueError(
                f"w_size must be at least twice embedding_dim, {2 * embedding_dim}, got {w_size}"
            )
        self.num_samples = require_integer("num_samples", num_samples, 2)
        self.whitening = Whitening2d(embedding_dim, momentum, track_running_stats, eps)
        self.loss_f = loss_fn
        self.num_pairs = self.num_samples * (self.num_samples - 1) // 2

    @explains_types
    def forward(self, input: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: Embeddings ``[num_samples · B, D]``, one sample of all images after the other:
                float32, float16, bfloat16 or float64.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            RuntimeError: There are not ``num_samples`` embeddings of every image, or ``B`` is no
                multiple of ``w_size`` (the type lightly raises).
            ValueError: ``B`` is below ``w_size``.
            torch.linalg.LinAlgError: A covariance does not have full rank.
        """
        width = self.whitening.num_features
        if input.ndim != 2 or input.shape[1] != width:
            raise ValueError(f"input must have shape [N, {width}], got {list(input.shape)}")
        require_tensors(input=input)
        if len(input) % self.num_samples:
            raise RuntimeError(
                f"input must hold {self.num_samples} embeddings of every image, got {len(input)}"
            )
        images = len(input) // self.num_samples
        if images < self.w_size:
            raise ValueError(f"input must hold {self.w_size} or more images, got {images}")
        if images % self.w_size:
            raise RuntimeError(f"input must hold a multiple of {self.w_size} images, got {images}")
        samples = widen(input).unflatten(0, (self.num_samples, images))
        losses = []
        for _ in range(self.w_iter):
            order = torch.randperm(images, device="cpu")
            whitened = self._whitened(samples, order.to(input.device))
            losses += [
                self.loss_f(whitened[i], whitened[j])
                for i in range(self.num_samples - 1)
                for j in range(i + 1, self.num_samples)
            ]
        return torch.stack(losses).sum() / (self.w_iter * self.num_pairs)

    def _whitened(self, samples: Tensor, order: Tensor) -> list[Tensor]:
        """Whitens every sample of ``[num_samples, B, D]``, part by part in the given order."""
        parts: list[list[Tensor]] = [[] for _ in samples]
        for part in order.split(self.w_size):
            for sample, found in zip(samples, parts, strict=True):
                found.append(self.whitening(sample[part]))
        back = order.argsort()
        return [torch.cat(found)[back] for found in parts]
