"""Pretraining methods: where views, heads and losses meet. A new method is one entry here."""

from mast_ext.methods.barlow_twins import BarlowTwins, BarlowTwinsOptions
from mast_ext.methods.byol import BYOL, BYOLOptions
from mast_ext.methods.dino import DINO, DINOOptions
from mast_ext.methods.encoding import Encoded, encode
from mast_ext.methods.equimod import EquiMod, EquiModOptions
from mast_ext.methods.hard_crops import HardCrops, hard_selection
from mast_ext.methods.hard_views import (
    HardSelection,
    HardViewOptions,
    HardViewPolicy,
    HardViews,
)
from mast_ext.methods.ibot import IBOT, IBOTOptions
from mast_ext.methods.mast import MAST, MASTOptions
from mast_ext.methods.method import HiddenPatches, Method, Subspaces, TeacherSpec
from mast_ext.methods.moco import MoCo, MoCoOptions
from mast_ext.methods.simclr import SimCLR, SimCLROptions
from mast_ext.methods.simsiam import SimSiam, SimSiamOptions
from mast_ext.methods.vicreg import VICReg, VICRegOptions

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (MAST, VICReg, BarlowTwins, SimCLR, MoCo, BYOL, SimSiam, DINO, IBOT)
}
"""Every method by its name. `EquiMod` and `HardViews` go around any of them."""

__all__ = [
    "BYOL",
    "DINO",
    "IBOT",
    "METHODS",
    "MAST",
    "BYOLOptions",
    "BarlowTwins",
    "BarlowTwinsOptions",
    "DINOOptions",
    "Encoded",
    "EquiMod",
    "EquiModOptions",
    "HardCrops",
    "HardSelection",
    "HardViewOptions",
    "HardViewPolicy",
    "HardViews",
    "HiddenPatches",
    "IBOTOptions",
    "MASTOptions",
    "Method",
    "MoCo",
    "MoCoOptions",
    "SimCLR",
    "SimCLROptions",
    "SimSiam",
    "SimSiamOptions",
    "Subspaces",
    "TeacherSpec",
    "VICReg",
    "VICRegOptions",
    "encode",
    "hard_selection",
]
