"""Views: what may be done to an image, which views are drawn, and how they are rendered.

`recipe` says what, `sampler` draws parameters, `policies` arrange them into views, `torchvision`
renders and `loader` feeds training. No image comes from here: see `mast_ext.data`.
"""

from mast_ext.augment.loader import (
    BACKENDS,
    ImageSource,
    ViewBatch,
    ViewLoader,
    build_loader,
    evaluation_images,
)
from mast_ext.augment.parameters import COLUMNS, GROUPS, AugmentationParameters
from mast_ext.augment.policies import (
    POLICIES,
    ComposedPolicy,
    FactorizedPolicy,
    SampledPolicy,
    ViewPlan,
    ViewPolicy,
    make_policy,
)
from mast_ext.augment.recipe import AUGMENTATIONS, AugmentationRecipe

__all__ = [
    "AUGMENTATIONS",
    "BACKENDS",
    "COLUMNS",
    "GROUPS",
    "POLICIES",
    "AugmentationParameters",
    "AugmentationRecipe",
    "ComposedPolicy",
    "FactorizedPolicy",
    "ImageSource",
    "SampledPolicy",
    "ViewBatch",
    "ViewLoader",
    "ViewPlan",
    "ViewPolicy",
    "build_loader",
    "evaluation_images",
    "make_policy",
]
