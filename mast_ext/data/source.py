"""What a source of images is, and how one is opened by name.

A source gives pixels, their sizes and labels by index. It neither augments nor shuffles nor shards:
those belong to whoever feeds the training.
"""

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mast_ext.data.arrays import NumpySource
from mast_ext.data.cifar import CIFARSource
from mast_ext.data.decoding import convert
from mast_ext.data.encoded import Progress, to_tensor
from mast_ext.data.folder import FolderSource
from mast_ext.data.huggingface import HuggingFaceSource
from mast_ext.data.shapes import ShapesSource
from mast_ext.data.shards import ShardsSource

Name = Literal["shapes", "folder", "shards", "huggingface", "numpy", "cifar10", "cifar100"]

SOURCES: tuple[str, ...] = get_args(Name)
"""Names of the sources that exist."""


class Source(Protocol):
    """Images by index.

    Attributes:
        name: Name of the kind of source.
        channels: Of every image: 1 for gray, 3 for RGB, or as many as the files have.
        bits: Of every channel: 8, or 16 for images that are uint16.
        sizes: Height and width of every image as `image` returns it, ``[N, 2]`` int32.
        labels: Class ids of every factor, each ``[N]`` int64; empty without labels.
        classes: Names of the classes of every factor.
        stacked: All images, ``[N, C, H, W]``, when they are in memory and of one size.
        skipped: Names of files left out because they cannot be decoded.
    """

    name: str
    channels: int
    bits: int
    sizes: NDArray[np.int32]
    labels: dict[str, NDArray[np.int64]]
    classes: dict[str, list[str]]
    stacked: torch.Tensor | None
    skipped: list[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[C, H, W]`` uint8 or uint16 (of 3 channels: RGB), upright."""
        ...


def open_source(
    name: Name,
    split: Literal["train", "test"],
    *,
    path: str | Path | None = None,
    size: int = 32,
    seed: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    max_images: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    channels: int | None = None,
    bits: int | None = None,
    progress: Progress | None = None,
) -> Source:
    """Opens a source of images.

    Args:
        name: ``"shapes"`` (procedural), or under ``path``: ``"folder"`` (image files), ``"shards"``
            (tar archives), ``"huggingface"`` (a folder of ``save_to_disk``, or Parquet files),
            ``"numpy"`` (arrays), ``"cifar10"`` or ``"cifar100"`` (as published).
        split: ``"train"`` or ``"test"``.
        path: The folder; for ``"shards"`` and ``"huggingface"`` a file or a pattern, for
            ``"numpy"`` a file, too. Not for ``"shapes"``.
        size: Side of the images in pixels; for ``"shapes"`` only, files have their own.
        seed: Seed of the images; for ``"shapes"`` only.
        on_bad_image: Whether a file that cannot be decoded is an error or left out and listed in
            ``skipped``; for ``"folder"``, ``"shards"`` and ``"huggingface"``.
        max_images: Keep at most this many images (of files: spread evenly over them).
        image_column: The column (``"huggingface"``) or array (``"numpy"``) of the images.
        label_column: That of the labels.
        channels: Of the images, 1 or 3: gray ones become RGB, or RGB ones gray. By default they
            keep their own; where some are gray and others in color all are RGB.
        bits: Of a channel, 8 or 16. By default 16 if all images have them, else 8. Those of
            ``"shapes"`` and CIFAR have 8.
        progress: Called with how many of how many files have been read.

    Raises:
        ValueError: A value is unknown or out of range, or a file is not what it should be.
        SplitError: The split has no usable images, or classes that the training split has not.
        FileNotFoundError: The files or the split do not exist.
        ModuleNotFoundError: A package is missing that the images need; the message names it.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image must be error or skip, got {on_bad_image!r}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    possible = channels in (None, 1, 3) and bits in (None, 8)
    if name in ("shapes", "cifar10", "cifar100") and not possible:
        raise ValueError(
            f"images of {name} have 3 channels (or 1, made gray) of 8 bits, got channels {channels}"
            f" and bits {bits}"
        )
    if name == "shapes":
        shapes = ShapesSource(split, size=size, seed=seed, max_images=max_images)
        return _gray(shapes) if channels == 1 else shapes
    if path is None:
        raise ValueError(f"source {name!r} needs a path: the folder or file with the images")
    if name in ("cifar10", "cifar100"):
        cifar = CIFARSource(name, path, split, max_images=max_images)
        return _gray(cifar) if channels == 1 else cifar
    kept: dict[str, Any] = {"max_images": max_images, "channels": channels, "bits": bits}
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    if name == "numpy":
        return NumpySource(path, split, **kept, **columns)
    kept |= {"on_bad_image": on_bad_image, "progress": progress}
    if name == "huggingface":
        return HuggingFaceSource(path, split, **kept, **columns)
    return (FolderSource if name == "folder" else ShardsSource)(path, split, **kept)


def _gray(source: ShapesSource | CIFARSource) -> Source:
    """The source with its RGB images, which are in memory, made gray."""
    assert source.stacked is not None
    images = source.stacked.movedim(1, -1).numpy()
    source.stacked = to_tensor(np.stack([convert(image, 1, 8) for image in images]))
    source.channels = 1
    return source
