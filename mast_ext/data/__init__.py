"""Sources of images: where pixels and labels come from, without augmentation."""

from mast_ext.data.cifar import CIFARSource
from mast_ext.data.encoded import BadImageError, SplitError
from mast_ext.data.folder import FolderSource
from mast_ext.data.shapes import ShapesSource
from mast_ext.data.shards import ShardsSource
from mast_ext.data.source import SOURCES, Source, open_source

__all__ = [
    "SOURCES",
    "BadImageError",
    "CIFARSource",
    "FolderSource",
    "ShapesSource",
    "ShardsSource",
    "Source",
    "SplitError",
    "open_source",
]
