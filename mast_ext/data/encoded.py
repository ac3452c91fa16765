"""Images in encoded files, whatever the files lie in: the common part of `folder` and `shards`.

Everything a run can trip over is found when a source is opened: headers of all files are read,
small images of one size are decoded at once into memory, and with ``on_bad_image="skip"`` every
file is decoded, so that the set of images is fixed before training starts.
"""

import contextlib
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings (in any case) of the files that count as images."""

UNREAD_SUFFIXES = (
    *(".avif", ".cr2", ".dcm", ".dng", ".exr", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe"),
    *(".jxl", ".nef", ".pgm", ".pnm", ".psd", ".tga"),
)
"""Endings of files of pictures that do not count as images. So many may be missed unnoticed."""

STACKED_LIMIT = 64
"""Largest side, in pixels, of images that are all decoded into memory."""

_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CHUNK = 64  # files that a thread takes at a time

T = TypeVar("T")
R = TypeVar("R")


class BadImageError(ValueError):
    """A file is not an image that can be decoded; the message names it."""


class SplitError(ValueError):
    """A split has no images, or labels that the training split has not; the message says which."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar archive that is not compressed.

    Attributes:
        archive: The archive.
        name: Name of the member.
        offset: Where its bytes start in the archive.
        size: How many they are.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"


ImageFile = Path | Member
"""Where the bytes of an image are; as a string, what messages call it."""


