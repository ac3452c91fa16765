import numpy as np
import pytest
import torch
from torch import nn

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.data import open_source
from mast_ext.methods import MAST
from mast_ext.methods.mast import MASTOptions
from mast_ext.models import create_backbone, forward_views
from mast_ext.train.config import EvaluationConfig
from mast_ext.train.evaluation import augmentations
from mast_ext.train.evaluation.augmentations import SEEDS, differences, explained, view_pairs
from mast_ext.train.evaluation.evaluate import evaluate_augmentations

RECIPE = AugmentationRecipe(size=16, crop_scale=(0.5, 1.0), blur=0.5)
VARIED = {"y", "x", "h", "w", "flip", "brightness", "contrast", "saturation", "hue", "grayscale"}


class Mean(nn.Module):
    """Features that know colors and nothing else."""

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def sources():
    return [
        open_source("shapes", split, size=16, max_images=count)
        for split, count in (("train", 600), ("test", 200))
    ]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (RECIPE, VARIED | {"blur"}),
        (RECIPE.only("crop"), {"y", "x", "h", "w"}),
        (AugmentationRecipe(hue=0, solarize=0.1), (VARIED - {"hue"}) | {"solarize"}),
        (RECIPE.only(), set()),
    ],
)
def test_what_the_recipe_varies_is_asked_for(recipe, expected):
    assert set(differences(torch.rand(2, 3, 14), recipe)) == expected


def test_differences_are_of_the_first_view_from_the_second():
    rows = torch.rand(2, 5, 14)
    found = differences(rows, RECIPE)
    x, blur = (rows[0, :, i].double() - rows[1, :, i].double() for i in (1, 12))
    torch.testing.assert_close(found["x"], x)
    torch.testing.assert_close(found["blur"], blur)
    rows[:, 0, 9] = torch.tensor([0.45, -0.45])  # hues a tenth of a turn apart
    hue = differences(rows, RECIPE)["hue"][0]
    torch.testing.assert_close(hue, torch.tensor(-np.sin(0.2 * np.pi)), check_dtype=False)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_pairs_are_in_the_order_of_the_images(sources, batch_size):
    """Of whatever batches; both views and their parameters belong to the same image."""
    torch.manual_seed(0)
    backbone = create_backbone("resnet_small", True, channels=(8, 8, 8, 16), stem_width=4)[0]
    method = MAST(16, RECIPE, MASTOptions((8, 8)))
    found = view_pairs(backbone, sources[1], RECIPE, seed=7, batch_size=batch_size, method=method)
    policy = ComposedPolicy(RECIPE, views=2)
    loader = build_loader(sources[1], policy, batch_size=200, seed=7, shuffle=False)
    (batch,) = loader
    with torch.inference_mode():
        features = forward_views(backbone.eval(), batch.images)
        embeddings = method.eval().embed(features)
    for view, each in enumerate((found.first, found.second)):
        torch.testing.assert_close(each.backbone, features[view], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each.embedding, embeddings[view], rtol=1e-4, atol=1e-5)
    expected = differences(batch.parameters, RECIPE)
    assert all(torch.equal(found.differences[name], value) for name, value in expected.items())


def test_mean_color_tells_brightness_and_not_place(sources):
    pairs = [
        view_pairs(Mean(), source, RECIPE, seed=seed)
        for source, seed in zip(sources, SEEDS, strict=True)
    ]
    fitted, told = (each.differences["brightness"][:200] for each in pairs)
    assert (fitted == told).float().mean() < 0.2  # some have no jitter
    views = [(each.first.backbone, each.second.backbone) for each in pairs]
    found = explained(*views, *(each.differences for each in pairs))
    assert found["brightness"] > 0.6
    assert abs(found["x"]) < 0.1 and abs(found["flip"]) < 0.1


def test_a_feature_that_is_the_parameter_explains_it_all():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, 300, 14, generator=generator)
    difference = differences(rows, RECIPE)
    train, test = (tuple(part) for part in (rows[:, :200], rows[:, 200:]))
    targets = [
        {n: v[part] for n, v in difference.items()} for part in (slice(200), slice(200, 300))
    ]
    found = explained(train, test, *targets)
    linear = VARIED - {"hue"}  # sine of a difference that takes all values of a turn
    assert all(found[name] == pytest.approx(1, abs=1e-6) for name in linear)


def test_rows(sources):
    torch.manual_seed(0)
    backbone = create_backbone("resnet_small", True, channels=(8, 8, 8, 16), stem_width=4)[0]
    method = MAST(16, RECIPE, MASTOptions((8, 8)))
    rows = evaluate_augmentations(
        "mast", backbone, *sources, RECIPE, EvaluationConfig(), method=method
    )
    parts = ["backbone", "embedding", "subspace invariant to hue", "subspace freed by hue"]
    assert [row.part for row in rows] == parts
    for row in rows:
        assert set(row.augmentations) == VARIED | {"blur"} and not row.scores
    again = evaluate_augmentations(
        "mast", backbone, *sources, RECIPE, EvaluationConfig(), method=method
    )
    assert again == rows


def test_no_more_images_than_are_enough(sources, monkeypatch):
    monkeypatch.setattr(augmentations, "MOST_IMAGES", 50)
    found = view_pairs(Mean(), sources[1], RECIPE, seed=7)
    assert found.first.backbone.shape == (50, 3) and len(found.differences["x"]) == 50
