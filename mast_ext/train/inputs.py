"""What the images that there are ask of the settings: channels, their mean, no colors."""

from dataclasses import replace

import numpy as np
import torch

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import Source
from mast_ext.train.config import DEFAULT_AUGMENTATION, DataConfig, PretrainConfig

_MUCH_REDUCED = 4  # times that images may be larger than views without a remark
_MEASURED = 64  # images whose mean and standard deviation an error suggests


def fitted(config: PretrainConfig, source: Source) -> tuple[PretrainConfig, str]:
    """The settings for images as they are, and a sentence on what of them is left out, if any.

    See `fitted_recipe`.
    """
    recipe, note = fitted_recipe(config.augment, source)
    return replace(config, augment=recipe), note


def fitted_recipe(recipe: AugmentationRecipe, source: Source) -> tuple[AugmentationRecipe, str]:
    """The recipe for images as they are, and a sentence on what of it is left out, if any.

    Images that are not RGB have no colors to change: what would change them is switched off.

    Raises:
        ValueError: ``augment.mean`` does not have a number for each channel of the images.
    """
    require_channels(recipe, source)
    changes = recipe.color_changes
    if source.channels == 3 or not changes:
        return recipe, ""
    names = [f"augment.{name}" for name in changes]
    note = (
        f"not applied, since images of {counted(source.channels, 'channel')} have no colors:"
        f" {', '.join(names)}"
    )
    return recipe.without_color(), note


def as_trained(data: DataConfig, recipe: AugmentationRecipe) -> DataConfig:
    """The images for networks that were trained with the recipe.

    Gray ones and RGB ones become what the networks take, whatever they are by themselves.
    """
    return replace(data, channels=data.channels or recipe.channels)


def require_channels(recipe: AugmentationRecipe, source: Source) -> None:
    """Raises a ValueError unless the recipe has a mean for each channel of the images."""
    if recipe.channels == source.channels:
        return
    mean, std = _levels(source)
    hint = ""
    if {recipe.channels, source.channels} == {1, 3}:
        kind = "RGB" if recipe.channels == 3 else "gray"
        hint = f" (or --data.channels={recipe.channels}, to make them {kind})"
    raise ValueError(
        f"augment.mean and augment.std have {counted(recipe.channels, 'number')}, and the images"
        f" have {counted(source.channels, 'channel')}: set --augment.mean={mean}"
        f" --augment.std={std}, as measured{hint}"
    )


def much_reduced(config: PretrainConfig, source: Source) -> list[str]:
    """A sentence, if views are far smaller than the images, as by default those of photographs."""
    side, size = int(np.median(source.sizes.min(axis=1))), config.augment.size
    chosen = size != DEFAULT_AUGMENTATION[config.data.name].size  # by somebody
    if chosen or side <= _MUCH_REDUCED * size:
        return []
    return [
        f"images of {side} pixels (the median of their shorter sides) are trained on at {size}:"
        " --augment.size says at how many"
    ]


def _levels(source: Source) -> tuple[str, ...]:
    """Mean and standard deviation of pixels in [0, 1] of some images, as options take them."""
    chosen = np.linspace(0, len(source) - 1, min(_MEASURED, len(source))).round().astype(int)
    sums = torch.zeros(2, source.channels, dtype=torch.float64)
    for index in chosen:
        pixels = source.image(int(index)).double().flatten(1) / (2**source.bits - 1)
        sums += torch.stack((pixels, pixels.square())).mean(-1)
    mean, square = sums / len(chosen)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1e-3)
    return tuple("[" + ",".join(f"{x:.4f}" for x in each.tolist()) + "]" for each in (mean, std))


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
