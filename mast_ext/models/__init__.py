"""Networks: backbones through timm, heads that methods put on them, and their teachers."""

from mast_ext.models.backbones import (
    BackboneSpec,
    create_backbone,
    forward_views,
    is_resnet,
    load_backbone,
    save_backbone,
    to_channels_last,
)
from mast_ext.models.ema import BatchNormMode, EMATeacher, cosine_momentum
from mast_ext.models.heads import LogVarianceHead, Projector

__all__ = [
    "BackboneSpec",
    "BatchNormMode",
    "EMATeacher",
    "LogVarianceHead",
    "Projector",
    "cosine_momentum",
    "create_backbone",
    "forward_views",
    "is_resnet",
    "load_backbone",
    "save_backbone",
    "to_channels_last",
]
