"""Pretraining methods: where views, heads and losses meet. A new method is one entry here."""

from mast_ext.methods.mast import MAST, MASTOptions
from mast_ext.methods.method import Method, Subspaces
from mast_ext.methods.vicreg import VICReg, VICRegOptions

METHODS: dict[str, type[Method]] = {"mast": MAST, "vicreg": VICReg}

__all__ = ["METHODS", "MAST", "MASTOptions", "Method", "Subspaces", "VICReg", "VICRegOptions"]
