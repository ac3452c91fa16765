"""Images that stay in memory once they are decoded."""

from weakref import WeakValueDictionary

import numpy as np
from torch import Tensor

from mast_ext.augment.rendering import ImageSource, image_of
from mast_ext.checks import as_number

KEPT_GB = 1.0
"""Gigabytes of decoded images that are kept by default: about 1,900 photographs of 500 x 375."""


class KeptImages:
    """A source whose images are decoded once, if all together take at most so many bytes.

    Of a larger source none is kept: memory would fill with the images used last, which come up
    again last in the next epoch. Threads may share it.

    Args:
        source: Where the images come from.
        most: Bytes.
    """

    stacked: Tensor | None = None

    def __init__(self, source: ImageSource, most: int) -> None:
        self.source, self.most = source, most
        self.sizes, self.labels = source.sizes, source.labels
        self._pixels = int(np.prod(source.sizes.astype(np.int64), axis=1).sum())
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Tensor:
        """Image ``index``, not to be written to."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        image = image_of(self.source, index)
        of_a_pixel = image.nbytes / image[0].numel()
        if self._pixels * of_a_pixel <= self.most:
            self._kept[index] = image
        return image


# By the source's id and the budget. An entry goes when nobody uses it. Until then it refers to its
# source, so that no other object can get that id.
_SHARED: WeakValueDictionary[tuple[int, int], KeptImages] = WeakValueDictionary()


def keep_decoded(source: ImageSource, gigabytes: float) -> ImageSource:
    """The source, with images kept that are not in memory already.

    All who ask for the same source and budget share what is kept, as a run and its baseline do.

    Args:
        source: Where the images come from.
        gigabytes: What they may take; 0 keeps none.

    Raises:
        ValueError: ``gigabytes`` is negative or NaN.
        TypeError: It is not a number.
    """
    if not as_number("keep_gb", gigabytes) >= 0:
        raise ValueError(f"keep_gb must be at least 0, got {gigabytes}")
    if source.stacked is not None or gigabytes == 0:
        return source
    most = int(min(gigabytes, 1e9) * 1e9)
    kept = _SHARED.get((id(source), most))
    if kept is None:
        kept = _SHARED[id(source), most] = KeptImages(source, most)
    return kept
