"""Pretraining methods: where views, heads and losses meet.

Every method is a file and a line here: `mast_ext.methods.method` says how to write one.
"""

from mast_ext.methods.barlow_twins import BarlowTwins as BarlowTwins
from mast_ext.methods.byol import BYOL as BYOL
from mast_ext.methods.dino import DINO as DINO
from mast_ext.methods.encoding import encode as encode
from mast_ext.methods.equimod import EquiMod as EquiMod
from mast_ext.methods.equimod import EquiModOptions as EquiModOptions
from mast_ext.methods.hard_crops import HardCrops as HardCrops
from mast_ext.methods.hard_crops import hard_selection as hard_selection
from mast_ext.methods.hard_views import HardSelection as HardSelection
from mast_ext.methods.hard_views import HardViewOptions as HardViewOptions
from mast_ext.methods.hard_views import HardViews as HardViews
from mast_ext.methods.ibot import IBOT as IBOT
from mast_ext.methods.lejepa import LeJEPA as LeJEPA
from mast_ext.methods.mast import MAST as MAST
from mast_ext.methods.mast import SharedOptions as SharedOptions
from mast_ext.methods.method import METHODS as METHODS
from mast_ext.methods.method import Encoded as Encoded
from mast_ext.methods.method import GramTeacherSpec as GramTeacherSpec
from mast_ext.methods.method import HiddenPatches as HiddenPatches
from mast_ext.methods.method import Method as Method
from mast_ext.methods.method import MethodOptions as MethodOptions
from mast_ext.methods.method import Subspaces as Subspaces
from mast_ext.methods.method import TeacherMethod as TeacherMethod
from mast_ext.methods.method import TeacherSpec as TeacherSpec
from mast_ext.methods.moco import MoCo as MoCo
from mast_ext.methods.simclr import SimCLR as SimCLR
from mast_ext.methods.simsiam import SimSiam as SimSiam
from mast_ext.methods.vicreg import VICReg as VICReg
