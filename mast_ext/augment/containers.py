"""Which encoded images a native decoder may be given: those that are plainly well-formed.

Decoders of others trust what files say: DALI's reader of EXIF goes on behind the end of a directory
that claims more entries than it has, which ends the process, and no ``try`` is of any use. So the
structure of a file is walked here first: every length, count and offset has to lie inside of the
file. Nothing is mended: what is damaged or merely unusual is for Pillow. Compressed pixels
themselves are left to the libraries that decoders are made of, for which damaged ones are usual.
"""

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class _Odd(Exception):
    """A file is not plainly well-formed."""


class _Image(NamedTuple):
    """What the structure of a file says.

    Attributes:
        width: As stored.
        height: As stored.
        orientation: By EXIF; 1 without.
        end: Where the image ends in the file.
    """

    width: int
    height: int
    orientation: int
    end: int


def well_formed(data: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The bytes of an image that a decoder may be given, without what comes behind the image.

    Args:
        data: A file, ``[n]`` uint8.
        size: Height and width, after EXIF orientation, that the image must have.

    Returns:
        A view of the data; None unless it is a JPEG, PNG (of up to 8 bits), WebP or BMP without any
        oddity and of that size.
    """
    file = data.data
    walk = next((w for start, w in _WALKS.items() if file[: len(start)] == start), None)
    if walk is None:
        return None
    try:
        image = walk(file)
    except (_Odd, struct.error, IndexError, KeyError):  # the last three: behind an end, unknown
        return None
    upright = (image.height, image.width) if image.orientation < 5 else (image.width, image.height)
    return data[: image.end] if upright == size else None


def _require(sound: bool) -> None:
    if not sound:
        raise _Odd


_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112  # tag
_EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by type."""


def _orientation(exif: memoryview) -> int:
    """The orientation in EXIF data (without ``Exif``); requires a sound first directory."""
    order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(exif[:4])]
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    end = start + 2 + 12 * count
    _require(end + 4 <= len(exif))  # the place of the next directory follows
    found: list[int] = []
    for tag, kind, length, value in struct.iter_unpack(f"{order}HHI4s", exif[start + 2 : end]):
        size = length * _EXIF_BYTES[kind]
        if size > 4:  # then the value is elsewhere
            _require(struct.unpack(f"{order}I", value)[0] + size <= len(exif))
        if tag == _ORIENTATION:
            _require((kind, length) == (3, 1))
            found += struct.unpack_from(f"{order}H", value)
    _require(len(found) <= 1 and all(1 <= orientation <= 8 for orientation in found))
    return found[0] if found else 1


_SEQUENTIAL_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)  # frames of Huffman codes
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # among coded pixels: not a level of 255, no restart
_DHT, _EOI, _SOS, _DQT, _DRI, _APP1, _APP14, _COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE
_COLORS = {1: ([], [0]), 3: ([], [1]), 4: ([0], [2])}
"""Transforms of colors (Adobe's numbers) that are usual, by number of components."""


def _jpeg(file: memoryview) -> _Image:
    width = height = 0
    components = b""
    colors: list[int] = []
    orientations: list[int] = []
    at, scans = 2, 0
    while True:
        start, marker = file[at], file[at + 1]
        _require(start == 0xFF)
        if marker == _EOI:
            break
        (length,) = struct.unpack_from(">H", file, at + 2)
        body = file[at + 4 : at + 2 + length]
        at += 2 + length
        _require(length >= 2 and at <= len(file))
        if marker in _SEQUENTIAL_OR_PROGRESSIVE:
            bits, height, width, count = struct.unpack_from(">BHHB", body)
            _require(not components and bits == 8 and height > 0 and width > 0)
            _require(count in (1, 3, 4) and len(body) == 6 + 3 * count)
            components = bytes(body[6::3])
            _require(len(set(components)) == count)
            for sampling, table in zip(body[7::3], body[8::3], strict=True):
                _require(1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4 and table < 4)
        elif marker == _SOS:
            count = body[0]
            _require(1 <= count <= 4 and len(body) == 4 + 2 * count)
            _require(all(component in components for component in body[1 : 1 + 2 * count : 2]))
            scans += 1
            end = _MARKER.search(file, at)
            if end is None:
                raise _Odd
            at = end.start()
        elif marker == _DHT:
            _require_huffman_tables(body)
        elif marker == _DQT:
            while body:
                step = 129 if body[0] >> 4 else 65
                _require(body[0] >> 4 <= 1 and body[0] & 15 < 4 and len(body) >= step)
                body = body[step:]
        elif marker == _APP14:
            _require(body[:5] == b"Adobe" and len(body) == 12)
            colors.append(body[11])
        elif marker == _APP1 and body[:6] == _EXIF:
            orientations.append(_orientation(body[6:]))
        else:
            _require(marker == _COM or (marker == _DRI and length == 4) or marker & 0xF0 == 0xE0)
    _require(scans > 0 and len(orientations) <= 1)
    # Without a plain word on colors decoders guess, each in its own way.
    _require(colors in _COLORS[len(components)])
    _require(len(components) != 3 or components == b"\1\2\3")
    return _Image(width, height, orientations[0] if orientations else 1, at + 2)


