"""The recipe accepts what makes sense and refuses everything else by name."""

import dataclasses
import math

import pytest

from mast_ext.augment import AUGMENTATIONS, AugmentationRecipe

BAD_VALUES = [
    ("size", 0, "size must be at least 1, got 0"),
    ("size", 32.0, "size must be an integer"),
    ("size", True, "size must be an integer"),
    ("views", 0, "views must be at least 1"),
    ("crop_scale", (0.0, 1.0), "crop_scale must be .*0 < low <= high <= 1"),
    ("crop_scale", (0.2, 1.1), "crop_scale must be"),
    ("crop_scale", (0.8, 0.2), "crop_scale must be"),
    ("crop_scale", (0.2,), "crop_scale must be 2 numbers"),
    ("crop_scale", "ab", "crop_scale must be a list or tuple of numbers"),
    ("crop_scale", 0.5, "crop_scale must be a list or tuple of numbers"),
    ("crop_ratio", (-1.0, 1.0), "crop_ratio must be"),
    ("crop_ratio", (1.0, math.inf), "crop_ratio must be a finite number"),
    ("flip", 1.5, "flip must be a probability"),
    ("flip", -0.1, "flip must be a probability"),
    ("flip", True, "flip must be a number"),
    ("jitter", math.nan, "jitter must be a number"),
    ("grayscale", "0.2", "grayscale must be a number"),
    ("blur", 2, "blur must be a probability"),
    ("solarize", -1, "solarize must be a probability"),
    ("brightness", -0.4, "brightness must be at least 0"),
    ("contrast", math.inf, "contrast must be at least 0 and finite"),
    ("saturation", None, "saturation must be a number"),
    ("hue", 0.6, "hue must be a strength in \\[0, 0.5\\]"),
    ("blur_sigma", (0.0, 2.0), "blur_sigma must be"),
    ("blur_sigma", (0.1, 1001.0), "with 0 < low <= high <= 1000, got"),
    ("solarize_threshold", 256, "solarize_threshold must be from 0 to 255"),
    ("solarize_threshold", 0.5, "solarize_threshold must be an integer"),
    ("mean", (0.5, 0.5), "a number for each channel, got 2 and 3 numbers"),
    ("mean", (), "mean must be a number for each channel"),
    ("mean", (0.5, math.nan, 0.5), "mean must be a number"),
    ("std", (0.5, 0.5, 0.0), "std must be positive numbers"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_bad_value_is_refused(name, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        AugmentationRecipe(**{name: value})


AUGMENTATION_CASES = [
    ({}, ("crop", "flip", "color", "grayscale")),
    ({"blur": 0.5, "solarize": 0.1}, AUGMENTATIONS),
    ({"crop_scale": (1.0, 1.0), "flip": 0, "grayscale": 0}, ("color",)),
    ({"jitter": 0.0}, ("crop", "flip", "grayscale")),
    ({"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}, ("crop", "flip", "grayscale")),
    ({"brightness": 0, "contrast": 0, "saturation": 0}, ("crop", "flip", "color", "grayscale")),
]


@pytest.mark.parametrize(("changes", "expected"), AUGMENTATION_CASES)
def test_augmentations_lists_what_is_on(changes, expected):
    assert AugmentationRecipe(**changes).augmentations == expected


def test_lists_become_tuples_so_that_recipes_from_yaml_are_equal_and_hashable():
    listed = AugmentationRecipe(crop_scale=[0.2, 1], mean=[0.485, 0.456, 0.406])
    assert listed == AugmentationRecipe()
    assert hash(listed) == hash(AugmentationRecipe())


def test_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AugmentationRecipe().size = 64


def test_factor_range_is_torchvisions():
    recipe = AugmentationRecipe(brightness=1.5, contrast=0.4, hue=0.1)
    assert recipe.factor_range("brightness") == (0.0, 2.5)
    assert recipe.factor_range("contrast") == (0.6, 1.4)
    assert recipe.factor_range("hue") == (-0.1, 0.1)


@pytest.mark.parametrize("names", [(), ("crop", "flip"), ("color",), AUGMENTATIONS])
def test_only_some_augmentations(names):
    recipe = AugmentationRecipe(blur=0.5, solarize=0.1, hue=0.3, size=48, mean=(0, 0, 0.1))
    found = recipe.only(*names)
    assert found.augmentations == names
    assert (found.size, found.mean) == (48, (0, 0, 0.1))
    if "color" in names:
        assert found.hue == 0.3
    assert recipe.only(*AUGMENTATIONS) == recipe


def test_only_what_there_is():
    with pytest.raises(ValueError, match="augmentations are crop, flip, .*, got 'hue'"):
        AugmentationRecipe().only("crop", "hue")
