"""The renderer gives torchvision's pixels, and the same bits in every circumstance."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as functional

from mast_ext.augment import AugmentationRecipe, make_policy
from mast_ext.augment.parameters import COLUMN
from mast_ext.augment.torchvision import render
from mast_ext.data import ShardsSource

LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # leaves levels in [0, 255]
EVERYTHING = AugmentationRecipe(blur=0.5, solarize=0.3, **LEVELS)


def expected(image, parameters, recipe):
    """The view that torchvision's functional API renders from a row, levels [3, S, S] float32."""
    p = dict(zip(COLUMN, parameters.tolist(), strict=True))
    height, width = image.shape[1:]
    box = [
        round(p["y"] * height),
        round(p["x"] * width),
        round(p["h"] * height),
        round(p["w"] * width),
    ]
    view = functional.resized_crop(image, *box, [recipe.size, recipe.size], antialias=True)
    if p["flip"]:
        view = functional.hflip(view)
    if p["jitter"]:
        view = functional.adjust_brightness(view, p["brightness"])
        view = functional.adjust_contrast(view, p["contrast"])
        view = functional.adjust_saturation(view, p["saturation"])
        view = functional.adjust_hue(view, p["hue"])
    if p["grayscale"]:
        view = functional.rgb_to_grayscale(view, 3)
    if p["blur"]:
        view = functional.gaussian_blur(view, 2 * math.ceil(3 * p["sigma"]) + 1, p["sigma"])
    if p["solarize"]:
        view = functional.solarize(view, recipe.solarize_threshold)
    return view.float()


def differences(images, rows, recipe):
    """|ours - torchvision's| of one view per image, in levels."""
    ours = render(images, rows[None], recipe)[0].round()  # normalization leaves float noise
    theirs = torch.stack([expected(*pair, recipe) for pair in zip(images, rows, strict=True)])
    return (ours - theirs).abs()


GEOMETRY = [  # image height and width, size of the view
    *((32, 32, 32), (32, 32, 20), (64, 64, 32), (48, 31, 32), (16, 40, 24), (7, 5, 8), (32, 32, 1)),
    *((65, 65, 32), (120, 90, 32), (20, 100, 40)),  # one at a time
]


@pytest.mark.parametrize("shape", GEOMETRY, ids=str)
def test_crop_resize_and_flip(smooth_images, shape):
    height, width, size = shape
    recipe = AugmentationRecipe(size=size, jitter=0, grayscale=0, **LEVELS)
    images = smooth_images(40, height, width)
    policy = make_policy("composed", recipe, views=1)
    rows = policy.plan(0, 0, np.arange(40), np.tile((height, width), (40, 1))).rows[0]
    difference = differences(images, rows, recipe)
    assert difference.mean() <= 0.25
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (90, 90)])
def test_whole_image_at_its_own_size_is_untouched(smooth_images, row, size):
    images = smooth_images(2, *size)
    recipe = AugmentationRecipe(size=size[0], **LEVELS)
    assert torch.equal(render(images, row().repeat(1, 2, 1), recipe)[0].round(), images.float())
    flipped = render(images, row(flip=1).repeat(1, 2, 1), recipe)[0]
    assert torch.equal(flipped.round(), images.flip(-1).float())


OPERATIONS = [  # changes to the neutral row, largest mean and single difference in levels
    ({"jitter": 1, "brightness": 0.6}, 0, 0),
    ({"jitter": 1, "brightness": 1.7}, 0, 0),
    ({"jitter": 1, "brightness": 0.0}, 0, 0),
    ({"jitter": 1, "contrast": 0.5}, 0.01, 1),
    ({"jitter": 1, "contrast": 1.8}, 0.01, 1),
    ({"jitter": 1, "contrast": 0.0}, 0.01, 1),
    ({"jitter": 1, "saturation": 0.2}, 0.01, 1),
    ({"jitter": 1, "saturation": 1.9}, 0.01, 1),
    ({"jitter": 1, "hue": 0.1}, 0.05, 1),
    ({"jitter": 1, "hue": -0.37}, 0.05, 1),
    ({"jitter": 1, "hue": 0.5}, 0.05, 1),
    ({"grayscale": 1}, 0, 0),
    ({"blur": 1, "sigma": 0.1}, 0, 0),
    ({"blur": 1, "sigma": 0.8}, 0.1, 1),
    ({"blur": 1, "sigma": 2.0}, 0.1, 1),
    ({"blur": 1, "sigma": 5.0}, 0.1, 1),
    ({"solarize": 1}, 0, 0),
]


