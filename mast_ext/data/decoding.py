"""Decodes one encoded image: its header, and its levels with the channels and bits it has.

Pillow reads what it can without loss. It keeps eight bits of a colored image and at most four
channels, so that the others are read by tifffile (channels of TIFF) and imagecodecs (PNG in color
of 16 bits), which are optional. Channels are gray (1), red, green and blue (3), or those of a
TIFF file or an array, as many as they are. Transparency is no channel: it is left out.
"""

import contextlib
import importlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

from mast_ext.data.files import ARRAY_SUFFIXES, ImageFile, Member, open_stream

Levels = NDArray[Any]
"""Pixels ``[H, W, C]``, uint8 or uint16."""

_GRAY_MODES = ("1", "L", "LA", "La", "F")  # and those that begin with I: integers
_ALPHA = (1, 2)  # values of the tag for further samples of TIFF
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # interpretations of the samples of TIFF
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width
_TURNS: dict[int, Callable[[NDArray], NDArray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


class BadImageError(ValueError):
    """A file is not an image that can be decoded; the message names it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image is before its pixels are read.

    Attributes:
        height: Upright, in pixels.
        width: Likewise.
        channels: 1 for gray, 3 for colors, or another number.
        bits: Of a channel: 8 or 16.
    """

    height: int
    width: int
    channels: int
    bits: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


class Encoded(Protocol):
    """An image that was opened, and not decoded yet."""

    header: Header

    def levels(self) -> Levels:
        """Its pixels, upright."""
        ...

    def verify(self) -> None:
        """Reads all of its data, and fails where `levels` would."""
        ...


@contextlib.contextmanager
def opened(file: ImageFile) -> Iterator[Encoded]:
    """The file as an image whose pixels are not read yet.

    Raises:
        BadImageError: It cannot be read, or what is done with it fails; or the package that reads
            this kind is missing.
    """
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(open_stream(file))
            if str(file).lower().endswith(ARRAY_SUFFIXES):
                yield _Array(stream)
            else:
                yield _picture(stream, stack)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise bad(file, error) from error


def convert(levels: Levels, channels: int, bits: int) -> Levels:
    """Levels of another number of channels (gray and RGB into each other) or of bits."""
    if levels.shape[-1] != channels:
        if (levels.shape[-1], channels) == (1, 3):
            levels = np.repeat(levels, 3, axis=-1)
        elif (levels.shape[-1], channels) == (3, 1):
            levels = _luma(levels)
        else:
            raise ValueError(f"it has {levels.shape[-1]} channels, which cannot become {channels}")
    if bits == 16 and levels.dtype == np.uint8:
        return levels.astype(np.uint16) * np.uint16(257)  # 255 becomes 65535
    if bits == 8 and levels.dtype == np.uint16:
        return (levels >> 8).astype(np.uint8)
    return levels


def _luma(levels: Levels) -> Levels:
    """ITU-R 601-2 in integers, as Pillow has it."""
    red, green, blue = (levels[..., c].astype(np.uint32) for c in range(3))
    gray = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return gray.astype(levels.dtype)[..., None]


def bad(file: ImageFile, error: Exception) -> BadImageError:
    """The error that names the file."""
    return BadImageError(f"cannot decode image {file}: {_reason(file, error)}")


def _reason(file: ImageFile, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, UnidentifiedImageError):
        with contextlib.suppress(OSError):
            size = file.size if isinstance(file, Member) else None
            with open_stream(file) as stream:
                if size == 0 or not stream.read(1):
                    return "the file is empty"
        return "not an image file"
    return str(error) or type(error).__name__


def _import(package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {package}, not installed here: pip install 'mast-ext[images]'"
        ) from error


def _picture(stream: BinaryIO, stack: contextlib.ExitStack) -> "_Picture | _Tiff":
    try:
        image = stack.enter_context(Image.open(stream))
    except UnidentifiedImageError as error:
        stream.seek(0)
        if stream.read(4) not in _TIFF_STARTS:
            raise
        try:
            return _Tiff(stream)
        except ModuleNotFoundError:
            raise
        except Exception:
            raise error from None
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program, which is not run")
    return _Tiff(stream) if _only_tifffile_keeps(image) else _Picture(image, stream)


def _only_tifffile_keeps(image: Image.Image) -> bool:
    """Whether it is a TIFF of which Pillow would leave out channels or bits."""
    if not isinstance(image, TiffImageFile):
        return False
    tags = image.tag_v2
    kind = tags.get(PHOTOMETRIC_INTERPRETATION)
    if kind not in (_MINISWHITE, _MINISBLACK, _RGB):
        return False  # a palette, inks: colors of 8 bits
    samples = tags.get(SAMPLESPERPIXEL, 1)
    alpha = sum(extra in _ALPHA for extra in tags.get(EXTRASAMPLES, ()))
    deep = max(tags.get(BITSPERSAMPLE, (1,))) > 8
    return samples - alpha not in (1, 3) or (deep and samples > 1)


class _Picture:
    """What Pillow has opened."""

    def __init__(self, image: Image.Image, stream: BinaryIO) -> None:
        self._image, self._stream = image, stream
        self._deep_color, self._paged, self._negative = False, False, False
        width, height = image.size
        gray = image.mode in _GRAY_MODES or image.mode.startswith("I")
        channels, bits = (1 if gray else 3), (16 if image.mode.startswith(("I", "F")) else 8)
        if isinstance(image, TiffImageFile):  # whose size Pillow turns, or not, by its version
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
            kind = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION)
            self._negative = bits == 16 and kind == _MINISWHITE  # of 8 bits Pillow turns it
            if gray and image.mode != "1" and image.tag_v2.next:
                channels = self._pages()
                self._paged = channels > 1
        elif isinstance(image, PngImageFile):
            if "exif" not in image.info:
                image.info["exif"] = _late_exif(stream)
            stream.seek(24)
            depth, color = stream.read(2)
            if depth == 16 and color != 0:
                self._deep_color = True
                channels, bits = (1 if color == 4 else 3), 16
        if _orientation(image) in _QUARTER_TURNS:
            height, width = width, height
        self.header = Header(height, width, channels, bits)

    def levels(self) -> Levels:
        if self._deep_color:
            levels = self._decode_deep_color()[..., : self.header.channels]
        elif self._paged:
            pages = []
            for page in range(self.header.channels):
                self._image.seek(page)
                pages.append(_levels(self._image))
            levels = np.concatenate(pages, axis=-1)
        else:
            self._image.load()
            levels = _levels(self._image)
        if self._negative:
            levels = np.uint16(0xFFFF) - levels
        turn = _TURNS.get(_orientation(self._image))  # a TIFF was turned when it was loaded
        return levels if turn is None else np.ascontiguousarray(turn(levels))

    def verify(self) -> None:
        """JPEG is decoded at an eighth of its size, which reads all its data."""
        if self._deep_color or self._paged:
            self.levels()
        else:
            self._image.draft("RGB", (1, 1))
            self._image.load()
            _levels(self._image)

    def _pages(self) -> int:
        """How many of a gray TIFF's pages are channels: as many as are of the first one's kind."""
        image: Any = self._image
        kind = image.size, image.mode
        for page in range(1, image.n_frames):
            image.seek(page)
            if (image.size, image.mode) != kind:  # a smaller copy, say
                image.seek(0)
                return 1
        image.seek(0)
        return image.n_frames

    def _decode_deep_color(self) -> Levels:
        codecs = _import("imagecodecs", "PNG in color of 16 bits")
        self._image.load()  # whose checks are stricter
        self._stream.seek(0)
        return codecs.png_decode(self._stream.read())


def _levels(image: Image.Image) -> Levels:
    """Gray as it is, everything else as RGB: ``[H, W, 1 or 3]``."""
    if image.mode == "F" or image.mode.startswith("I"):
        numbers = np.asarray(image)
        if image.mode == "F" or numbers.min() < 0 or numbers.max() > 0xFFFF:
            raise ValueError("its pixels are numbers of no known range: store 8 or 16 bits")
        return numbers.astype(np.uint16)[..., None]
    if image.mode in _GRAY_MODES:
        return np.array(image if image.mode == "L" else image.convert("L"))[..., None]
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


class _Tiff:
    """A TIFF file that only tifffile reads without loss: samples of its first page."""

    def __init__(self, stream: BinaryIO) -> None:
        tifffile = _import("tifffile", "TIFF with other channels than gray or RGB of 8 bits")
        stream.seek(0)
        self._page: Any = tifffile.TiffFile(stream).pages[0]
        page = self._page
        if page.dtype not in (np.uint8, np.uint16):
            raise ValueError("its pixels are numbers of no known range: store 8 or 16 bits")
        alpha = sum(int(extra) in _ALPHA for extra in page.extrasamples)
        height, width = page.imagelength, page.imagewidth
        tag = page.tags.get(_ORIENTATION)
        self._orientation = 1 if tag is None else int(tag.value)
        if self._orientation in _QUARTER_TURNS:
            height, width = width, height
        channels = page.samplesperpixel - alpha
        self.header = Header(height, width, channels, 8 * page.dtype.itemsize)

    def levels(self) -> Levels:
        levels = self._page.asarray()
        if levels.ndim == 2:
            levels = levels[..., None]
        elif self._page.axes.startswith("S"):  # one plane after the other
            levels = np.moveaxis(levels, 0, -1)
        if self._page.photometric == _MINISWHITE:  # of gray: what comes after it is no shade
            levels[..., 0] = np.iinfo(levels.dtype).max - levels[..., 0]
        levels = _TURNS.get(self._orientation, lambda a: a)(levels)
        return np.ascontiguousarray(levels[..., : self.header.channels])

    def verify(self) -> None:
        self.levels()


class _Array:
    """A file of NumPy's with one image."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        check_array(shape, dtype)
        channels = shape[2] if len(shape) == 3 else 1
        self.header = Header(shape[0], shape[1], channels, 8 * dtype.itemsize)

    def levels(self) -> Levels:
        self._stream.seek(0)
        array = np.lib.format.read_array(self._stream, allow_pickle=False)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(array if array.ndim == 3 else array[..., None])

    def verify(self) -> None:
        self.levels()


def check_array(shape: Sequence[int], dtype: np.dtype, *, first: str = "") -> None:
    """Raises a ValueError unless an array is of an image, ``[H, W]`` or ``[H, W, C]``.

    Args:
        shape: Its shape, without the axes that are not an image's.
        dtype: Its numbers.
        first: What messages write before ``H``.
    """
    wanted = f"must be uint8 or uint16 of shape [{first}H, W] or [{first}H, W, C], channels last"
    got = f"{dtype} [{first}{', '.join(map(str, shape))}]"
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16) or len(shape) not in (2, 3):
        raise ValueError(f"its array {wanted}, got {got}")
    if 0 in shape:
        raise ValueError(f"its array {wanted}, got {got}, which has no pixels")
    if len(shape) == 3 and shape[2] > 4 and 2 * shape[0] <= min(shape[1:]):  # no image's sides
        axis = 1 if first else 0
        raise ValueError(
            f"its array {wanted}, got {got}, whose channels seem to be first: numpy.moveaxis(array,"
            f" {axis}, -1) moves them"
        )


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


def _late_exif(stream: BinaryIO) -> bytes:
    """The EXIF data of a PNG file, which Pillow reads with the pixels if it comes after them."""
    stream.seek(len(b"\x89PNG\r\n\x1a\n"))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return stream.read(length)
        stream.seek(length + 4, os.SEEK_CUR)  # behind the checksum
    return b""
