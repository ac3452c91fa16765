"""Objectives as modules: MAST's own, and drop-ins for lightly's classes.

Every objective is a small algebra on the operators of `mast_ext.functional`, and also answers
``pair_losses(views) -> [V, V, B]``: what it says about every pair of views of every image.
"""

from mast_ext.losses.barlow_twins import BarlowTwinsLoss
from mast_ext.losses.masks import SubspaceMasks
from mast_ext.losses.mast import MASTLoss, MASTTerms
from mast_ext.losses.negative_cosine_similarity import NegativeCosineSimilarity
from mast_ext.losses.vicreg import VICRegLoss

__all__ = [
    "BarlowTwinsLoss",
    "MASTLoss",
    "MASTTerms",
    "NegativeCosineSimilarity",
    "SubspaceMasks",
    "VICRegLoss",
]
