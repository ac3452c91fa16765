"""Full-size and local views: their parameters, their pixels, and how they reach a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mast_ext.augment import (
    COLUMNS,
    AugmentationParameters,
    AugmentationRecipe,
    BlockMasks,
    build_loader,
    make_policy,
    sampler,
)
from mast_ext.augment.parameters import moments
from mast_ext.augment.torchvision import render

RECIPE = AugmentationRecipe(size=16, crop_scale=(0.4, 1.0))
INDICES = np.arange(300)
SIZES = np.full((300, 2), 32)
BLUR, SOLARIZE = COLUMNS.index("blur"), COLUMNS.index("solarize")
MASKS = BlockMasks((4, 4))


class Images:
    """A source of random images of one size."""

    def __init__(self, count=20, size=24):
        generator = torch.Generator().manual_seed(0)
        self.stacked = torch.randint(
            0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator
        )
        self.sizes = np.full((count, 2), size, np.int32)
        self.labels = {"third": np.arange(count) % 3}

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        return self.stacked[index]


def make(recipe=RECIPE, **options):
    options = {"local_views": 3, "local_size": 8, **options}
    policy = make_policy("multi_crop", recipe, **options)
    return policy, policy.plan(0, 0, INDICES, SIZES)


@pytest.mark.parametrize(
    ("full", "local", "has_center"), [(2, 3, 0), (2, 3, 1), (4, 0, 1), (1, 6, 0)]
)
def test_plan_has_the_promised_form(full, local, has_center):
    policy, plan = make(views=full, local_views=local, with_center=bool(has_center))
    views = full + local + has_center
    assert policy.num_views() == views and policy.local_views == local
    assert len(policy.recipes) == full + local
    assert plan.rows.shape == (views, 300, 14)
    assert plan.changed is None
    if has_center:
        assert torch.equal(plan.rows[-1], torch.from_numpy(sampler.center_rows(SIZES)))


def test_full_size_views_are_those_of_composed():
    plan = make()[1]
    plain = make_policy("composed", RECIPE).plan(0, 0, INDICES, SIZES)
    assert torch.equal(plan.rows[:2], plain.rows)


def test_views_do_not_depend_on_how_many_there_are():
    policy, plan = make()
    more = policy.enlarged(4, 5).plan(0, 0, INDICES, SIZES)
    assert torch.equal(more.rows[:2], plan.rows[:2])
    assert torch.equal(more.rows[4:7], plan.rows[2:])
    assert policy.num_views() == 5
    rows = more.rows.flatten(0, 1)
    assert len(rows.unique(dim=0)) > 0.99 * len(rows)


def test_views_of_one_appearance_have_its_recipe():
    """Which says whether a view may be solarized."""
    policy = make(asymmetric=True)[0].enlarged(5, appearances=3)
    recipes = policy.recipes
    assert recipes[3] == recipes[0] and recipes[4] == recipes[1] != recipes[0]
    with pytest.raises(ValueError, match="appearances must be at least 1, got 0"):
        policy.enlarged(4, appearances=0)


def test_local_views_are_small_crops():
    plan = make(local_scale=(0.05, 0.4))[1]
    area = plan.rows[..., 2:4].prod(-1)
    assert area[:2].min() > 0.35 and area[2:].max() < 0.45
    # Heights and widths are whole pixels of an image of 32.
    assert area[2:].mean() == pytest.approx(0.225, abs=0.02)


def test_asymmetric_blur_and_solarize():
    plan = make(asymmetric=True, views=4)[1]
    for view, blur, solarize in (
        (0, 1.0, 0.0),
        (1, 0.1, 0.2),
        (2, 1.0, 0.0),
        (3, 0.1, 0.2),
        (4, 0.5, 0.0),
        (6, 0.5, 0.0),
    ):
        assert plan.rows[view, :, BLUR].mean() == pytest.approx(blur, abs=0.09 * (blur < 1))
        assert plan.rows[view, :, SOLARIZE].mean() == pytest.approx(solarize, abs=0.08)
    # All other columns are those of symmetric views.
    plain = make(views=4)[1]
    assert torch.equal(plan.rows[..., :BLUR], plain.rows[..., :BLUR])


def test_mixture_is_standardized():
    policy, _ = make(asymmetric=True, with_center=False)
    indices = np.arange(20000)
    plan = policy.plan(0, 0, indices, np.full((20000, 2), 1000))
    standard = AugmentationParameters(plan.rows).standardized(*policy.recipes).flatten(0, 1)
    assert standard.mean(0).abs().max() < 0.02
    assert (standard.std(0) - 1).abs().max() < 0.02


def test_one_recipe_is_standardized_as_ever():
    rows = AugmentationParameters(make()[1].rows)
    mean, std = (torch.tensor(v) for v in moments(RECIPE))
    expected = (rows.rows - mean) / torch.where(std > 0, std, torch.ones_like(std))
    assert torch.equal(rows.standardized(RECIPE, RECIPE), expected)
    assert torch.equal(rows.standardized(RECIPE), expected)


@pytest.mark.parametrize("has_center", [False, True])
def test_batch_has_views_of_two_sizes(has_center):
    source, local = Images(), replace(RECIPE, size=8, crop_scale=(0.05, 0.4))
    policy = make_policy(
        "multi_crop", RECIPE, local_views=3, local_size=8, masks=MASKS, with_center=has_center
    )
    (batch,) = build_loader(source, policy, batch_size=20)
    assert batch.images.shape == (2 + has_center, 20, 3, 16, 16)
    assert batch.local_images.shape == (3, 20, 3, 8, 8)
    assert batch.parameters.shape == (5 + has_center, 20, 14)
    assert batch.masks.shape == (2, 20, 4, 4) and batch.masks.dtype == torch.bool
    images = source.stacked[batch.index]
    shown = [0, 1, 5] if has_center else [0, 1]
    assert torch.equal(batch.images, render(images, batch.parameters[shown], RECIPE))
    assert torch.equal(batch.local_images, render(images, batch.parameters[2:5], local))
    moved = batch.to("cpu")
    assert torch.equal(moved.local_images, batch.local_images)
    first, second = batch.split(2)
    assert torch.equal(torch.cat((first.local_images, second.local_images), 1), batch.local_images)
    assert torch.equal(torch.cat((first.masks, second.masks), 1), batch.masks)
    assert places_of(moved) == found_in(batch.masks)


def places_of(batch):
    return batch.hidden.flat.tolist()


def found_in(masks):
    return masks.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("parts", [1, 2, 4, 20])
def test_hidden_patches_are_found_beforehand(views, parts):
    policy = make_policy("multi_crop", RECIPE, views=views, masks=MASKS)
    (batch,) = build_loader(Images(), policy, batch_size=20)
    assert places_of(batch) == found_in(batch.masks)
    for part in batch.split(parts):
        assert places_of(part) == found_in(part.masks)
        assert part.hidden.counts.tolist() == part.masks.sum((2, 3)).tolist()
        assert part.hidden.of_first_views(1).flat.tolist() == found_in(part.masks[:1])


@pytest.mark.parametrize("views", [2, 3])
def test_further_views_hide_what_the_own_ones_do(views):
    policy, plan = make(views=views, masks=MASKS)
    further = policy.enlarged(5, 3).plan(0, 0, INDICES, SIZES)
    assert not torch.equal(plan.masks[0], plan.masks[1])
    for view in range(5):
        assert torch.equal(further.masks[view], plan.masks[view % views])


def test_batch_without_local_views_or_masks():
    (batch,) = build_loader(Images(), make_policy("composed", RECIPE), batch_size=20)
    assert batch.local_images is None and batch.masks is None and batch.hidden is None
    assert batch.to("cpu").local_images is None


# --- masks


def test_masks_are_keyed_by_sample_epoch_seed_and_view():
    masks = MASKS.draw(0, 0, INDICES, 2)
    assert masks.shape == (2, 300, 4, 4) and masks.dtype == bool
    part = MASKS.draw(0, 0, INDICES[100:20:-3], 3)
    np.testing.assert_array_equal(part[:2], masks[:, 100:20:-3])
    for other in (MASKS.draw(1, 0, INDICES, 2), MASKS.draw(0, 1, INDICES, 2), masks[::-1]):
        assert (other != masks).any((2, 3)).mean() > 0.5


@pytest.mark.parametrize("grid", [(14, 14), (4, 7), (1, 1), (2, 2)])
@pytest.mark.parametrize(("probability", "ratio"), [(0.5, (0.1, 0.5)), (1.0, (0.3, 0.3))])
def test_share_of_hidden_patches(grid, probability, ratio):
    masks = BlockMasks(grid, probability, ratio).draw(0, 0, np.arange(2000), 1)[0]
    hidden = masks.sum((1, 2))
    patches = grid[0] * grid[1]
    low, high = (max(1, np.rint(value * patches)) for value in ratio)
    some = hidden[hidden > 0]
    assert (hidden > 0).mean() == pytest.approx(probability, abs=0.04)
    assert low <= some.min() and some.max() <= high
    if patches > 100:
        assert some.mean() == pytest.approx(sum(ratio) / 2 * patches, rel=0.05)


@pytest.mark.parametrize("grid", [(4, 4), (2, 2), (1, 8), (1, 1)])
@pytest.mark.parametrize("ratio", [(0.0, 0.01), (0.01, 0.01), (0.1, 0.5)])
def test_a_masked_view_hides_a_patch(grid, ratio):
    masks = BlockMasks(grid, 1.0, ratio).draw(0, 0, INDICES, 2)
    assert masks.any((2, 3)).all()


def test_without_masked_views_the_ratio_may_be_zero():
    assert not BlockMasks((4, 4), 0.0, (0.0, 0.0)).draw(0, 0, INDICES, 2).any()


def test_masks_are_blocks():
    """A hidden patch's neighbors are hidden far more often than a random patch is."""
    masks = BlockMasks((14, 14), 1.0, (0.3, 0.3)).draw(0, 0, INDICES, 1)[0]
    beside = masks[:, 1:][masks[:, :-1]].mean(), masks[:, :, 1:][masks[:, :, :-1]].mean()
    assert min(beside) > 0.7
    assert masks.any(0).all() and not masks.all(0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (0, 4)}, "grid must be at least 1"),
        ({"probability": 1.5}, "probability must be a probability"),
        (
            {"ratio": (0.5, 0.1)},
            "ratio must be .low, high. with 0 <= low <= high <= 1, got .0.5, 0.1.",
        ),
        ({"ratio": (0.0, 0.0)}, "ratio must have high > 0, .* got 0.0 and 0.0"),
        ({"aspect": 0.3}, "aspect must be"),
    ],
)
def test_masks_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        BlockMasks(**{"grid": (4, 4), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_views": -1}, "local_views must be at least 0"),
        ({"local_size": 0}, "local_size must be at least 1"),
        (
            {"local_scale": (0.5, 0.1)},
            "local_scale must be .low, high. with 0 < low <= high <= 1, got .0.5, 0.1.",
        ),
        ({"views": 0}, "views must be at least 1"),
    ],
)
def test_policy_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
