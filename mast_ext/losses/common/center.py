"""The center that is taken from a teacher's logits, so that no prototype wins everywhere.

An update waits for a sum over processes that may still be under way. It is settled before the
center is used, saved or copied, so that no checkpoint lacks it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import require_number
from mast_ext.compiling import copy_of_state, never_compiled
from mast_ext.distributed import all_reduce_logsumexp, start_all_reduce, world_size
from mast_ext.losses.common.inputs import (
    require_first_call,
    require_option,
    shape_of_views,
    stack_views,
    views_in_one_dtype,
)

CenterMode = Literal["mean", "sinkhorn"]
CenterUpdate = Literal["now", "deferred"]


class Center(nn.Module):
    r"""Moving average of a teacher's mean logits (Caron et al. 2021, eq. 4), as lightly's::

        center ← momentum · center + (1 − momentum) · mean

    The mean is over the rows of all processes, whose numbers may differ (lightly averages the
    processes' means). A batch without rows leaves the center. Every process has to call alike.

    Args:
        size: Shape of the center, with 1 for the dimensions that the mean is over.
        mode: ``"mean"``, or ``"sinkhorn"``: `cross_entropy` centers every batch by its own
            Sinkhorn-Knopp assignments (Oquab et al. 2024), and the moving average rests.
        momentum: Weight of the past, in [0, 1].
        center_update: When the sum over processes is waited for. ``"now"``: in the call that
            updates. ``"deferred"``: when the center is next used, saved or copied, so that the sum
            overlaps the backward pass; losses and checkpoints are the same, but until then the
            buffer ``center`` is the one before (`value` is not).

    Attributes:
        center: The buffer, float32 of shape ``size``.

    Raises:
        ValueError: An option is unknown or ``momentum`` lies out of range.
    """

    center: Tensor

    def __init__(
        self,
        size: Sequence[int],
        mode: CenterMode = "mean",
        momentum: float = 0.9,
        *,
        center_update: CenterUpdate = "now",
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.dim = tuple(i for i, length in enumerate(self.size) if length == 1)
        self.mode: CenterMode = require_option("center_mode", mode, CenterMode)
        self.momentum = require_number("center_momentum", momentum, 0, 1)
        self.center_update: CenterUpdate = require_option(
            "center_update", center_update, CenterUpdate
        )
        self.register_buffer("center", torch.zeros(self.size))
        self._pending: Callable[[], Tensor] | None = None

    @property
    def value(self) -> Tensor:
        """The center with all updates, of shape ``size``; the buffer itself.

        Raises:
            RuntimeError: Another process died or is late.
        """
        if world_size() > 1:
            self.settle()
        return self.center

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Moves the center towards the mean of ``x``, which has any length where ``size`` is 1.

        Raises:
            ValueError: ``x`` has another shape.
            RuntimeError: Another process died or is late.
        """
        # Not by `in`: to a compiler no number is among symbolic ones.
        fits = [n == 1 or n == length for n, length in zip(self.size, x.shape, strict=False)]
        if x.ndim != len(self.size) or not all(fits):
            raise ValueError(
                f"x must have the shape of the center, {list(self.size)}, with any length where "
                f"that is 1, got {list(x.shape)}"
            )
        rows = x.numel() // max(self.center.numel(), 1)
        self._move(x.mean(self.dim, dtype=self.center.dtype), rows)

    def cross_entropy(
        self,
        student: Tensor | Sequence[Tensor],
        teacher: Tensor | Sequence[Tensor],
        *,
        student_temperature: float,
        teacher_temperature: float,
        update: bool,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Cross entropies of every student view with every centered teacher view.

        Args:
            student: Logits ``[S, B, C]``, or a list of ``[B, C]``.
            teacher: Logits ``[T, B, C]``, or a list.
            student_temperature: Divides the student's logits.
            teacher_temperature: Divides the teacher's, centered.
            update: Moves the center afterwards, by a mean from the same read of the teacher (not in
                mode ``"sinkhorn"``).
            weights: ``[T, S, B]``, or what broadcasts to it, to sum with.

        Returns:
            ``[T, S, B]``, or a scalar with ``weights``; see
            `mast_ext.functional.prototype_cross_entropy`.

        Raises:
            ValueError: A shape does not fit, or the logits have another width than the center.
            RuntimeError: Another process died or is late, or an activation checkpoint computes
                again a loss that has moved its center.
        """
        if update and self.mode == "mean":
            require_first_call("the center")
        teachers, batch, width = shape_of_views(teacher, "teacher")
        if width != self.size[-1]:
            raise ValueError(
                f"logits must have the width of the center, {self.size[-1]}, got {width}"
            )
        student, teacher = views_in_one_dtype(student, teacher)  # some of them from autocast
        options: dict[str, Any] = {
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
            "weights": weights,
        }
        if self.mode == "sinkhorn":
            center = functional.sinkhorn_knopp(
                stack_views(teacher, "teacher"),
                temperature=teacher_temperature,
                merge=all_reduce_logsumexp if world_size() > 1 else None,
            )
            return functional.prototype_cross_entropy(student, teacher, **options, center=center)
        # A copy: the backward pass needs the center as it was before the update.
        like = teacher if isinstance(teacher, Tensor) else teacher[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        center = copy_of_state(self.value.flatten().to(dtype))
        if not update:
            return functional.prototype_cross_entropy(student, teacher, **options, center=center)
        ce, mean = functional.prototype_cross_entropy_with_mean(
            student, teacher, **options, center=center
        )
        self._move(mean, teachers * batch)
        return ce

    @torch.no_grad()
    def _move(self, mean: Tensor, rows: int) -> None:
        """Towards ``mean``, with as many numbers as the center, over ``rows`` of this process."""
        if world_size() > 1:
            self._start(mean, rows)
        elif rows:
            new = mean.to(self.center.dtype).view(self.size)
            self.center.mul_(self.momentum).add_((1 - self.momentum) * new)

    @never_compiled
    def _start(self, mean: Tensor, rows: int) -> None:
        self.settle()
        total = mean.flatten() * rows if rows else mean.new_zeros(mean.numel())
        self._pending = start_all_reduce(torch.cat((total, total.new_full((1,), rows))))
        if self.center_update == "now":
            self.settle()

    @never_compiled
    @torch.no_grad()
    def settle(self) -> None:
        """Applies the update that is under way, if there is one.

        Raises:
            RuntimeError: Another process died or is late.
        """
        if self._pending is None:
            return
        finish, self._pending = self._pending, None
        total = finish().to(self.center)
        mean = (total[:-1] / total[-1].clamp_min(1)).view(self.size)
        moved = self.momentum * self.center + (1 - self.momentum) * mean
        self.center.copy_(moved.where(total[-1] > 0, self.center))

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()  # what is loaded does not include it
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return self.__dict__.copy()

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, mode={self.mode!r}, momentum={self.momentum}, "
            f"center_update={self.center_update!r}"
        )
