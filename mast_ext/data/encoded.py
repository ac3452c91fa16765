"""Images in encoded files, whatever the files lie in: what folders, shards, tables have in common.

Everything a run can trip over is found when a source is opened: every file is opened once, for its
header; small images of one size are decoded in the same go, and stay in memory; and with
``on_bad_image="skip"`` every file is decoded, so that the set of images is fixed before training
starts.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mast_ext.data.decoding import BadImageError, Header, Levels, bad, convert, opened
from mast_ext.data.files import ImageFile, read_bytes
from mast_ext.data.splits import SplitError, spread

STACKED_LIMIT = 64
"""Largest side, in pixels, of images that are all decoded into memory."""

_CHUNK = 64  # files that a thread takes at a time

_MOST_THREADS = 8
_THREADS_OF_SMALL = 4  # hide the latency of disks; more would only fight over Python's lock

Progress = Callable[[int, int], None]
"""Told, now and then, how many of how many files have been read."""


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
        channels: Of the images that `image` gives, 1 (gray) or 3 (RGB) of images that are either.
            By default what the files have: 3 where some are gray and others in color.
        bits: Likewise, 8 or 16. By default 16 if all files have them, else 8.
        progress: Called in this thread with how many of how many files have been read.

    Attributes:
        skipped: Names of the files that were left out.
        reduced: How many images of 16 bits are read with 8 because others have no more.

    Raises:
        SplitError: No file can be decoded.
        BadImageError: A file cannot be decoded and ``on_bad_image`` is ``"error"``.
        ValueError: Files have different numbers of channels, or not those asked for.
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
        channels: int | None = None,
        bits: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        kept = spread(len(files), max_images)
        files = [files[i] for i in kept]

        skip = on_bad_image == "skip"
        survey = _Survey(files, channels, bits, verify=skip)
        found = survey.read_all(skip, progress)
        headers = {i: each for i, each in enumerate(found) if isinstance(each, Header)}
        if not headers:
            raise SplitError(
                f"none of the {len(files)} image files {where} can be decoded; the first:"
                f" {found[0]}"
            )
        self.channels = _channels(headers, files, channels)
        self.bits = bits or min(header.bits for header in headers.values())
        deeper = sum(header.bits > self.bits for header in headers.values())
        self.reduced = 0 if bits else deeper
        if survey.mixed and len({header.size for header in headers.values()}) == 1:
            # Small images of one size: the first one did not tell how all are to be decoded.
            survey = _Survey(files, self.channels, self.bits, verify=False)
            again = survey.read_all(skip, progress)
            headers = {i: each for i, each in headers.items() if isinstance(again[i], Header)}

        good = list(headers)
        self.skipped = [str(files[i]) for i in range(len(files)) if i not in headers]
        self.files = [files[i] for i in good]
        self.sizes = np.array([header.size for header in headers.values()], np.int32)
        self.labels = {name: ids[kept[good]] for name, ids in labels.items()}
        self.classes = classes
        self.stacked: torch.Tensor | None = None
        if survey.pixels is not None:
            self.stacked = to_tensor(survey.pixels[good] if self.skipped else survey.pixels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> torch.Tensor:
        """Image ``index``, ``[C, H, W]`` uint8 or uint16, turned upright by its EXIF orientation.

        Raises:
            BadImageError: The file cannot be decoded, or the image has changed its size since the
                source was opened.
        """
        if self.stacked is not None:
            return self.stacked[index]
        with opened(self.files[index]) as image:
            levels = convert(image.levels(), self.channels, self.bits)
        if levels.shape[:2] != tuple(self.sizes[index]):
            name = self.sample_name(index)
            raise BadImageError(f"image {name} has changed its size since it was opened")
        # As decoded, colors last in memory: no copy, and these are resized faster.
        return torch.from_numpy(levels).movedim(-1, 0)

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index`` as its file has them, ``[n]`` uint8.

        Raises:
            BadImageError: The file is missing or empty, or cannot be read.
        """
        file = self.files[index]
        try:
            data = np.frombuffer(read_bytes(file), np.uint8)
        except OSError as error:
            raise bad(file, error) from error
        if not len(data):
            raise BadImageError(f"cannot decode image {file}: the file is empty")
        return data

    def sample_name(self, index: int) -> str:
        """What messages call image ``index``."""
        return str(self.files[index])


