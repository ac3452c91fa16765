"""What images a backbone takes, as stands beside its weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_IMAGES = 3  # made-up ones; not one, which a network may squeeze away


@dataclass(frozen=True)
class ImageFormat:
    """What a backbone takes: images ``[B, C, size, size]`` of ``(level - mean) / std``.

    A level lies in ``[0, 1]``: it is a value of 8 bits over 255, or one of 16 bits over 65535.

    Attributes:
        size: Pixels of a side.
        mean: Of every channel, in ``[0, 1]``.
        std: Likewise.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def example(self) -> Tensor:
        """Made-up images."""
        generator = torch.Generator().manual_seed(0)
        shape = (_IMAGES, len(self.mean), self.size, self.size)
        return torch.randn(shape, generator=generator, device="cpu")

    @classmethod
    def parse(cls, values: object) -> "ImageFormat":
        """From what a file says: a mapping with ``size``, ``mean`` and ``std``.

        Raises:
            ValueError: It is something else.
        """
        try:
            given = dict(values)  # type: ignore[call-overload]
            numbers = [tuple(float(x) for x in given[name]) for name in ("mean", "std")]
            found = cls(int(given["size"]), *numbers)
            if found.size != given["size"] or found.size < 1:
                raise ValueError("not a side in pixels")
            if not len(found.mean) == len(found.std) > 0 or min(found.std) <= 0:
                raise ValueError("numbers out of range")
            if not all(map(math.isfinite, (*found.mean, *found.std))):
                raise ValueError("not finite")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"images must have size, mean and std, got {values!r}") from error
        return found
