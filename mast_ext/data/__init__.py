"""Sources of images: where pixels and labels come from, without augmentation."""

from mast_ext.data.folder import BadImageError, FolderSource
from mast_ext.data.shapes import ShapesSource
from mast_ext.data.source import SOURCES, Source, open_source

__all__ = ["SOURCES", "BadImageError", "FolderSource", "ShapesSource", "Source", "open_source"]
