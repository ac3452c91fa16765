"""Procedural images with known factors: nothing to download, everything to probe.

One colored shape on a gray background. Six factors are drawn independently and are the labels:
shape, hue, size, position, rotation, texture. No shape has a rotational symmetry, so the rotation
is defined for all of them. Brightness, saturation, the exact position, size and angle, and the
background vary too and are not labels. Shapes are signed distance functions, evaluated at pixel
centers in batches: the distance to the outline gives the coverage of a pixel without supersampling.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Field = NDArray[np.floating]  # float32 where it has the size of the images

CLASSES: dict[str, list[str]] = {
    "shape": ["triangle", "semicircle", "tee", "crescent", "arrow"],
    "hue": ["red", "amber", "lime", "green", "cyan", "azure", "violet", "rose"],
    "size": ["small", "medium", "large"],
    "position": ["top left", "top right", "bottom left", "bottom right"],
    "rotation": ["up", "right", "down", "left"],
    "texture": ["solid", "striped", "checked"],
}
"""Names of the classes of every factor."""

IMAGES = {"train": 8192, "test": 2048}
"""Number of images in each split."""

RADII = (0.16, 0.21, 0.27)
"""Radius of the shape by the class of its size, relative to the image's side."""

OFFSET = 0.19
"""Of a quadrant's center from the image's, along either axis, relative to the side."""

_STRIPES, _CHECKS = 0.14, 0.2  # periods of the textures, relative to the image's side
_CHUNK = 256  # images rendered at a time, so that intermediates stay in the cache


