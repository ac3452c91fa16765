"""What a source of images is, and how one is opened by name.

A source gives pixels, their sizes and labels by index. It neither augments nor shuffles nor shards:
those belong to whoever feeds the training.
"""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mast_ext.data.cifar import CIFARSource
from mast_ext.data.folder import FolderSource
from mast_ext.data.shapes import ShapesSource
from mast_ext.data.shards import ShardsSource

SOURCES = ("shapes", "folder", "shards", "cifar10", "cifar100")
"""Names of the sources that exist."""


class Source(Protocol):
    """Images by index.

    Attributes:
        name: Name of the kind of source.
        sizes: Height and width of every image as `image` returns it, ``[N, 2]`` int32.
        labels: Class ids of every factor, each ``[N]`` int64; empty without labels.
        classes: Names of the classes of every factor.
        stacked: All images, ``[N, 3, H, W]`` uint8, when they are in memory and of one size.
        skipped: Names of files left out because they cannot be decoded.
    """

    name: str
    sizes: NDArray[np.int32]
    labels: dict[str, NDArray[np.int64]]
    classes: dict[str, list[str]]
    stacked: torch.Tensor | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[3, H, W]`` uint8 RGB, upright."""
        ...


def open_source(
    name: Literal["shapes", "folder", "shards", "cifar10", "cifar100"],
    split: Literal["train", "test"],
    *,
    path: str | Path | None = None,
    size: int = 32,
    seed: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    max_images: int | None = None,
) -> Source:
    """Opens a source of images.

    Args:
        name: ``"shapes"`` (procedural), or under ``path``: ``"folder"`` (image files), ``"shards"``
            (tar archives), ``"cifar10"`` or ``"cifar100"`` (as published).
        split: ``"train"`` or ``"test"``.
        path: The folder; for ``"shards"`` an archive or a pattern, too. Not for ``"shapes"``.
        size: Side of the images in pixels; for ``"shapes"`` only, files have their own.
        seed: Seed of the images; for ``"shapes"`` only.
        on_bad_image: Whether a file that cannot be decoded is an error or left out and listed in
            ``skipped``; for ``"folder"`` and ``"shards"``.
        max_images: Keep at most this many images (of files: spread evenly over them).

    Raises:
        ValueError: A value is unknown or out of range.
        SplitError: The split has no usable images, or classes that the training split has not.
        FileNotFoundError: The files or the split do not exist.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image must be error or skip, got {on_bad_image!r}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    if name == "shapes":
        return ShapesSource(split, size=size, seed=seed, max_images=max_images)
    if path is None:
        raise ValueError(f"source {name!r} needs a path: the folder with the images")
    if name in ("cifar10", "cifar100"):
        return CIFARSource(name, path, split, max_images=max_images)
    kind = FolderSource if name == "folder" else ShardsSource
    return kind(path, split, on_bad_image=on_bad_image, max_images=max_images)
