"""Images of other channels than RGB, and of 16 bits, by every renderer that takes them."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as functional
from PIL import Image

from mast_ext.augment import (
    AugmentationRecipe,
    ComposedPolicy,
    SharedPolicy,
    Sharing,
    build_loader,
    evaluation_images,
)
from mast_ext.augment.torchvision import render
from mast_ext.data import open_source

TOP = {torch.uint8: 255, torch.uint16: 65535}


def recipe_of(channels, top=255, **changes):
    """A recipe without colors, whose normalization leaves levels in [0, top]."""
    levels = {"mean": (0.0,) * channels, "std": (1 / top,) * channels}
    return AugmentationRecipe(**{"size": 32, **levels, **changes}).without_color()


@pytest.fixture
def images(smooth_images):
    """Makes smooth images of any number of channels, and of 16 bits."""

    def make(count, channels, height=32, width=32, dtype=torch.uint8):
        stacked = torch.cat([smooth_images(count, height, width, seed) for seed in range(5)], dim=1)
        chosen = stacked[:, :channels]
        if dtype == torch.uint8:
            return chosen
        noise = np.random.default_rng(0).integers(0, 256, chosen.shape, dtype=np.uint16)
        return torch.from_numpy((chosen.numpy().astype(np.uint16) << 8) + noise)

    return make


CHANGES = [
    {"y": 0.1, "x": 0.2, "h": 0.6, "w": 0.5},
    {"flip": 1},
    {"jitter": 1, "brightness": 1.4},
    {"jitter": 1, "brightness": 0.7, "contrast": 1.6},
    {"blur": 1, "sigma": 1.3},
    {"solarize": 1},
]


@pytest.mark.parametrize("size", [(32, 32), (70, 90)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", TOP, ids=str)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_each_channel_is_rendered_as_a_gray_image(images, row, changes, dtype, size):
    """Contrast included, which is about the channel's own mean."""
    stack, rows = images(3, 13, *size, dtype=dtype), row(**changes).repeat(1, 3, 1)
    together = render(stack, rows, recipe_of(13, TOP[dtype]))
    alone = [render(stack[:, [c]], rows, recipe_of(1, TOP[dtype])) for c in range(13)]
    assert torch.equal(together, torch.cat(alone, dim=2))


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_gray_is_rendered_as_rgb_of_three_such_channels(images, row, changes):
    gray, rows = images(4, 1), row(**changes).repeat(1, 4, 1)
    one = render(gray, rows, recipe_of(1))
    three = render(gray.expand(-1, 3, -1, -1), rows, recipe_of(3))
    # (0.2989 + 0.587 + 0.114 is a little less than 1: the gray of RGB is truncated.)
    assert (one - three).abs().max() <= (1.01 if "contrast" in changes else 0)


def expected(image, changes, threshold):
    """What torchvision makes of floats, whatever their range, in levels of 16 bits."""
    view = image.double()
    if "h" in changes:
        height, width = image.shape[1:]
        box = (
            round(changes[side] * n) for side, n in zip("yxhw", (height, width) * 2, strict=True)
        )
        view = functional.crop(view, *box)
    view = functional.resize(view, [32, 32], antialias=True)
    if "flip" in changes:
        view = functional.hflip(view)
    view = (view * changes.get("brightness", 1)).clamp(max=65535)
    contrast = changes.get("contrast", 1)
    view = (view * contrast + (1 - contrast) * view.mean((1, 2), keepdim=True)).clamp(0, 65535)
    if "blur" in changes:
        view = functional.gaussian_blur(view, 9, changes["sigma"])
    if "solarize" in changes:
        view = torch.where(view >= threshold, 65535 - view, view)
    return view


@pytest.mark.parametrize("size", [(32, 32), (70, 90)], ids=["small", "large"])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_16_bits_are_kept(images, row, changes, size):
    """But for truncation to one of 65,536 levels after each change."""
    stack = images(4, 5, *size, dtype=torch.uint16)
    found = render(stack, row(**changes).repeat(1, 4, 1), recipe_of(5, 65535))[0]
    wanted = torch.stack([expected(image, changes, 128 * 257) for image in stack])
    difference = (found - wanted).abs()
    if "solarize" in changes:  # a level beside the threshold may be inverted, or not
        difference = difference[(wanted - 32768).abs() > 400]
    assert difference.max() <= 3 and difference.mean() <= 1.2


@pytest.mark.parametrize("side", [32, 256])
def test_every_level_of_16_bits_is_told_from_the_next(row, side):
    ramp = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1, side, side)
    stack = torch.from_numpy(ramp)
    rows = row().repeat(1, len(stack), 1)
    recipe = AugmentationRecipe(size=side, mean=(0.485,), std=(0.229,)).without_color()
    assert len(render(stack, rows, recipe).unique()) == 1 << 16


def test_colors_of_16_bits_are_those_of_8(images, row):
    """Saturation, hue and gray: 257 times as many levels, the same colors."""
    stack = images(4, 3)
    deep = torch.from_numpy(stack.numpy().astype(np.uint16) * 257)
    changes = {"jitter": 1, "brightness": 0.9, "contrast": 1.2, "saturation": 1.4, "hue": 0.12}
    for each in (changes, {"grayscale": 1}):
        rows = row(**each).repeat(1, 4, 1)
        levels = AugmentationRecipe(mean=(0, 0, 0), std=(1 / 255,) * 3)
        difference = (render(stack, rows, levels) - render(deep, rows, levels)).abs()
        assert difference.mean() <= 1.5 and difference.quantile(0.99) <= 4


