"""The sampler is a function of (seed, epoch, sample, view), with torchvision's distributions."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from mast_ext.augment import GROUPS, AugmentationRecipe, sampler
from mast_ext.augment.parameters import COLUMN

EVERYTHING = AugmentationRecipe(blur=0.5, solarize=0.2)


def draw(indices, *, recipe=EVERYTHING, seed=0, epoch=0, view=0, size=(32, 32)):
    sizes = np.tile(size, (len(indices), 1))
    return sampler.composed_rows(recipe, seed, epoch, indices, sizes, view)


def test_row_does_not_depend_on_batch_or_order():
    everyone = draw(np.arange(100))
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(draw(order), everyone[order])
    for index in (0, 57, 99):
        np.testing.assert_array_equal(draw([index])[0], everyone[index])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"seed": -1}])
def test_every_part_of_the_key_changes_the_draw(change):
    rows, other = draw(np.arange(2000)), draw(np.arange(2000), **change)
    hue = COLUMN["hue"]
    assert (rows[:, hue] != other[:, hue]).mean() > 0.9
    for name in ("y", "h", "flip", "brightness", "sigma"):
        columns = rows[:, COLUMN[name]], other[:, COLUMN[name]]
        assert abs(np.corrcoef(*columns)[0, 1]) < 0.08, name


def test_parts_of_the_key_are_not_interchangeable():
    draws = [draw([3], seed=a, epoch=b, view=c) for a, b, c in ((1, 2, 4), (2, 1, 4), (1, 4, 2))]
    assert len({row.tobytes() for row in draws}) == 3


def test_switching_an_augmentation_leaves_the_others_alone():
    less = draw(np.arange(50), recipe=AugmentationRecipe(flip=0.0, blur=0.5, solarize=0.2))
    columns = [c for name, c in COLUMN.items() if name != "flip"]
    np.testing.assert_array_equal(less[:, columns], draw(np.arange(50))[:, columns])
    assert not less[:, COLUMN["flip"]].any()


def test_uniforms_are_uniform_and_uncorrelated():
    u = sampler.uniforms(sampler.keys(0, 0, np.arange(20_000)), 16)
    assert u.min() >= 0 and u.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in u.T])
    chi_square = ((counts - 1000) ** 2 / 1000).sum(axis=1)  # 19 degrees of freedom each
    assert chi_square.max() < 45
    correlation = np.corrcoef(u.T) - np.eye(16)
    assert np.abs(correlation).max() < 0.035
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.035  # neighboring samples


def test_gates_and_factors_follow_the_recipe():
    rows = draw(np.arange(20_000))
    for name, probability in (
        *(("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.2)),
    ):
        gate = rows[:, COLUMN[name]]
        assert set(gate.tolist()) == {0.0, 1.0}
        assert gate.mean() == pytest.approx(probability, abs=0.015), name
    applied = rows[:, COLUMN["jitter"]] == 1
    for name, low, high, neutral in (
        *(("brightness", 0.6, 1.4, 1), ("saturation", 0.6, 1.4, 1), ("hue", -0.1, 0.1, 0)),
    ):
        factor = rows[:, COLUMN[name]]
        assert (factor[~applied] == neutral).all()
        assert factor[applied].min() == pytest.approx(low, abs=1e-3)
        assert factor[applied].max() == pytest.approx(high, abs=1e-3)
    blurred = rows[:, COLUMN["blur"]] == 1
    assert (rows[~blurred, COLUMN["sigma"]] == 0).all()
    assert rows[blurred, COLUMN["sigma"]].min() >= np.float32(0.1)


CROPS = [  # height, width, scale, ratio
    (375, 500, (0.2, 1.0), (3 / 4, 4 / 3)),
    (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
    (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
    (20, 100, (0.5, 1.0), (3 / 4, 4 / 3)),  # never fits: the central box
    (100, 20, (0.3, 0.5), (0.3, 2.0)),
]


@pytest.mark.parametrize(("size", "ratio"), [((1, 5), (0.1, 0.4)), ((5, 1), (3.0, 4.0))])
def test_no_crop_is_empty(size, ratio):
    recipe = AugmentationRecipe(crop_ratio=ratio)
    boxes = draw(np.arange(100), recipe=recipe, size=size)[:, GROUPS["crop"]]
    assert (boxes[:, 2:] > 0).all() and (boxes[:, 2:] <= 1).all()


@pytest.mark.parametrize(("height", "width", "scale", "ratio"), CROPS)
def test_crops_are_distributed_as_torchvisions(height, width, scale, ratio):
    recipe = AugmentationRecipe(crop_scale=scale, crop_ratio=ratio)
    count = 4000
    boxes = draw(np.arange(count), recipe=recipe, size=(height, width))[:, GROUPS["crop"]]
    ours = boxes * [height, width, height, width]
    np.testing.assert_allclose(ours, np.rint(ours), atol=1e-4)  # whole pixels
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    )
    ours = np.rint(ours)
    for name, a, b in (
        *(("y", ours[:, 0], theirs[:, 0]), ("x", ours[:, 1], theirs[:, 1])),
        *(("h", ours[:, 2], theirs[:, 2]), ("w", ours[:, 3], theirs[:, 3])),
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("ratio", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
    ):
        grid = np.unique(np.concatenate((a, b)))
        distance = np.abs(
            np.searchsorted(np.sort(a), grid, "right") - np.searchsorted(np.sort(b), grid, "right")
        ).max()
        assert distance / count < 0.044, name  # Kolmogorov-Smirnov at 0.1 %


def test_crop_that_is_off_is_the_central_square():
    recipe = AugmentationRecipe(crop_scale=(1.0, 1.0))
    assert draw([0], recipe=recipe, size=(20, 40))[0, :4].tolist() == [0, 0.25, 1, 0.5]


def test_permutation_is_keyed_and_complete():
    order = sampler.permutation(0, 0, 1000)
    assert sorted(order) == list(range(1000))
    for seed, epoch in ((0, 1), (1, 0)):
        other = sampler.permutation(seed, epoch, 1000)
        assert abs(np.corrcoef(order, other)[0, 1]) < 0.15
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"sizes must be \[B, 2\]"):
        sampler.center_rows(np.zeros((3, 2), int))
