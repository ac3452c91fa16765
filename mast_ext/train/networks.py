"""The networks of a run: a backbone, a method on it, and who chooses its views."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn

from mast_ext.augment import AugmentationRecipe, ViewLoader, ViewPolicy
from mast_ext.checks import OptionError
from mast_ext.methods import METHODS, EquiMod, HardSelection, Method, hard_selection
from mast_ext.models import (
    BackboneSpec,
    ImageFormat,
    create_backbone,
    evaluating,
    feature_width,
    is_resnet,
)
from mast_ext.train.config import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is trained.

    Attributes:
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``.
        spec: What the backbone is.
        method: Heads and loss on its features.
        hard_views: Chooses the views to train on; None takes those that there are.
    """

    backbone: nn.Module
    spec: BackboneSpec
    method: Method
    hard_views: HardSelection | None = None

    @property
    def name(self) -> str:
        """The method's name, with what goes around it."""
        return self.method.name + ("+hard" if self.hard_views is not None else "")

    def policy(self, recipe: AugmentationRecipe) -> ViewPolicy:
        """Which views of an image a batch has."""
        return self.method.policy(recipe) if self.hard_views is None else self.hard_views.policy

    def forwards(self, loader: ViewLoader, steps: int) -> float:
        """Forwards of every image of a batch over a run, of student and teacher alike."""
        gram = self.method.gram_teacher()
        anchors = 0 if gram is None else gram.forwards(steps)
        if self.hard_views is not None:
            return anchors + self.hard_views.forwards(steps, len(loader))
        return anchors + steps * self.method.forwards(loader.policy.num_views())


def build_networks(config: PretrainConfig) -> Networks:
    """Backbone and method with initial weights that follow from the seed and `ModelConfig.weights`.

    Every method starts from the same backbone, and from the same heads with EquiMod as without.

    Raises:
        OptionError: The backbone or an option of the method does not exist or does not fit.
        FileNotFoundError: There is no file of weights to start from.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    spec = backbone_spec(config)
    backbone, num_features = create_backbone(
        spec.name, spec.small_images, weights=config.model.weights, **spec.timm_args
    )
    recipe = config.augment
    require_size(backbone, spec, "augment.size", recipe.size)
    options = config.options(config.method)
    with _named(config.method, options):
        method = METHODS[config.method].create(backbone, num_features, recipe, options)
        local = method.policy(recipe).local_recipe
    if method.local_views and local is not None:
        require_size(backbone, spec, f"{config.method}.local_size", local.size)
    if config.equimod.weight > 0:
        with _named("equimod", config.equimod):
            method = EquiMod(method, num_features, recipe, config.equimod)
    hard_views = None
    if config.hard_views.views:
        with _named("hard_views", config.hard_views):
            hard_views = hard_selection(method, recipe, config.hard_views)
        for size in hard_views.sizes:
            require_size(backbone, spec, "hard_views.size", size)
    return Networks(backbone, spec, method, hard_views)


@contextmanager
def _named(group: str, options: Any) -> Iterator[None]:
    """Puts the group before the name of an option with which a loss or head begins its error."""
    try:
        yield
    except OptionError as error:
        name = str(error).partition(" ")[0]
        if name not in {field.name for field in dataclasses.fields(options)}:
            raise
        raise OptionError(f"{group}.{error}") from error


def require_size(backbone: nn.Module, spec: BackboneSpec, option: str, size: int) -> None:
    """Raises a ValueError unless the backbone makes vectors of images of this side.

    Transformers may not take them; arguments of timm may ask for other outputs.
    """
    try:
        with torch.no_grad(), evaluating(backbone):
            features = backbone(torch.zeros(1, spec.channels, size, size))
    except (AssertionError, RuntimeError) as error:
        raise OptionError(
            f"{option}: {spec.name} does not take images of {size} pixels ({error}); vision"
            " transformers do with dynamic_img_size: true in model.timm_args"
        ) from error
    width = feature_width(backbone)
    if features.shape != (1, width):
        raise OptionError(
            f"model.timm_args: {spec.name} must give a vector of {width} features for each image,"
            f" got {list(features.shape)} for one image"
        )


def image_format(recipe: AugmentationRecipe) -> ImageFormat:
    """The images that a backbone takes which is trained on these views."""
    return ImageFormat(recipe.size, tuple(recipe.mean), tuple(recipe.std))


def backbone_spec(config: PretrainConfig) -> BackboneSpec:
    """The backbone of the settings, with the stem and the images' channels decided.

    Raises:
        ValueError: ``in_chans`` is given, and images have another number of channels.
    """
    model, channels = config.model, config.augment.channels
    arguments = dict(model.timm_args)
    if arguments.setdefault("in_chans", channels) != channels:
        raise OptionError(
            f"model.timm_args: in_chans is {arguments['in_chans']}, and augment.mean has"
            f" {channels} number{'s' * (channels > 1)}, one for each channel of the images:"
            " leave in_chans out"
        )
    if "in_chans" not in model.timm_args and channels == 3:
        del arguments["in_chans"]  # timm's default
    small = model.small_images
    if small is None:
        small = is_resnet(model.name) and config.augment.size <= 64
    return BackboneSpec(model.name, small, arguments)
