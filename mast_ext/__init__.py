"""Fused C++/CUDA losses for self-supervised learning, and a pretraining program built on them."""

from mast_ext import functional, losses

__version__ = "0.1.0"
__all__ = ["functional", "losses"]
