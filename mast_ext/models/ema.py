"""The teacher of a student: a frozen copy that follows it as an exponential moving average.

Only what a checkpoint needs is state (weights and buffers); the momentum is a function of the step.
"""

import copy
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mast_ext.checks import OptionError

BatchNormMode = Literal["own", "ema"]


class EMATeacher(nn.Module):
    """A copy of a module whose parameters move by ``t ← momentum · t + (1 − momentum) · s``.

    It gives no gradient and gets none. Dropout and stochastic depth are off in it.

    Args:
        student: The module to copy, weights included, and to follow.
        batch_norm: What batch norm does in the teacher. ``"own"``: it normalizes with the
            statistics of the teacher's own batch and keeps its own running averages of them
            (BYOL, Grill et al. 2020; MoCo v3, Chen et al. 2021). ``"ema"``: it normalizes with
            the student's running averages, which the teacher follows as it follows parameters
            (EMAN, Cai et al. 2021), so that what it says of an image does not depend on the
            others of its batch.

    Raises:
        ValueError: ``batch_norm`` is unknown.
    """

    def __init__(self, student: nn.Module, *, batch_norm: BatchNormMode = "own") -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormMode):
            raise OptionError(f"batch_norm must be 'own' or 'ema', got {batch_norm!r}")
        self.batch_norm = batch_norm
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.train(student.training)

    @torch.no_grad()
    def forward(self, *args: Tensor) -> Tensor:
        return self.module(*args)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Sets the mode of batch norm (see ``batch_norm``); all else stays in evaluation mode."""
        super().train(False)
        if mode and self.batch_norm == "own":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Moves towards the student, after its step.

        Args:
            student: The module that was copied.
            momentum: How much of the teacher stays, in ``[0, 1]``.
        """
        torch._foreach_lerp_(
            list(self.module.parameters()), list(student.parameters()), 1 - momentum
        )
        if self.batch_norm == "own":
            return
        for own, other in zip(self.module.buffers(), student.buffers(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, 1 - momentum)
            else:
                own.copy_(other)


def cosine_momentum(step: int, *, total: int, start: float, end: float = 1.0) -> float:
    """The momentum of a step: from ``start`` to ``end`` by half a cosine.

    BYOL (Grill et al. 2020, section 3.2) and MoCo v3 use ``end = 1``; ``end = start`` is constant.

    Args:
        step: Steps done before this one.
        total: Steps of the whole run.
        start: Momentum of the first step.
        end: Momentum at the end.
    """
    progress = min(1.0, step / total)
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2
