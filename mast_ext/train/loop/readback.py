"""Reads losses and gradient norms from a GPU without making the host wait for it.

A host that reads a number of a step waits until the GPU has computed it and queues no further
work meanwhile, so that the GPU idles afterwards. So the copy to the host is queued with the step
and read one step later, when it has long been done.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepNumbers:
    """What the host learns of a step.

    Attributes:
        step: Its number, from 1.
        losses: Of its parts (see `TrainConfig.accumulate`), whose sum is the step's loss.
        gradient_norm: The Euclidean norm of all gradients together.
        samples: Of its parts, the sample indices ``[B]`` and augmentation parameters ``[V, B, P]``,
            where they were.
    """

    step: int
    losses: tuple[float, ...]
    gradient_norm: float
    samples: tuple[tuple[Tensor, Tensor], ...]


class Readback:
    """Gives the numbers of steps in their order: on the CPU at once, of a GPU one step late.

    Attributes:
        late: Whether they come late.
    """

    def __init__(self) -> None:
        self.late = False
        self._under_way: deque[Callable[[], StepNumbers]] = deque()

    def send(
        self,
        step: int,
        losses: Sequence[Tensor],
        gradient_norm: Tensor,
        samples: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Has a step's numbers, scalars of one device, copied to the host."""
        own = tuple(samples)
        arrived = to_host(torch.stack([*losses, gradient_norm]).detach())
        self.late = gradient_norm.device.type != "cpu"

        def read() -> StepNumbers:
            *parts, norm = arrived().tolist()
            return StepNumbers(step, tuple(parts), norm, own)

        self._under_way.append(read)

    def take(self, *, wait: bool = False) -> list[StepNumbers]:
        """Steps not taken yet. Where they come late, the last is held back unless ``wait``."""
        left = 1 if self.late and not wait else 0
        return [self._under_way.popleft()() for _ in range(len(self._under_way) - left)]


def to_host(values: Tensor) -> Callable[[], Tensor]:
    """Starts a copy to the host; what is returned waits for it and gives it."""
    if values.device.type == "cpu":
        return lambda: values
    target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    target.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def arrived() -> Tensor:
        copied.synchronize()
        return target

    return arrived
