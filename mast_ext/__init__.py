"""Fused C++/CUDA losses for self-supervised learning, and a pretraining program built on them."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mast_ext import functional, losses

__version__ = "0.1.0"
__all__ = ["functional", "losses"]


def __getattr__(name: str) -> ModuleType:
    """Loads a part when first asked for: `mast-ext doctor` works without native libraries."""
    if name in __all__:
        return importlib.import_module(f"mast_ext.{name}")
    raise AttributeError(f"module 'mast_ext' has no attribute {name!r}")
