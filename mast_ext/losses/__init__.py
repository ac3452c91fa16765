"""Objectives as modules: MAST's own, and drop-ins for lightly's classes.

Every objective is a small algebra on the operators of `mast_ext.functional`. Those on pairs of
views also answer ``pair_losses(views) -> [V, V, B]``, the loss of every pair of views of every
image, and those on crops of two sizes (DINO, SwaV) ``crop_losses``: hard views are chosen by them.

An option or an input of the wrong type or dtype is a TypeError; one of the wrong shape, on another
device or out of range a ValueError; both name it. (Where lightly raises another type, so do its
drop-ins, as their docstrings say.)

Autocast does not make a loss less accurate: the operators sum in float32, and the matrix products
that torch computes around them are excluded from autocast. (On a GPU, inputs in bfloat16 are
multiplied as bfloat16.)
"""

from mast_ext.losses.barlow_twins import BarlowTwinsLoss
from mast_ext.losses.capi import CAPILoss
from mast_ext.losses.co2 import CO2Regularizer
from mast_ext.losses.decoupled import DCLLoss, DCLWLoss
from mast_ext.losses.dense_structure import DSERegularizer
from mast_ext.losses.det_con import DetConBLoss, DetConSLoss
from mast_ext.losses.dino import DINOLoss
from mast_ext.losses.direct_clr import DirectCLRLoss
from mast_ext.losses.emp_ssl import EMPSSLLoss
from mast_ext.losses.equivariance import EquivarianceLoss
from mast_ext.losses.frossl import FroSSLLoss
from mast_ext.losses.gram_anchoring import GramAnchoringLoss
from mast_ext.losses.hard_views import HardViewSelector
from mast_ext.losses.hypersphere import HypersphereLoss
from mast_ext.losses.ibot import IBOTPatchLoss
from mast_ext.losses.ibot_plus_plus import IBOTPlusPlusPatchLoss
from mast_ext.losses.info_nce import InfoNCELoss
from mast_ext.losses.koleo import KoLeoLoss
from mast_ext.losses.lejepa import LeJEPALoss, SIGReg
from mast_ext.losses.lewm import LeWMLoss
from mast_ext.losses.macl import MACLLoss
from mast_ext.losses.masks import AugmentationMasks
from mast_ext.losses.mast import MASTLoss, MASTTerms
from mast_ext.losses.mmcr import MMCRLoss
from mast_ext.losses.msn import MSNLoss, PMSNCustomLoss, PMSNLoss
from mast_ext.losses.negative_cosine_similarity import NegativeCosineSimilarity
from mast_ext.losses.nt_xent import NTXentLoss
from mast_ext.losses.patch_kernel_alignment import PatchKernelAlignmentLoss
from mast_ext.losses.sig_lip import SigLIPLoss
from mast_ext.losses.swav import SwaVLoss
from mast_ext.losses.tico import TiCoLoss
from mast_ext.losses.vicreg import VICRegLoss
from mast_ext.losses.vicregl import VICRegLLoss
from mast_ext.losses.visreg import VISRegLoss, VISRegLossComponents
from mast_ext.losses.whitening import Whitening2d, WMSELoss

__all__ = [
    "AugmentationMasks",
    "BarlowTwinsLoss",
    "CAPILoss",
    "CO2Regularizer",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "DSERegularizer",
    "DetConBLoss",
    "DetConSLoss",
    "DirectCLRLoss",
    "EMPSSLLoss",
    "EquivarianceLoss",
    "FroSSLLoss",
    "GramAnchoringLoss",
    "HardViewSelector",
    "HypersphereLoss",
    "IBOTPatchLoss",
    "IBOTPlusPlusPatchLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "LeJEPALoss",
    "LeWMLoss",
    "MACLLoss",
    "MASTLoss",
    "MASTTerms",
    "MMCRLoss",
    "MSNLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "PMSNCustomLoss",
    "PMSNLoss",
    "PatchKernelAlignmentLoss",
    "SIGReg",
    "SigLIPLoss",
    "SwaVLoss",
    "TiCoLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "VISRegLoss",
    "VISRegLossComponents",
    "WMSELoss",
    "Whitening2d",
]
