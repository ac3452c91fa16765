"""Networks: backbones through timm, heads that methods put on them, and their teachers."""

from mast_ext.models.backbones import (
    BackboneSpec,
    create_backbone,
    evaluating,
    feature_width,
    forward_views,
    is_resnet,
    to_channels_last,
)
from mast_ext.models.ema import BatchNormMode, EMATeacher, cosine_momentum
from mast_ext.models.heads import PairUncertainty, Projector
from mast_ext.models.images import ImageFormat
from mast_ext.models.patches import PatchLayout, forward_patches, patch_layout
from mast_ext.models.prototypes import DINOHead, NormalizedLinear
from mast_ext.models.storage import (
    load_backbone,
    load_timm_folder,
    save_backbone,
    stored_image_format,
)
from mast_ext.models.sync_batch_norm import sync_batch_norm
from mast_ext.models.weights import load_weights

__all__ = [
    "BackboneSpec",
    "BatchNormMode",
    "DINOHead",
    "EMATeacher",
    "ImageFormat",
    "NormalizedLinear",
    "PairUncertainty",
    "PatchLayout",
    "Projector",
    "cosine_momentum",
    "create_backbone",
    "evaluating",
    "feature_width",
    "forward_patches",
    "forward_views",
    "is_resnet",
    "load_backbone",
    "load_timm_folder",
    "load_weights",
    "patch_layout",
    "save_backbone",
    "stored_image_format",
    "sync_batch_norm",
    "to_channels_last",
]