class EncodedSource:
    """Images by index, each in a file of its own kind and size.

    Args:
        files: Where the images are.
        labels: Class ids of every factor, each ``[N]`` int64.
        classes: Names of the classes of every factor.
        where: What the files were found in, for messages.
        on_bad_image: ``"error"`` raises for a file that cannot be decoded (a large image whose
            header is sound: when it is first used); ``"skip"`` leaves such files out.
        max_images: Keep at most this many, spread evenly over the files.

    Attributes:
        skipped: Names of the files that were left out.

    Raises:
        SplitError: No file can be decoded.
        BadImageError: A file cannot be decoded and ``on_bad_image`` is ``"error"``.
    """

    name: str

    def __init__(
        self,
        files: Sequence[ImageFile],
        labels: dict[str, NDArray[np.int64]],
        classes: dict[str, list[str]],
        *,
        where: str,
        on_bad_image: Literal["error", "skip"],
        max_images: int | None,
    ) -> None:
        kept = spread(len(files), max_images)
        files = [files[i] for i in kept]

        skip = on_bad_image == "skip"
        sizes = _each(_size, files, skip)
        known = {size for size in sizes if size is not None}
        height, width = known.pop() if len(known) == 1 else (0, 0)
        small = 0 < max(height, width) <= STACKED_LIMIT
        usable: Sequence[object] = sizes
        if small:
            pixels: NDArray[np.uint8] = np.empty((len(files), height, width, 3), np.uint8)
            usable = _each(lambda i: _decode_into(pixels, i, files[i]), range(len(files)), skip)
        elif skip:
            usable = _each(_verify, files, skip)
        good = [i for i, found in enumerate(usable) if found is not None]
        self.skipped = [str(files[i]) for i, found in enumerate(usable) if found is None]
        if not good:
            raise SplitError(f"none of the {len(files)} image files {where} can be decoded")

        self.files = [files[i] for i in good]
        self.sizes = np.array([sizes[i] for i in good], np.int32)
        self.labels = {name: ids[kept[good]] for name, ids in labels.items()}
        self.classes = classes
        self.stacked: torch.Tensor | None = None
        if small:
            self.stacked = _to_tensor(pixels[good] if self.skipped else pixels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[3, H, W]`` uint8 RGB, turned upright by its EXIF orientation.

        Raises:
            BadImageError: The file cannot be decoded, or the image has changed its size since the
                source was opened.
        """
        if self.stacked is not None:
            return self.stacked[index]
        pixels = _decode(self.files[index])
        if pixels.shape[:2] != tuple(self.sizes[index]):
            name = self.sample_name(index)
            raise BadImageError(f"image {name} has changed its size since it was opened")
        # As decoded, colors last in memory: no copy, and torch crops and resizes these faster.
        return torch.from_numpy(pixels).movedim(-1, 0)

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index`` as its file has them, ``[n]`` uint8.

        Raises:
            BadImageError: The file is missing or empty, or cannot be read.
        """
        file = self.files[index]
        try:
            data = np.frombuffer(_bytes(file), np.uint8)
        except OSError as error:
            raise _bad(file, error) from error
        if not len(data):
            raise BadImageError(f"cannot decode image {file}: the file is empty")
        return data

    def sample_name(self, index: int) -> str:
        """What messages call image ``index``."""
        return str(self.files[index])


def spread(count: int, most: int | None) -> NDArray[np.int64]:
    """Positions of ``most`` items (all by default) spread evenly over ``count``."""
    if most is None or most >= count:
        return np.arange(count)
    return np.arange(most) * count // most


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
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


class _Window(io.RawIOBase):
    """A member of an archive as a file, so that a header is read without the rest."""

    def __init__(self, member: Member) -> None:
        self._archive = open(member.archive, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._start, self._size = member.offset, member.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        left = max(0, self._size - self._position)
        self._archive.seek(self._start + self._position)
        count = self._archive.readinto(memoryview(buffer)[:left])
        self._position += count or 0
        return count or 0

    def close(self) -> None:
        self._archive.close()
        super().close()


def _bytes(file: ImageFile) -> bytes:
    if isinstance(file, Path):
        return file.read_bytes()
    with open(file.archive, "rb", buffering=0) as archive:
        archive.seek(file.offset)
        return archive.read(file.size)


@contextlib.contextmanager
def _opened(file: ImageFile) -> Iterator[Image.Image]:
    """The file as an image whose pixels are not yet read; any failure names the file."""
    try:
        with contextlib.ExitStack() as stack:
            data: Any = str(file)
            if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
                raise OSError("it is not a regular file")  # a pipe would be waited for
            if isinstance(file, Member):
                data = stack.enter_context(io.BufferedReader(_Window(file)))
            yield stack.enter_context(Image.open(data))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise _bad(file, error) from error


def _bad(file: ImageFile, error: Exception) -> BadImageError:
    return BadImageError(f"cannot decode image {file}: {_reason(file, error)}")


def _reason(file: ImageFile, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        size = file.stat().st_size if isinstance(file, Path) else file.size
        return "the file is empty" if size == 0 else "not an image file"
    return str(error) or type(error).__name__


def _size(file: ImageFile) -> tuple[int, int]:
    """Height and width after EXIF orientation, from the header."""
    with _opened(file) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # whose size Pillow turns, or not, by its version
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            image.info["exif"] = _late_exif(image.fp)
        return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 if there is none that can be read. That of XMP does not count.

    So it is DALI's, which turns what it decodes. (It does not decode TIFF.)
    """
    if isinstance(image, TiffImageFile):
        exif = image.getexif()
    else:
        exif = Image.Exif()
        with contextlib.suppress(Exception):  # Pillow raises nearly anything on damaged data
            exif.load(image.info.get("exif", b""))
    return exif.get(_ORIENTATION, 1)


def _late_exif(stream: Any) -> bytes:
    """The EXIF data of a PNG file, which Pillow reads with the pixels if it comes after them."""
    stream.seek(len(b"\x89PNG\r\n\x1a\n"))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return stream.read(length)
        stream.seek(length + 4, os.SEEK_CUR)  # behind the checksum
    return b""


def _verify(file: ImageFile) -> bool:
    """Decodes all of a file, JPEG at an eighth of its size (which reads all its data)."""
    with _opened(file) as image:
        image.draft("RGB", (1, 1))
        image.load()
        _eight_bits(image)
    return True


def _decode(file: ImageFile) -> NDArray[np.uint8]:
    """Upright RGB pixels, ``[H, W, 3]``."""
    with _opened(file) as opened:
        opened.load()
        image = _eight_bits(opened)
        turn = _TURNS.get(_orientation(opened))
        if turn is not None:
            image = image.transpose(turn)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits by its upper eight, as Pillow has colors; it would clip this at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 0xFFFF:
        raise ValueError("its pixels are numbers of no known range: store 8 or 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _decode_into(pixels: NDArray[np.uint8], index: int, file: ImageFile) -> bool:
    pixels[index] = _decode(file)
    return True


def _to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels ``[..., H, W, 3]`` as ``[..., 3, H, W]``."""
    return torch.from_numpy(pixels).movedim(-1, -3).contiguous()