def _require_huffman_tables(body: memoryview) -> None:
    while body:
        counts = bytes(body[1:17])
        total = sum(counts)
        codes = sum(count << (16 - length) for length, count in enumerate(counts, 1))
        _require(body[0] >> 4 <= 1 and body[0] & 15 < 4 and codes <= 1 << 16)
        _require(total <= 256 and len(body) >= 17 + total)
        body = body[17 + total :]


_PNG_CHUNKS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"bKGD", b"cHRM", b"eXIf", b"gAMA", b"hIST", b"iCCP"),
    *(b"iTXt", b"pHYs", b"sBIT", b"sRGB", b"tEXt", b"tIME", b"tRNS", b"zTXt"),
}
_PNG_BITS = {0: (1, 2, 4, 8), 2: (8,), 3: (1, 2, 4, 8), 4: (8,), 6: (8,)}
"""Bits of a channel, by kind of color; DALI makes of 16 something else than Pillow does."""


def _png(file: memoryview) -> _Image:
    width, height, bits, color, *methods = struct.unpack_from(">IIBBBBB", file, 16)
    _require(width > 0 and height > 0 and bits in _PNG_BITS[color])
    _require(methods in ([0, 0, 0], [0, 0, 1]))
    at, kinds, orientation = 8, [b""], 1
    while kinds[-1] != b"IEND":
        length, kind = struct.unpack_from(">I4s", file, at)
        end = at + 8 + length
        (checksum,) = struct.unpack_from(">I", file, end)
        _require(kind in _PNG_CHUNKS and zlib.crc32(file[at + 4 : end]) == checksum)
        if kind == b"PLTE":
            _require(length % 3 == 0 and 0 < length <= 3 << min(bits, 8))
        elif kind == b"eXIf":
            orientation = _orientation(file[at + 8 : end])
        _require(kind != b"IHDR" or (at == 8 and length == 13))
        kinds.append(kind)
        at = end + 4
    for kind in (b"IHDR", b"PLTE", b"eXIf"):
        _require(kinds.count(kind) <= 1)
    _require(kinds[1] == b"IHDR" and b"IDAT" in kinds)
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    _require(kinds[first : first + count] == [b"IDAT"] * count)
    _require(color != 3 or b"PLTE" in kinds[:first])
    return _Image(width, height, orientation, at)


_WEBP_PARTS = (b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L", b"EXIF", b"XMP ")
"""Chunks of a picture that is not animated, in their order."""


def _webp(file: memoryview) -> _Image:
    length, form = struct.unpack_from("<I4s", file, 4)
    end = 8 + length
    _require(form == b"WEBP" and end <= len(file) and end % 2 == 0)
    parts: dict[bytes, memoryview] = {}
    at, place = 12, -1
    while at < end:
        kind, length = struct.unpack_from("<4sI", file, at)
        _require(kind in _WEBP_PARTS[place + 1 :] and at + 8 + length <= end)
        place = _WEBP_PARTS.index(kind)
        parts[kind] = file[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    _require((b"VP8 " in parts) != (b"VP8L" in parts))
    if b"VP8 " in parts:
        start, code, width, height = struct.unpack_from("<B2x3sHH", parts[b"VP8 "])
        _require(start & 1 == 0 and code == b"\x9d\x01\x2a")
        width, height = width & 0x3FFF, height & 0x3FFF
    else:
        signature, packed = struct.unpack_from("<BI", parts[b"VP8L"])
        _require(signature == 0x2F)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    _require(width > 0 and height > 0)
    if b"VP8X" not in parts:
        _require(len(parts) == 1)
        return _Image(width, height, 1, end)
    flags, *canvas = struct.unpack("<B3xHBHB", parts[b"VP8X"])
    low, high, low_down, high_down = canvas
    _require((width - 1, height - 1) == (low | high << 16, low_down | high_down << 16))
    _require(flags & 2 == 0 and bool(flags & 8) == (b"EXIF" in parts))
    return _Image(width, height, _orientation(parts[b"EXIF"]) if b"EXIF" in parts else 1, end)


def _bmp(file: memoryview) -> _Image:
    offset, header, width, height, planes, bits, compression = struct.unpack_from(
        "<IIiiHHI", file, 10
    )
    (colors,) = struct.unpack_from("<I", file, 46)
    _require(header in (40, 108, 124) and planes == 1 and compression == 0)
    _require(bits in (8, 24) and width > 0 and height > 0)  # below 0: from the top down
    palette = 1024 if bits == 8 else 0
    _require(colors in (0, 256) and 14 + header + palette <= offset)
    end = offset + (width * bits + 31) // 32 * 4 * height
    _require(end <= len(file))
    return _Image(width, height, 1, end)


_WALKS: dict[bytes, Callable[[memoryview], _Image]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"BM": _bmp,
}
