"""Where the bytes of an encoded image are: in a file, in an archive, in a table."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings (in any case) of the files that count as images."""

ARRAY_SUFFIXES = (".npy",)
"""Ending of arrays of one image each, which count where there are no other images."""

UNREAD_SUFFIXES = (
    *(".avif", ".cr2", ".dcm", ".dng", ".exr", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe"),
    *(".jxl", ".nef", ".nii", ".pgm", ".pnm", ".psd", ".tga"),
)
"""Endings of files of pictures that do not count as images. So many may be missed unnoticed."""


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


@dataclass(frozen=True, slots=True)
class Cell:
    """A file that a table has in one of its cells.

    Attributes:
        name: What messages call it.
        read: Gives its bytes.
    """

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


ImageFile = Path | Member | Cell
"""Where the bytes of an image are; as a string, what messages call it."""


def read_bytes(file: ImageFile) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: They cannot be read.
    """
    if isinstance(file, Path):
        return file.read_bytes()
    if isinstance(file, Cell):
        return file.read()
    with open(file.archive, "rb", buffering=0) as archive:
        archive.seek(file.offset)
        return archive.read(file.size)


def open_stream(file: ImageFile) -> BinaryIO:
    """The file for reading, so that a header is read without the rest.

    Raises:
        OSError: It cannot be opened, or is no regular file (a pipe would be waited for).
    """
    if isinstance(file, Cell):
        return io.BytesIO(file.read())
    if isinstance(file, Member):
        return io.BufferedReader(_Window(file))
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("it is not a regular file")
    return open(file, "rb")


class _Window(io.RawIOBase):
    """A member of an archive as a file of its own."""

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
