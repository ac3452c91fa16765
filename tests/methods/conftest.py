"""Tiny methods with their networks and batches, for the tests beside this file."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mast_ext.augment import AugmentationRecipe, ViewBatch, build_loader
from mast_ext.methods import METHODS, EquiMod, EquiModOptions
from mast_ext.models import EMATeacher, create_backbone

RECIPE = AugmentationRecipe(size=8, crop_scale=(0.4, 1.0))
LARGE = replace(RECIPE, size=32)
IMAGES, LOCALS, PROTOTYPES = 12, 3, 10
SMALL = {
    "projector": (12, 8),
    "predictor": 5,
    "queue": 30,
    "prototypes": PROTOTYPES,
    "head": (12,),
    "bottleneck": 6,
    "momentum": 0.9,
    "teacher_temperature": 0.04,
    "head_batch_norm": False,
    "local_views": LOCALS,
    "local_size": 4,
    "patch_temperature": 0.04,
    "mask_ratio": (0.2, 0.5),
}
TRANSFORMER = {"img_size": 8, "patch_size": 2, "depth": 1, "embed_dim": 8, "num_heads": 2}


def small_options(name):
    """Options of any method with which it is small, as far as it has them."""
    kind = METHODS[name].Options
    known = {field.name for field in fields(kind)}
    return kind(**{option: value for option, value in SMALL.items() if option in known})


OPTIONS = {name: small_options(name) for name in METHODS}


class Images:
    """A source of random images."""

    def __init__(self, count=IMAGES):
        generator = torch.Generator().manual_seed(0)
        self.stacked = torch.randint(
            0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator
        )
        self.sizes = np.full((count, 2), 16, np.int32)
        self.labels = {}

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        return self.stacked[index]


def build(name, options=None, *, equimod=False, resnet=False, recipe=RECIPE):
    """A method, its backbone, and a teacher that is not the student; None where none is wanted.

    The ResNet wants views of `LARGE`, of which it makes patches of half a side.
    """
    torch.manual_seed(0)
    options = options or OPTIONS[name]
    if resnet:
        recipe, options = LARGE, replace(options, local_size=16)
        args = {"channels": [8, 8, 8, 8], "stem_width": 4, "zero_init_last": False}
        backbone, features = create_backbone("resnet_small", True, **args)
    else:
        backbone, features = create_backbone("vit_small_images", **TRANSFORMER)
    method = METHODS[name].create(backbone, features, recipe, options)
    if equimod:
        method = EquiMod(method, features, recipe, EquiModOptions(1.0, (12, 7), 5))
    spec = method.teacher()
    if spec is None:
        return method, backbone, None
    teacher = EMATeacher(nn.Sequential(backbone, spec.head))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method, backbone, teacher


def batch_of(policy, count=IMAGES) -> ViewBatch:
    return next(iter(build_loader(Images(count), policy, batch_size=count)))


@pytest.fixture
def crops():
    """Methods, those that train on crops of two sizes among them, and batches for them."""
    return SimpleNamespace(
        build=build, batch_of=batch_of, options=OPTIONS, recipe=RECIPE, large=LARGE
    )
