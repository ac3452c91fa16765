"""Networks: backbones through timm, and the heads that methods put on them."""

from mast_ext.models.backbones import (
    BackboneSpec,
    create_backbone,
    is_resnet,
    load_backbone,
    save_backbone,
    to_channels_last,
)
from mast_ext.models.heads import LogVarianceHead, Projector

__all__ = [
    "BackboneSpec",
    "LogVarianceHead",
    "Projector",
    "create_backbone",
    "is_resnet",
    "load_backbone",
    "save_backbone",
    "to_channels_last",
]