def to_tensor(levels: Levels) -> torch.Tensor:
    """Levels ``[..., H, W, C]`` as ``[..., C, H, W]``."""
    return torch.from_numpy(levels).movedim(-1, -3).contiguous()


class _Survey:
    """Reads files, each once: the headers and, as long as all are small and alike, the pixels.

    Attributes:
        pixels: Those of all files, ``[N, H, W, C]``, if they are small and alike; None otherwise.
        mixed: Whether files of one size have different channels or bits, so that ``pixels`` is
            None though they are small.
    """

    def __init__(
        self, files: Sequence[ImageFile], channels: int | None, bits: int | None, *, verify: bool
    ) -> None:
        self.pixels: Levels | None = None
        self.mixed = False
        self._files, self._channels, self._bits, self._verify = files, channels, bits, verify
        self._first: Header | None = None
        self._lock = Lock()

    def read_all(self, skip: bool, progress: Progress | None) -> list[Header | BadImageError]:
        """The headers of all files; errors of bad images among them if they are skipped."""
        count = len(self._files)

        def part(start: int) -> list[Header | BadImageError]:
            found: list[Header | BadImageError] = []
            for index in range(start, min(start + _CHUNK, count)):
                try:
                    found.append(self._read(index))
                except BadImageError as error:
                    if not skip:
                        raise
                    found.append(error)
            return found

        headers = part(0)
        small = self.pixels is not None
        threads = _THREADS_OF_SMALL if small else min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for more in pool.map(part, range(_CHUNK, count, _CHUNK)):
                    if progress is not None:
                        progress(len(headers), count)
                    headers += more
            except Exception:
                pool.shutdown(cancel_futures=True)
                raise
        return headers

    def _read(self, index: int) -> Header:
        """The header of a file; errors as `opened`."""
        with opened(self._files[index]) as image:
            pixels = self._pixels_for(image.header)
            if pixels is not None:
                levels = image.levels()
                channels, bits = pixels.shape[-1], 8 * pixels.dtype.itemsize
                pixels[index] = convert(levels, channels, bits)
            elif self._verify:
                image.verify()
            return image.header

    def _pixels_for(self, header: Header) -> Levels | None:
        """Where an image's pixels are to go, if it is like those before it."""
        channels, bits = self._channels or header.channels, self._bits or header.bits
        with self._lock:
            if self._first is None:
                self._first = header
                if max(header.size) <= STACKED_LIMIT:
                    dtype = np.uint8 if bits == 8 else np.uint16
                    self.pixels = np.empty((len(self._files), *header.size, channels), dtype)
            if self.pixels is not None:
                alike = (channels, bits) == (self.pixels.shape[-1], 8 * self.pixels.dtype.itemsize)
                self.mixed |= not alike
                if not alike or header.size != self._first.size:
                    self.pixels = None
            return self.pixels


def _channels(headers: dict[int, Header], files: Sequence[ImageFile], wanted: int | None) -> int:
    """Channels of all images.

    Raises:
        ValueError: They have different numbers, or not the one that is wanted.
    """
    some = {header.channels: i for i, header in headers.items()}  # of each number one image
    if wanted is None and len(some) == 1:
        return next(iter(some))
    if some.keys() <= {1, 3} and wanted in (None, 1, 3):
        return wanted or 3
    if wanted is not None:
        other = next((count for count in some if count != wanted), wanted)
        if other == wanted:
            return wanted
        raise ValueError(
            f"image {files[some[other]]} has {other} channels, which cannot become {wanted}"
        )
    (one, first), (other, second) = list(some.items())[:2]
    raise ValueError(
        f"images must have one number of channels: {files[first]} has {one} and {files[second]}"
        f" {other}"
    )