class ShapesSource:
    """Images of the `shapes` data set, all in memory.

    Image i of a split is a function of (seed, split, i, size) alone, whatever ``max_images`` is.

    Args:
        split: ``"train"`` (8,192 images) or ``"test"`` (2,048); they share no random numbers.
        size: Side of the square images in pixels, at least 16.
        seed: Seed of the data set, at least 0.
        max_images: Keep only the first images.

    Raises:
        ValueError: A value is out of range.
    """

    name = "shapes"

    def __init__(
        self,
        split: Literal["train", "test"],
        *,
        size: int = 32,
        seed: int = 0,
        max_images: int | None = None,
    ) -> None:
        if size < 16:
            raise ValueError(f"size must be at least 16 pixels for shapes to be seen, got {size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        count = IMAGES[split] if max_images is None else min(max_images, IMAGES[split])
        draw = _Draw(seed, split, count)
        self.classes = {name: list(names) for name, names in CLASSES.items()}
        self.labels = {name: draw.classes(len(names)) for name, names in CLASSES.items()}
        self.sizes = np.full((count, 2), size, np.int32)
        self.skipped: list[str] = []
        self.channels, self.bits = 3, 8
        self.stacked: torch.Tensor | None = torch.from_numpy(_render(self.labels, draw, size))

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[C, H, W]`` uint8."""
        assert self.stacked is not None
        return self.stacked[index]


class _Draw:
    """Random numbers of all images, one stream for each quantity.

    Numbers of one stream are consecutive, so the first n images are the same for every count.
    """

    def __init__(self, seed: int, split: str, count: int) -> None:
        self._key = [seed, list(IMAGES).index(split)]
        self._stream = 0
        self._count = count

    def uniform(self, low: float, high: float) -> Field:
        """``[N]`` float32 in ``[low, high)``."""
        return (low + (high - low) * self._next().random(self._count)).astype(np.float32)

    def classes(self, number: int) -> NDArray[np.int64]:
        """``[N]`` int64 in ``[0, number)``."""
        return np.floor(self._next().random(self._count) * number).astype(np.int64)

    def _next(self) -> np.random.Generator:
        self._stream += 1
        return np.random.default_rng([*self._key, self._stream])


def _render(labels: dict[str, NDArray[np.int64]], draw: _Draw, size: int) -> NDArray[np.uint8]:
    """Images ``[N, 3, size, size]`` uint8. Lengths are relative to the image's side."""
    right, below = labels["position"] % 2, labels["position"] // 2
    center_x = 0.5 + OFFSET * (2 * right - 1) + draw.uniform(-0.05, 0.05)
    center_y = 0.5 + OFFSET * (2 * below - 1) + draw.uniform(-0.05, 0.05)
    radius = np.take(RADII, labels["size"]) * draw.uniform(0.95, 1.05)
    angle = labels["rotation"] * (math.pi / 2) + draw.uniform(-0.2, 0.2)
    hue = labels["hue"] / len(CLASSES["hue"]) + draw.uniform(-0.02, 0.02)
    color = _hsv_to_rgb(hue % 1, draw.uniform(0.65, 1.0), draw.uniform(0.65, 1.0))
    phase = draw.uniform(0, 1)
    background = draw.uniform(0.08, 0.36)
    slope = draw.uniform(0, 0.25)
    direction = draw.uniform(0, 2 * math.pi)

    images = np.empty((len(hue), 3, size, size), np.uint8)
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    columns, rows = axis[None, None, :], axis[None, :, None]
    cos, sin = np.cos(angle), np.sin(angle)
    ramp_x, ramp_y = slope * np.cos(direction), slope * np.sin(direction)
    for shape, distance in enumerate(_DISTANCES):
        members = np.flatnonzero(labels["shape"] == shape)
        for start in range(0, len(members), _CHUNK):
            at = members[start : start + _CHUNK]
            pick = _Picker(at)
            dx = columns - pick(center_x)
            dy = rows - pick(center_y)
            # The image turned back and scaled, so that the shape has radius 1 and points up.
            u = (pick(cos) * dx + pick(sin) * dy) / pick(radius)
            v = (pick(cos) * dy - pick(sin) * dx) / pick(radius)
            coverage = np.clip(0.5 - distance(u, v) * pick(radius * size), 0, 1)
            shade = _texture(labels["texture"][at], dx, dy, pick(phase), size)
            ramp = pick(background) + pick(ramp_x) * (columns - 0.5) + pick(ramp_y) * (rows - 0.5)
            ramp = ramp * (1 - coverage)
            for channel in range(3):
                level = ramp + coverage * shade * pick(color[channel])
                images[at, channel] = np.rint(np.clip(level, 0, 1) * 255)
    return images


class _Picker:
    """Takes values of the images of one chunk, ``[n, 1, 1]`` float32."""

    def __init__(self, at: NDArray[np.intp]) -> None:
        self._at = at

    def __call__(self, values: NDArray) -> Field:
        return values[self._at].astype(np.float32)[:, None, None]


def _texture(texture: NDArray[np.int64], dx: Field, dy: Field, phase: Field, size: int) -> Field:
    """Factor of the shape's brightness, ``[n, size, size]``: 1, or dark stripes or checks.

    Stripes run along the image's diagonal and checks along its axes, whatever the rotation.
    """
    shade = np.ones((len(texture), size, size), np.float32)
    striped, checked = texture == 1, texture == 2
    diagonal = (dx[striped] + dy[striped]) / math.sqrt(2)
    shade[striped] -= 0.5 * _bands(diagonal, phase[striped], _STRIPES, size)
    across = _bands(dx[checked], phase[checked], _CHECKS, size)
    along = _bands(dy[checked], phase[checked], _CHECKS, size)
    shade[checked] -= 0.5 * (across + along - 2 * across * along)
    return shade


def _bands(position: Field, phase: Field, period: float, size: int) -> Field:
    """1 in one half of every period, 0 in the other, blended over a pixel."""
    distance = np.abs((position / period + phase) % 1 - 0.5) - 0.25
    return np.clip(0.5 + distance * (period * size), 0, 1)


def _triangle(u: Field, v: Field) -> Field:
    """Isosceles triangle with its tip up."""
    return np.maximum(v - 0.8, (np.abs(u) * 1.8 - v - 1) / math.hypot(1.8, 1))


def _semicircle(u: Field, v: Field) -> Field:
    """Upper half of a disc."""
    return np.maximum(np.hypot(u, v - 0.4) - 1, v - 0.4)


def _tee(u: Field, v: Field) -> Field:
    """The letter T: a bar on top of a stem."""
    return np.minimum(_box(u, v + 0.55, 0.9, 0.3), _box(u, v - 0.2, 0.3, 0.75))


def _crescent(u: Field, v: Field) -> Field:
    """A disc without a smaller one near its top: horns up."""
    return np.maximum(np.hypot(u, v) - 1, 0.68 - np.hypot(u, v + 0.5))


def _arrow(u: Field, v: Field) -> Field:
    """A chevron pointing up with a shaft."""
    head = np.maximum(v + 0.05, (np.abs(u) - v - 1) / math.sqrt(2))
    return np.minimum(head, _box(u, v - 0.45, 0.22, 0.5))


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


_DISTANCES: tuple[Callable[[Field, Field], Field], ...] = (
    *(_triangle, _semicircle, _tee, _crescent, _arrow),
)


def _hsv_to_rgb(hue: Field, saturation: Field, value: Field) -> Field:
    """Colors ``[3, N]`` in ``[0, 1]``."""
    sextant = (hue * 6 + np.array([5, 3, 1], np.float32)[:, None]) % 6
    return value - value * saturation * np.clip(np.minimum(sextant, 4 - sextant), 0, 1)
