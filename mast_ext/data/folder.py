"""Image files under a folder, with their classes when sub-folders name them.

Everything a run can trip over is found when the folder is opened: headers of all files are read,
small images of one size are decoded at once into memory, and with ``on_bad_image="skip"`` every
file is decoded, so that the set of images is fixed before training starts.
"""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings (in any case) of the files that count as images."""

STACKED_LIMIT = 64
"""Largest side, in pixels, of images that are all decoded into memory."""

TEST_FRACTION = 0.1
"""Share of the images that is the test split of a folder which has no split of its own."""

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width

_CHUNK = 64  # files that a thread takes at a time

T = TypeVar("T")
R = TypeVar("R")


class BadImageError(ValueError):
    """A file is not an image that can be decoded; the message names it."""


class FolderSource:
    """Images of a folder in one of three layouts.

    ``DIR/train`` beside ``DIR/test`` or ``DIR/val``, each with one folder per class or with files
    only; ``DIR/<class>/``; or files directly under ``DIR``. In the last two a tenth of each class
    (chosen by a hash of the names) is the test split. Names that start with a dot are ignored.

    Args:
        path: The folder.
        split: ``"train"`` or ``"test"``.
        on_bad_image: ``"error"`` raises for a file that cannot be decoded (a large image whose
            header is sound: when it is first used); ``"skip"`` leaves such files out.
        max_images: Keep at most this many, spread evenly over the sorted files.

    Attributes:
        paths: Files of the images, in order.
        skipped: Names of the files that were left out.

    Raises:
        FileNotFoundError: The folder, or the split in it, does not exist.
        ValueError: There are no images, or the layout is ambiguous.
        BadImageError: A file cannot be decoded and ``on_bad_image`` is ``"error"``.
    """

    name = "folder"

    def __init__(
        self,
        path: str | Path,
        split: Literal["train", "test"],
        *,
        on_bad_image: Literal["error", "skip"] = "error",
        max_images: int | None = None,
    ) -> None:
        paths, ids, names = _select(Path(path), split)
        if max_images is not None and max_images < len(paths):
            kept = np.arange(max_images) * len(paths) // max_images
            paths, ids = [paths[i] for i in kept], ids[kept]

        skip = on_bad_image == "skip"
        sizes = _each(_size, paths, skip)
        known = {size for size in sizes if size is not None}
        height, width = known.pop() if len(known) == 1 else (0, 0)
        small = 0 < max(height, width) <= STACKED_LIMIT
        usable: Sequence[object] = sizes
        if small:
            pixels: NDArray[np.uint8] = np.empty((len(paths), height, width, 3), np.uint8)
            usable = _each(lambda i: _decode_into(pixels, i, paths[i]), range(len(paths)), skip)
        elif skip:
            usable = _each(_verify, paths, skip)
        good = [i for i, found in enumerate(usable) if found is not None]
        self.skipped = [str(paths[i]) for i, found in enumerate(usable) if found is None]
        if not good:
            raise ValueError(f"none of the {len(paths)} image files under {path} can be decoded")

        self.paths = [paths[i] for i in good]
        self.sizes = np.array([sizes[i] for i in good], np.int32)
        self.labels: dict[str, NDArray[np.int64]] = {"class": ids[good]} if names else {}
        self.classes = {"class": names} if names else {}
        self.stacked: torch.Tensor | None = None
        if small:
            self.stacked = _to_tensor(pixels[good] if self.skipped else pixels)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[3, H, W]`` uint8 RGB, turned upright by its EXIF orientation.

        Raises:
            BadImageError: The file cannot be decoded.
        """
        if self.stacked is not None:
            return self.stacked[index]
        return _to_tensor(_decode(self.paths[index]))