@pytest.mark.parametrize(("changes", "mean", "largest"), OPERATIONS, ids=str)
def test_operation_agrees_with_torchvision(smooth_images, row, changes, mean, largest):
    images = torch.cat((smooth_images(8, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    images[6] = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1))
    images[7] = images[7, :1]  # gray: its hue is undefined
    difference = differences(images, row(**changes).repeat(9, 1), AugmentationRecipe(**LEVELS))
    assert difference.mean() <= mean
    assert difference.max() <= largest


@pytest.mark.parametrize("threshold", [0, 1, 128, 255])
def test_solarize_threshold(smooth_images, row, threshold):
    recipe = AugmentationRecipe(solarize_threshold=threshold, **LEVELS)
    difference = differences(smooth_images(4, 32, 32), row(solarize=1).repeat(4, 1), recipe)
    assert difference.max() == 0


def test_factors_without_their_gate_do_nothing(smooth_images, row):
    images = smooth_images(2, 32, 32)
    rows = row(brightness=0.5, hue=0.3, sigma=2.0).repeat(1, 2, 1)
    assert torch.equal(render(images, rows, EVERYTHING)[0].round(), images.float())


@pytest.mark.parametrize("shape", [(32, 32, 32), (100, 80, 48)], ids=str)
def test_whole_recipe_agrees_with_torchvision(smooth_images, shape):
    height, width, size = shape
    recipe = AugmentationRecipe(size=size, blur=0.5, solarize=0.3, **LEVELS)
    images = smooth_images(150, height, width)
    plan = make_policy("composed", recipe, views=1).plan(
        0, 0, np.arange(150), np.tile((height, width), (150, 1))
    )
    difference = differences(images, plan.rows[0], recipe)
    # A level at the solarization threshold may fall on either side: it is one in ten thousand.
    assert difference.mean() <= 0.25
    assert difference.flatten()[::7].quantile(0.99) <= 2


@pytest.mark.parametrize("size", [32, 224])
def test_whole_recipe_agrees_with_torchvision_on_photographs(photographs, size):
    source = ShardsSource(photographs, "train", max_images=16)
    images = [source.image(i) for i in range(16)]
    recipe = AugmentationRecipe(size=size, blur=0.5, solarize=0.1, **LEVELS)
    plan = make_policy("composed", recipe, views=1).plan(0, 0, np.arange(16), source.sizes)
    difference = differences(images, plan.rows[0], recipe)
    assert difference.mean() <= 0.5
    assert np.quantile(difference, 0.99) <= 3


def test_normalization_is_torchvisions(smooth_images, row):
    images = smooth_images(3, 32, 32)
    recipe = AugmentationRecipe()
    ours = render(images, row().repeat(1, 3, 1), recipe)[0]
    theirs = functional.normalize(images / 255, recipe.mean, recipe.std)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def planned(count, size, views=3):
    plan = make_policy("composed", EVERYTHING, views=views).plan(
        0, 0, np.arange(count), np.tile(size, (count, 1))
    )
    return plan.rows


@pytest.mark.parametrize("size", [(32, 32), (33, 61), (70, 70)], ids=str)
def test_view_does_not_depend_on_its_batch(smooth_images, size):
    images, rows = smooth_images(150, *size), planned(150, size)
    everyone = render(images, rows, EVERYTHING)
    for part in (slice(0, 1), slice(149, 150), slice(20, 101), slice(140, 3, -9)):
        members = torch.arange(150).numpy()[part].copy()
        alone = render(images[members], rows[:, members], EVERYTHING)
        assert torch.equal(alone, everyone[:, members])
    assert torch.equal(render(images, rows[1:2], EVERYTHING), everyone[1:2])


def test_list_of_images_of_any_size_equals_each_alone(smooth_images):
    sizes = [(32, 32), (70, 50), (32, 32), (20, 64), (70, 50), (65, 64)]
    images = [smooth_images(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    policy = make_policy("composed", EVERYTHING)
    rows = policy.plan(0, 0, np.arange(6), np.array(sizes)).rows
    together = render(images, rows, EVERYTHING)
    for i, image in enumerate(images):
        assert torch.equal(
            render(image[None], rows[:, i : i + 1], EVERYTHING)[:, 0], together[:, i]
        )


@pytest.mark.parametrize("size", [(32, 32), (80, 80)], ids=str)
def test_bits_do_not_depend_on_threads_autocast_or_matmul_precision(smooth_images, size):
    images, rows = smooth_images(150, *size), planned(150, size)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(1)
        first = render(images, rows, EVERYTHING)
        torch.set_num_threads(3)
        assert torch.equal(render(images, rows, EVERYTHING), first)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(render(images, rows, EVERYTHING), first)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def test_default_dtype_does_not_matter(smooth_images):
    images, rows = smooth_images(2, 32, 32), planned(2, (32, 32))
    expected = render(images, rows, EVERYTHING)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(render(images, rows, EVERYTHING), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_images_are_not_changed(smooth_images):
    images = smooth_images(4, 32, 32)
    before = images.clone()
    render(images, planned(4, (32, 32)), EVERYTHING)
    assert torch.equal(images, before)


@pytest.mark.parametrize("images", [[], torch.empty(0, 3, 32, 32, dtype=torch.uint8)])
def test_empty_batch(images):
    assert render(images, torch.empty(2, 0, 14), EVERYTHING).shape == (2, 0, 3, 32, 32)


IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
REFUSED = [  # images, changes to the neutral row
    (IMAGE.repeat(2, 1, 1, 1), {}, ValueError, r"\[V, 2, 14\] for 2 images, got \[1, 1, 14\]"),
    (IMAGE[:, :1], {}, ValueError, r"for each of the 3 numbers of mean and std, got shape \[1, 8"),
    ([IMAGE[0, 0]], {}, ValueError, r"\[C, H, W\]"),
    (IMAGE.float(), {}, TypeError, "must be uint8 or uint16, got torch.float32"),
    (IMAGE, {"h": 0}, ValueError, "non-empty"),
    (IMAGE, {"y": 0.5}, ValueError, "inside the"),
    (IMAGE, {"x": -0.5}, ValueError, "view 0 of"),
    (IMAGE, {"w": math.nan}, ValueError, "inside"),
]


@pytest.mark.parametrize(("images", "changes", "error", "message"), REFUSED)
def test_misuse_is_refused(row, images, changes, error, message):
    with pytest.raises(error, match=message):
        render(images, row(**changes)[None, None], EVERYTHING)
