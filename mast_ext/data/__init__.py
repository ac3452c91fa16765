"""Sources of images: where pixels and labels come from, without augmentation."""

from mast_ext.data.arrays import NumpySource
from mast_ext.data.cifar import CIFARSource
from mast_ext.data.decoding import BadImageError
from mast_ext.data.folder import FolderSource
from mast_ext.data.huggingface import HuggingFaceSource
from mast_ext.data.shapes import ShapesSource
from mast_ext.data.shards import ShardsSource
from mast_ext.data.source import SOURCES, Source, open_source
from mast_ext.data.splits import SplitError

__all__ = [
    "SOURCES",
    "BadImageError",
    "CIFARSource",
    "FolderSource",
    "HuggingFaceSource",
    "NumpySource",
    "ShapesSource",
    "ShardsSource",
    "Source",
    "SplitError",
    "open_source",
]
