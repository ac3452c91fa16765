"""LeJEPA (Balestriero & LeCun, arXiv 2511.08544): SIGReg and LeJEPALoss, drop-ins for lightly's."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.compiling import never_compiled
from mast_ext.distributed import require_distributed, sum_for_common_loss, world_size
from mast_ext.functional import Interval
from mast_ext.losses.common.inputs import require_first_call, require_images, require_tensors
from mast_ext.losses.common.linear_algebra import widen
from mast_ext.losses.common.slices import common_slices, random_slices, seeded_slices


class SIGReg(nn.Module):
    r"""Draws the distribution of embeddings to a normal one, along random directions.

    "Sketched isotropic Gaussian regularization" (Balestriero & LeCun 2025): the mean over random
    directions of the statistic of Epps and Pulley,
    `mast_ext.functional.sliced_characteristic_distance`::

        N/M · Σ_m ∫ [(mean_n cos(t x_nm) − φ)² + (mean_n sin(t x_nm))²] φ dt        x = z · slices

    Of each view by itself, and then the mean over views. Nothing is stored of every projection at
    every knot.

    Values equal those of lightly 1.6.0 to float32 accuracy, with the same random directions. Those
    for 16-bit embeddings are drawn in float32, and the loss is float32. The defaults are lightly's
    and those of the authors' code, which seeds its directions. The paper's Algorithm 1, which we
    know from copies of it, has ``t_max=5.0, num_vectors=256, interval="symmetric"``.

    Args:
        knots: Number of knots of the integral.
        t_max: Its end.
        num_vectors: Number of random directions of every call.
        gather_distributed: Takes the statistic over the batch of all processes, whose numbers of
            images may differ. Sums are added up once, forward; nothing is sent backward. The
            processes' views and dimensions must be as many.
        interval: What the knots divide evenly: ``"half"`` is ``[0, t_max]``, doubled, and
            ``"symmetric"`` is ``[−t_max, t_max]``.
        pooled: Takes all views of all images for one sample, whose statistic is about as many times
            larger as there are views.
        seed: None draws directions from torch's generator, and with ``gather_distributed`` the
            first process sends its own to all. A number seeds them together with the number of the
            call: they are the same on every process without being sent, and that number, which
            calls in training mode raise, is in ``state_dict``. With activation checkpoints, which
            call a loss twice, a seed is an error.

    Attributes:
        t: The knots that are not negative.
        phi: The characteristic function of a normal distribution at them.
        weights: Their weights, times ``phi``.

    Raises:
        ValueError: There are fewer than two knots (three of a symmetric interval) or no direction,
            ``t_max`` is not positive, ``interval`` is unknown, or ``gather_distributed`` without
            torch.distributed.
    """

    t: Tensor
    phi: Tensor
    weights: Tensor

    def __init__(
        self,
        *,
        knots: int = 17,
        t_max: float = 3.0,
        num_vectors: int = 1024,
        gather_distributed: bool = False,
        interval: Interval = "half",
        pooled: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.t_max = require_positive("t_max", t_max)
        self.t_min, t, phi, weights = functional.epps_pulley_grid(knots, self.t_max, interval)
        self.num_vectors = require_integer("num_vectors", num_vectors, 1)
        self.gather_distributed = require_distributed(gather_distributed)
        self.pooled = pooled
        self.seed = None if seed is None else require_integer("seed", seed)
        self.calls = 0
        self.register_buffer("t", t)
        self.register_buffer("phi", phi)
        self.register_buffer("weights", weights)

    @explains_types
    def forward(self, proj: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            proj: Embeddings ``[..., N, D]`` of views: float32, float16, bfloat16 or (CPU) float64.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: ``proj`` has fewer than two dimensions, there is no view or no image.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss with a seed.
        """
        require_tensors(proj=proj)
        if proj.ndim < 2:
            raise ValueError(f"proj must have shape [..., N, D], got {list(proj.shape)}")
        views = proj.flatten(0, -3) if proj.ndim > 2 else proj[None]
        if not views.shape[0]:
            raise ValueError(f"proj must hold 1 or more views, got shape {list(proj.shape)}")
        if not self._many():
            require_images(views.shape[1], "proj")
        return self.of_views(views)

    def of_views(self, views: Tensor) -> Tensor:
        """As `forward`, of ``[V, N, D]``, but NaN if there is no image on any process.

        For losses that have to refuse that themselves, after what processes do together.
        """
        if self.pooled:
            views = views.flatten(0, 1)[None]
        sums = functional.sliced_characteristic_sums(
            views,
            self._slices(views.shape[2], widen(views[:0])),
            knots=len(self.t),
            t_min=self.t_min,
            t_max=self.t_max,
        )
        images: float | Tensor = views.shape[1]
        if self._many():
            own = sums.new_full((1,), views.shape[1])
            every = sum_for_common_loss(torch.cat((sums.flatten(), own)))
            sums, images = every[:-1].view(sums.shape), every[-1].detach()
        phi, weights = self.phi.to(sums), self.weights.to(sums)
        return functional.epps_pulley_distance(sums, images, phi, weights).mean()

    def _many(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _slices(self, dim: int, like: Tensor) -> Tensor:
        if self.seed is not None:
            return self._seeded_slices(dim, like, self.seed)
        draw = common_slices if self.gather_distributed else random_slices
        return draw(dim, self.num_vectors, like)

    @never_compiled
    def _seeded_slices(self, dim: int, like: Tensor, seed: int) -> Tensor:
        if self.training:
            require_first_call("the number of the call")
        slices = seeded_slices(dim, self.num_vectors, like, seed + self.calls)
        self.calls += self.training
        return slices

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.seed is not None:
            destination[f"{prefix}calls"] = torch.tensor(self.calls, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        key = f"{prefix}calls"
        if self.seed is not None and key in state_dict:
            self.calls = int(state_dict[key])
            state_dict = {name: value for name, value in state_dict.items() if name != key}
        elif self.seed is not None:
            missing_keys.append(key)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args
        )
        # The sums have to be taken where the grid is, which may be another than that made here; or
        # that one, rounded.
        grid = state_dict.get(f"{prefix}t")
        if grid is not None and not grid.is_meta:
            rounding, low, high = torch.finfo(grid.dtype).eps, grid[0].item(), grid[-1].item()
            own = ((low, self.t_min), (high, self.t_max))
            if not all(math.isclose(*ends, rel_tol=rounding) for ends in own):
                self.t_min, self.t_max = low, high

    def extra_repr(self) -> str:
        return (
            f"knots={len(self.t)}, t=[{self.t_min:g}, {self.t_max:g}], "
            f"num_vectors={self.num_vectors}, pooled={self.pooled}, seed={self.seed}"
        )


class LeJEPALoss(nn.Module):
    r"""Draws the views of an image together, and embeddings to a normal distribution::

        lambda_param · SIGReg(all views) + (1 − lambda_param) · mean_vnd (z_vnd − c_nd)²

    where ``c`` is the mean of an image's global views, and `SIGReg` keeps embeddings from
    collapsing: there is no teacher and no stop-gradient (Balestriero & LeCun 2025).

    Values equal those of lightly 1.6.0 to float32 accuracy; the loss of 16-bit inputs is float32.
    Other code gives the second term a weight of 1: ``invariance_weight=1.0``.

    Args:
        lambda_param: Weight of SIGReg, from 0 to 1.
        gather_distributed: See `SIGReg`. The second term is of each process's own images.
        sigreg_knots: ``knots`` of `SIGReg`.
        sigreg_t_max: Its ``t_max``.
        sigreg_num_vectors: Its ``num_vectors``.
        invariance_weight: Weight of the second term; ``1 − lambda_param`` by default.
        sigreg_interval: Its ``interval``.
        sigreg_pooled: Its ``pooled``.
        sigreg_seed: Its ``seed``.

    Raises:
        ValueError: ``lambda_param`` is not in [0, 1], or see `SIGReg`.
    """

    def __init__(
        self,
        lambda_param: float = 0.05,
        gather_distributed: bool = False,
        sigreg_knots: int = 17,
        sigreg_t_max: float = 3.0,
        sigreg_num_vectors: int = 1024,
        *,
        invariance_weight: float | None = None,
        sigreg_interval: Interval = "half",
        sigreg_pooled: bool = False,
        sigreg_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.lambda_param = require_number("lambda_param", lambda_param, 0, 1)
        self.invariance_weight = None
        if invariance_weight is not None:
            self.invariance_weight = require_number("invariance_weight", invariance_weight)
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
    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            local_proj: Embeddings ``[L, N, D]`` of local views: float32, float16, bfloat16 or (CPU)
                float64.
            global_proj: Those of global views, ``[G, N, D]``.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: The shapes do not fit, there is no local or no global view, or no image.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        views = stack_crops(local_proj=local_proj, global_proj=global_proj)
        weight = self.invariance_weight
        weight = 1 - self.lambda_param if weight is None else weight
        regularization = self.sigreg.of_views(views)
        require_images(views.shape[1], "global_proj")
        invariance = distance_from_center(views, global_proj)
        return self.lambda_param * regularization + weight * invariance

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param}, invariance_weight={self.invariance_weight}"


def stack_crops(*, local_proj: Tensor, global_proj: Tensor) -> Tensor:
    """All views ``[G + L, N, D]``, the global ones first.

    Raises:
        ValueError: The shapes do not fit, or there is no local or no global view.
        TypeError: A dtype is not one of floating point.
    """
    require_tensors(local_proj=local_proj, global_proj=global_proj)
    for name, views in (("local_proj", local_proj), ("global_proj", global_proj)):
        if views.ndim != 3 or not views.shape[0]:
            raise ValueError(f"{name} must have shape [V, N, D] with V >= 1, got {[*views.shape]}")
    if local_proj.shape[1:] != global_proj.shape[1:]:
        raise ValueError(
            "local_proj and global_proj must have as many images and dimensions, got shapes "
            f"{[*local_proj.shape]} and {[*global_proj.shape]}"
        )
    return torch.cat((global_proj, local_proj))


def distance_from_center(views: Tensor, global_views: Tensor) -> Tensor:
    """Mean squared difference of views ``[V, N, D]`` from the mean of the global ones: a scalar."""
    return (widen(views) - widen(global_views).mean(0)).square().mean()