def _select(root: Path, split: str) -> tuple[list[Path], NDArray[np.int64], list[str]]:
    """Files of a split, their class ids ``[N]`` and the names of the classes ([] without)."""
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {root} {reason}")
    if not (root / "train").is_dir():
        files = _list(root)
        paths, names = _split(files, root, split), list(files)
        where = f"the {split} split of {root}"
    else:
        folders = [root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()]
        if not folders:
            wanted = " or ".join(f"{name}/" for name in _SPLIT_FOLDERS[split])
            raise FileNotFoundError(f"image folder {root} has train/ but no {wanted}")
        paths = _list(folders[0])
        names = list(paths if split == "train" else _list(root / "train"))
        where = str(folders[0])
        unknown = [name or "files without a class" for name in paths if name not in names]
        if unknown:
            raise ValueError(f"{where} has classes that train/ has not: {', '.join(unknown)}")
    flat = [path for members in paths.values() for path in members]
    if not flat:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) in {where}")
    ids = [names.index(name) for name, members in paths.items() for _ in members]
    return flat, np.array(ids, np.int64), [] if names == [""] else names


def _list(folder: Path) -> dict[str, list[Path]]:
    """Sorted image files of every class under a folder; the class is "" for loose files."""
    loose: list[Path] = []
    classes: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = sorted(_walk(entry))
            if files:
                classes[entry.name] = files
        elif _is_image(entry.name):
            loose.append(entry)
    if loose and classes:
        raise ValueError(
            f"image folder {folder} has images beside class folders ({loose[0].name} beside "
            f"{next(iter(classes))}/): move them into a class, or all into one folder"
        )
    return classes or ({"": loose} if loose else {})


def _split(files: dict[str, list[Path]], root: Path, split: str) -> dict[str, list[Path]]:
    """A tenth of each class as the test split, the rest as train; by a hash of the names."""

    def rank(path: Path) -> tuple[int, Path]:
        return zlib.crc32(os.fsencode(path.relative_to(root).as_posix())), path

    chosen = {}
    for name, members in files.items():
        count = max(round(TEST_FRACTION * len(members)), 1) if len(members) > 1 else 0
        test = set(sorted(members, key=rank)[:count])
        chosen[name] = [path for path in members if (path in test) == (split == "test")]
    return chosen


def _walk(folder: Path) -> Iterator[Path]:
    """Image files at any depth under a folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # not to be entered
        yield from (Path(parent, name) for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _each(function: Callable[[T], R], items: Sequence[T], skip: bool) -> list[R | None]:
    """The function of every item, by threads; None for a bad image if they are skipped."""

    def part(start: int) -> list[R | None]:
        found: list[R | None] = []
        for item in items[start : start + _CHUNK]:
            try:
                found.append(function(item))
            except BadImageError:
                if not skip:
                    raise
                found.append(None)
        return found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            starts = range(0, len(items), _CHUNK)
            return [result for chunk in pool.map(part, starts) for result in chunk]
        except BadImageError:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as an image whose pixels are not yet read; any failure names the file."""
    try:
        with Image.open(str(path)) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise BadImageError(f"cannot decode image {path}: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if path.stat().st_size == 0 else "not an image file"
    return str(error) or type(error).__name__


def _size(path: Path) -> tuple[int, int]:
    """Height and width after EXIF orientation, from the header."""
    with _opened(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
        return image.size if turned else image.size[::-1]


def _verify(path: Path) -> bool:
    """Decodes all of a file, JPEG at an eighth of its size (which reads all its data)."""
    with _opened(path) as image:
        image.draft("RGB", (1, 1))
        image.load()
    return True


def _decode(path: Path) -> NDArray[np.uint8]:
    """Upright RGB pixels, ``[H, W, 3]``."""
    with _opened(path) as image:
        if image.getexif().get(_ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_into(pixels: NDArray[np.uint8], index: int, path: Path) -> bool:
    pixels[index] = _decode(path)
    return True


def _to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels ``[..., H, W, 3]`` as ``[..., 3, H, W]``."""
    return torch.from_numpy(pixels).movedim(-1, -3).contiguous()