def test_views_of_16_bits_for_a_gpu_are_normalized(images, row, monkeypatch):
    monkeypatch.setattr(
        "mast_ext.augment.torchvision.empty",
        lambda shape, dtype, for_gpu: torch.empty(shape, dtype=dtype),
    )
    stack, rows = images(2, 2, dtype=torch.uint16), row().repeat(1, 2, 1)
    recipe = AugmentationRecipe(mean=(0.5, 0.4), std=(0.2, 0.1)).without_color()
    found = render(stack, rows, recipe, for_gpu=True)
    assert torch.equal(found, render(stack, rows, recipe)) and found.dtype == torch.float32


class Stack:
    """Images in memory as a source."""

    def __init__(self, images, stacked):
        self.images, self.labels = images, {}
        self.stacked = images if stacked else None
        self.sizes = np.tile(np.array(images.shape[-2:], np.int32), (len(images), 1))
        self.bits = 16 if images.dtype == torch.uint16 else 8

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]


def first_batch(source, recipe, **options):
    policy = ComposedPolicy(recipe)
    return next(iter(build_loader(source, policy, batch_size=len(source), **options)))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 13])
def test_dali_renders_other_channels_as_torchvision_does(images, channels, stacked):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    source = Stack(images(12, channels), stacked)
    recipe = recipe_of(channels, blur=0.5, solarize=0.2, size=24)
    ours, theirs = (first_batch(source, recipe, backend=b) for b in ("dali", "torchvision"))
    assert ours.images.shape == (2, 12, channels, 24, 24)
    difference = (ours.images - theirs.images).abs()
    assert difference.mean() <= 0.3 and difference.quantile(0.999) <= 8


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff", "webp"])
def test_dali_decodes_gray_files(tmp_path, smooth_images, suffix, channels):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    (tmp_path / "train").mkdir()
    for i, image in enumerate(smooth_images(6, 70, 90)):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"train/{i}.{suffix}")
    if suffix == "webp":  # which has no gray files
        channels = channels or 1
    source = open_source("folder", "train", path=tmp_path, channels=channels)
    assert source.channels == (channels or 1) and source.stacked is None
    recipe = recipe_of(source.channels, blur=0.5)
    ours, theirs = (first_batch(source, recipe, backend=b) for b in ("dali", "torchvision"))
    assert (ours.images - theirs.images).abs().mean() <= 0.6


REFUSED = {
    r"photometric fused turns colors, and the images have 1 channel: use exact": (
        *(1, torch.uint8),
        {"photometric": "fused"},
    ),
    r"backend dali renders 8 bits, and the images have 16: .* --data\.bits 8": (
        *(1, torch.uint16),
        {},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_dali_cannot_do_is_refused_by_name(images, message):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    channels, dtype, options = REFUSED[message]
    source = Stack(images(4, channels, dtype=dtype), stacked=True)
    with pytest.raises(ValueError, match=message):
        first_batch(source, recipe_of(channels), backend="dali", **options)


@pytest.mark.parametrize("stacked", [True, False])
def test_dali_says_that_images_do_not_fit_the_recipe(images, stacked):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    with pytest.raises(ValueError, match=r"as many channels as .* numbers, 1, got uint8 of 2"):
        first_batch(Stack(images(4, 2), stacked), recipe_of(1), backend="dali")


def test_colors_of_images_without_color_are_refused_by_name(images, row):
    recipe = AugmentationRecipe(mean=(0.5,), std=(0.2,), grayscale=0)
    message = r"saturation 0\.4, hue 0\.1 need images of 3 channels .* got mean of 1 channel: set"
    with pytest.raises(ValueError, match=message):
        ComposedPolicy(recipe)
    ComposedPolicy(recipe.without_color())
    for change in ({"jitter": 1, "hue": 0.1}, {"jitter": 1, "saturation": 0.5}, {"grayscale": 1}):
        with pytest.raises(ValueError, match=rf"rows change {list(change)[-1]}"):
            render(images(1, 1), row(**change)[None, None], recipe)
    with pytest.raises(ValueError, match="shared names 'hue', and images that are not RGB have no"):
        SharedPolicy(recipe.without_color(), shared={"hue": Sharing()})


def test_images_of_two_depths_are_refused(images, row):
    pair = [images(1, 1)[0], images(1, 1, dtype=torch.uint16)[0]]
    with pytest.raises(TypeError, match=r"of one type, got torch\.uint8 and torch\.uint16"):
        render(pair, row().repeat(1, 2, 1), recipe_of(1))


def test_images_for_evaluation(images):
    stack = images(5, 13, dtype=torch.uint16)
    mean, std = (0.1,) * 13, (0.5,) * 13
    (views, index), *_ = evaluation_images(Stack(stack, True), 32, mean, std, batch_size=5)
    wanted = (stack.float() / 65535 - 0.1) / 0.5
    torch.testing.assert_close(views, wanted)
    assert index.tolist() == [0, 1, 2, 3, 4]
