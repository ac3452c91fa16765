"""The procedural images are repeatable, and their factors are to be seen in the pixels."""

import numpy as np
import pytest
import torch

from mast_ext.data import ShapesSource, open_source
from mast_ext.data.shapes import CLASSES, IMAGES

FACTORS = ("shape", "hue", "size", "position", "rotation", "texture")


@pytest.fixture(scope="module")
def train():
    return open_source("shapes", "train", max_images=2048)


def shapes_mask(images):
    """Pixels of the colored shape on the gray background, [N, H, W]."""
    levels = images.float()
    chroma = levels.amax(1) - levels.amin(1)
    return chroma > 40


@pytest.mark.parametrize("split", ["train", "test"])
def test_form(split):
    source = open_source("shapes", split)
    count = IMAGES[split]
    assert source.name == "shapes" and len(source) == count
    assert source.stacked.shape == (count, 3, 32, 32) and source.stacked.dtype == torch.uint8
    assert source.sizes.shape == (count, 2) and (source.sizes == 32).all()
    assert tuple(source.labels) == tuple(source.classes) == FACTORS
    for name, ids in source.labels.items():
        assert ids.dtype == np.int64 and ids.shape == (count,)
        frequency = np.bincount(ids, minlength=len(source.classes[name])) / count
        assert len(frequency) == len(source.classes[name])
        assert frequency == pytest.approx(1 / len(frequency), abs=0.04), name
    assert torch.equal(source.image(5), source.stacked[5])
    assert source.skipped == []


def test_image_depends_on_seed_split_and_index_alone(train):
    assert torch.equal(open_source("shapes", "train", max_images=10).stacked, train.stacked[:10])
    for other in (
        open_source("shapes", "train", seed=1, max_images=10),
        open_source("shapes", "test", max_images=10),
    ):
        assert (other.stacked != train.stacked[:10]).flatten(1).any(1).all()
        assert any((other.labels[f] != train.labels[f][:10]).any() for f in FACTORS)


def test_images_are_all_different(train):
    assert len({image.numpy().tobytes() for image in train.stacked}) == len(train)


def test_factors_are_independent(train):
    for i, first in enumerate(FACTORS):
        for second in FACTORS[i + 1 :]:
            table = np.zeros((len(CLASSES[first]), len(CLASSES[second])))
            np.add.at(table, (train.labels[first], train.labels[second]), 1)
            expected = np.outer(table.sum(1), table.sum(0)) / len(train)
            chi_square = ((table - expected) ** 2 / expected).sum()
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, (first, second)


def test_hue_is_the_color_of_the_shape(train):
    images, mask = train.stacked.double(), shapes_mask(train.stacked)
    red, green, blue = ((images * mask[:, None]).sum((2, 3)) / mask.sum((1, 2))[:, None]).T
    turn = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi)
    classes = (turn * 8).round().long() % 8
    assert (classes.numpy() == train.labels["hue"]).mean() > 0.97


def test_position_is_the_quadrant_of_the_shape(train):
    mask = shapes_mask(train.stacked).double()
    axis = torch.arange(32) + 0.5
    x, y = ((mask.sum(dim) * axis).sum(1) / mask.sum((1, 2)) for dim in (1, 2))
    assert ((x > 16) + 2 * (y > 16)).numpy().tolist() == train.labels["position"].tolist()


def test_size_is_the_extent_of_the_shape(train):
    mask = shapes_mask(train.stacked)
    extent = mask.any(1).sum(1) + mask.any(2).sum(1)
    mean = [float(extent[train.labels["size"] == c].double().mean()) for c in range(3)]
    spread = [float(extent[train.labels["size"] == c].double().std()) for c in range(3)]
    assert mean[1] - mean[0] > max(spread) and mean[2] - mean[1] > max(spread)


def test_texture_is_the_contrast_within_the_shape(train):
    mask = shapes_mask(train.stacked)
    top = train.stacked.amax(1).double()
    bright = (top * mask).amax((1, 2))
    dark = ((top < 0.75 * bright[:, None, None]) & mask).sum((1, 2)) / mask.sum((1, 2))
    solid = train.labels["texture"] == 0
    assert dark[solid].mean() < 0.35 and dark[~solid].mean() > 0.45


@pytest.mark.parametrize("shape", range(5), ids=CLASSES["shape"])
def test_rotation_turns_the_shape(train, shape):
    """The mean mask of one rotation is that of another, turned; not that of itself."""
    mask = shapes_mask(train.stacked)
    axis = torch.arange(-8, 9)
    means = []
    for rotation in range(4):
        members = np.flatnonzero(
            (train.labels["shape"] == shape) & (train.labels["rotation"] == rotation)
        )
        crops = []
        for i in members:
            ys, xs = mask[i].nonzero().double().T
            cy = int((ys.min() + ys.max()).div(2).round())
            cx = int((xs.min() + xs.max()).div(2).round())
            padded = torch.nn.functional.pad(mask[i].float(), (8, 8, 8, 8))
            crops.append(padded[cy + 8 + axis][:, cx + 8 + axis])
        means.append(torch.stack(crops).mean(0))
    for rotation in (1, 2, 3):
        turned = torch.rot90(means[0], -rotation)
        itself = (means[rotation] - means[0]).abs().sum()
        assert (means[rotation] - turned).abs().sum() < 0.6 * itself


def test_nearest_neighbor_sees_every_factor_above_chance():
    train, test = open_source("shapes", "train"), open_source("shapes", "test", max_images=300)
    distance = torch.cdist(test.stacked.flatten(1).float(), train.stacked.flatten(1).float())
    nearest = distance.argmin(1).numpy()
    for name, ids in train.labels.items():
        accuracy = (ids[nearest] == test.labels[name]).mean()
        assert accuracy > 1 / len(CLASSES[name]) + 0.07, name


def test_size_of_the_images_is_free():
    source = open_source("shapes", "train", size=48, max_images=4)
    assert source.stacked.shape == (4, 3, 48, 48)
    assert (
        source.labels["hue"].tolist() == ShapesSource("train", max_images=4).labels["hue"].tolist()
    )
