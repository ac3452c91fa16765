"""Pretraining methods: where views, heads and losses meet. A new method is one entry here."""

from mast_ext.methods.equimod import EquiMod, EquiModOptions
from mast_ext.methods.mast import MAST, MASTOptions
from mast_ext.methods.method import Method, Subspaces, TeacherSpec
from mast_ext.methods.moco import MoCo, MoCoOptions
from mast_ext.methods.simclr import SimCLR, SimCLROptions
from mast_ext.methods.vicreg import VICReg, VICRegOptions

METHODS: dict[str, type[Method]] = {method.name: method for method in (MAST, VICReg, SimCLR, MoCo)}
"""Every method by its name. `EquiMod` goes around any of them."""

__all__ = [
    "METHODS",
    "MAST",
    "EquiMod",
    "EquiModOptions",
    "MASTOptions",
    "Method",
    "MoCo",
    "MoCoOptions",
    "SimCLR",
    "SimCLROptions",
    "Subspaces",
    "TeacherSpec",
    "VICReg",
    "VICRegOptions",
]
