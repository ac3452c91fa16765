"""The schema of parameters: names, standardization, overlap of crops."""

import numpy as np
import pytest
import torch

from mast_ext.augment import COLUMNS, GROUPS, AugmentationParameters, AugmentationRecipe, sampler
from mast_ext.augment.parameters import COLUMN, NEUTRAL, moments

RECIPES = {
    "default": {},
    "everything": {"blur": 0.5, "solarize": 0.2},
    "small crops": {"crop_scale": (0.05, 0.3), "flip": 1.0, "jitter": 1.0},
    "tall crops": {"crop_ratio": (0.3, 0.5)},
    "fallback": {"crop_scale": (0.6, 1.0), "crop_ratio": (1.4, 3.0)},
    "strong": {"brightness": 1.5, "hue": 0.5, "contrast": 0.0},
    "no crop": {"crop_scale": (1.0, 1.0), "grayscale": 0.0},
}


STRONG = AugmentationRecipe(**RECIPES["strong"])


def rows_of(*changes):
    rows = torch.tensor(NEUTRAL).repeat(len(changes), 1, 1)
    for row, change in zip(rows, changes, strict=True):
        for name, value in change.items():
            row[:, COLUMN[name]] = value
    return rows


def test_groups_partition_the_columns():
    assert [COLUMNS[s] for s in GROUPS.values()] == [
        ("y", "x", "h", "w"),
        ("flip",),
        ("jitter", "brightness", "contrast", "saturation", "hue"),
        ("grayscale",),
        ("blur", "sigma"),
        ("solarize",),
    ]
    assert len(COLUMNS) == len(NEUTRAL) == 14


def test_column_and_group_are_read_by_name():
    parameters = AugmentationParameters(rows_of({"hue": 0.25}, {"sigma": 2.0}))
    assert parameters.column("hue").tolist() == [[0.25], [0.0]]
    assert parameters.group("blur").tolist() == [[[0.0, 0.0]], [[0.0, 2.0]]]


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_moments_are_those_of_the_sampler(changes):
    recipe = AugmentationRecipe(**changes)
    count = 40_000
    drawn = sampler.composed_rows(
        recipe, 0, 0, np.arange(count), np.full((count, 2), 4000), view=0
    ).astype(np.float64)
    mean, std = moments(recipe)
    # Five standard errors, and the sampler's rounding to pixels.
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * max(std) / count**0.5 + 5e-4)
    np.testing.assert_allclose(drawn.std(0), std, atol=0.015)


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_standardized_rows_have_mean_0_and_variance_1(changes):
    recipe = AugmentationRecipe(**changes)
    count = 20_000
    rows = sampler.composed_rows(recipe, 0, 0, np.arange(count), np.full((count, 2), 4000), 0)
    standard = AugmentationParameters(torch.from_numpy(rows)[None]).standardized(recipe)[0]
    changing = rows.std(0) > 1e-6
    torch.testing.assert_close(standard.mean(0), torch.zeros(14), atol=0.04, rtol=0)
    torch.testing.assert_close(
        standard.std(0)[changing], torch.ones(sum(changing)), atol=0.04, rtol=0
    )
    torch.testing.assert_close(standard[:, ~changing], torch.zeros(count, sum(~changing)))


IOU_CASES = [
    ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
    ((0, 0, 1, 1), (0.25, 0.25, 0.5, 0.5), 0.25),
    ((0, 0, 0.5, 1), (0.25, 0, 0.5, 1), 1 / 3),
    ((0, 0, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0),
    ((0, 0, 0.25, 1), (0.5, 0, 0.25, 1), 0.0),
]


@pytest.mark.parametrize(("first", "second", "expected"), IOU_CASES)
def test_crop_iou(first, second, expected):
    boxes = [dict(zip("yxhw", box, strict=True)) for box in (first, second)]
    parameters = AugmentationParameters(rows_of(*boxes))
    assert parameters.crop_iou(0, 1).tolist() == pytest.approx([expected])
    assert parameters.crop_iou(1, 0).tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: AugmentationParameters(torch.zeros(2, 3)),
            ValueError,
            r"\[V, B, 14\], got \[2, 3\]",
        ),
        (lambda: AugmentationParameters(torch.zeros(1, 1, 14).double()), TypeError, "float32"),
        (lambda: AugmentationParameters(rows_of({})).column("tint"), ValueError, "column must be"),
        (lambda: AugmentationParameters(rows_of({})).group("tint"), ValueError, "group must be"),
    ],
)
def test_misuse_is_refused(action, error, message):
    with pytest.raises(error, match=message):
        action()


def test_pair_differences():
    draw = (STRONG, 0, 0, np.arange(50), np.full((50, 2), 32))
    rows = torch.from_numpy(np.stack([sampler.composed_rows(*draw, view) for view in (0, 1)]))
    parameters = AugmentationParameters(rows)
    found = parameters.pair_differences(0, 1, STRONG)
    assert found.shape == (50, 17) and found.dtype == torch.float32
    torch.testing.assert_close(parameters.pair_differences(1, 0, STRONG), found)
    standard = parameters.standardized(STRONG)
    torch.testing.assert_close(found[:, :14], (standard[0] - standard[1]).square())
    h, w = parameters.column("h"), parameters.column("w")
    assert torch.equal(found[:, 14], parameters.crop_iou(0, 1))
    torch.testing.assert_close(found[:, 15], (h * w).sum(0))
    torch.testing.assert_close(found[:, 16], (h * w).diff(dim=0)[0].abs())
    same = AugmentationParameters(rows[:1].expand(2, -1, -1)).pair_differences(0, 1, STRONG)
    assert (same[:, :14] == 0).all() and (same[:, 14] > 0.999).all() and (same[:, 16] == 0).all()
