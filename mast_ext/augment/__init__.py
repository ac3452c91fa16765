"""Views: what may be done to an image, which views are drawn, and how they are rendered.

`recipe` says what, `sampler` draws parameters, `policies` arrange them into views, `block_masks`
hides patches of them, `torchvision` or `dali` renders and `loader` feeds training. No image comes
from here: see `mast_ext.data`.
"""

from mast_ext.augment.block_masks import BlockMasks, HiddenPlaces
from mast_ext.augment.loader import (
    BACKENDS,
    ViewBatch,
    ViewLoader,
    build_loader,
    composed_views,
    evaluation_images,
)
from mast_ext.augment.parameters import COLUMNS, GROUPS, AugmentationParameters
from mast_ext.augment.policies import (
    POLICIES,
    ComposedPolicy,
    MultiCropPolicy,
    SharedPolicy,
    Sharing,
    ViewPlan,
    ViewPolicy,
    make_policy,
)
from mast_ext.augment.recipe import AUGMENTATIONS, AugmentationRecipe
from mast_ext.augment.rendering import ImageSource

__all__ = [
    "AUGMENTATIONS",
    "BACKENDS",
    "COLUMNS",
    "GROUPS",
    "HiddenPlaces",
    "POLICIES",
    "AugmentationParameters",
    "AugmentationRecipe",
    "BlockMasks",
    "ComposedPolicy",
    "ImageSource",
    "MultiCropPolicy",
    "SharedPolicy",
    "Sharing",
    "ViewBatch",
    "ViewLoader",
    "ViewPlan",
    "ViewPolicy",
    "build_loader",
    "composed_views",
    "evaluation_images",
    "make_policy",
]
