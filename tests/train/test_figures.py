"""What trained networks choose and expect of views, measured and drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mast_ext.augment import (
    AugmentationParameters,
    AugmentationRecipe,
    ViewBatch,
    build_loader,
)
from mast_ext.data import open_source
from mast_ext.methods import HardViewOptions
from mast_ext.train.evaluation.views import (
    IMAGES,
    SIDE,
    chosen_views,
    hard_view_examples,
    pair_uncertainty,
)
from mast_ext.train.report.figures import draw_chosen_views, draw_uncertainty

VIEWS, BATCH = 4, 10


@pytest.mark.parametrize("views", [2, VIEWS])
def test_frames_stand_around_the_chosen_views(views):
    torch.manual_seed(0)
    recipe = AugmentationRecipe(size=4)
    images, rows = torch.randn(VIEWS, BATCH, 3, 4, 4), torch.rand(VIEWS, BATCH, 14)
    batch = ViewBatch(images, rows, torch.arange(BATCH), {})
    index = torch.stack([torch.randperm(views)[:2] for _ in range(BATCH)], 1)
    chosen = replace(batch, parameters=rows.gather(0, index[..., None].expand(-1, -1, 14)))
    examples = chosen_views(batch, chosen, recipe, views=views)
    red = images[0, 0, 0] * recipe.std[0] + recipe.mean[0]
    stored = torch.from_numpy(examples.images[0, 0, ..., 0])
    torch.testing.assert_close(stored / 255, red.clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    figure = draw_chosen_views(examples)
    framed = [[s.get_visible() for s in axes.spines.values()] for axes in figure.axes]
    expected = [[j in index[:, b].tolist()] * 4 for b in range(IMAGES) for j in range(views)]
    assert framed == expected
    assert np.array_equal(figure.axes[0].images[0].get_array(), examples.images[0, 0])


def test_two_views_are_framed_where_others_are_equal_to_them():
    """Of an image whose views share what sets them apart."""
    recipe = AugmentationRecipe(size=4)
    images, rows = torch.zeros(VIEWS, BATCH, 3, 4, 4), torch.rand(2, BATCH, 14).repeat(2, 1, 1)
    rows[:, 0] = rows[0, 0]  # all of the first image
    batch = ViewBatch(images, rows, torch.arange(BATCH), {})
    chosen = replace(batch, parameters=rows[1:3])
    framed = chosen_views(batch, chosen, recipe, views=VIEWS).chosen
    assert framed.tolist() == [[True, True, False, False]] * IMAGES


def test_large_views_are_shown_smaller():
    torch.manual_seed(0)
    recipe = AugmentationRecipe(size=2 * SIDE, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(2, 3, 3, 2 * SIDE, 2 * SIDE)
    batch = ViewBatch(images, torch.rand(2, 3, 14), torch.arange(3), {})
    examples = chosen_views(batch, batch, recipe, views=2)
    assert examples.images.shape == (3, 2, SIDE, SIDE, 3) and examples.chosen.all()
    means = images.mean((-2, -1)).permute(1, 0, 2)
    found = torch.from_numpy(examples.images).float().mean((2, 3)) / 255
    torch.testing.assert_close(found, means, atol=0.01, rtol=0)


@pytest.mark.parametrize("method", ["simsiam", "mast+equimod", "dino"])
def test_choice_of_a_trained_run(train_tiny, tiny, method):
    config = replace(tiny, hard_views=HardViewOptions(VIEWS))
    module = train_tiny(config=config, method=method)
    source = open_source("shapes", "train", size=config.data.size, max_images=64)
    loader = build_loader(source, module.hard_views.policy, batch_size=32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    examples = hard_view_examples(module, loader)
    assert examples.images.shape[:2] == examples.chosen.shape == (IMAGES, VIEWS)
    assert examples.chosen.sum(1).tolist() == [2] * IMAGES
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_examples_without_hard_views(train_tiny):
    assert hard_view_examples(train_tiny(), loader=None) is None


@pytest.mark.parametrize("method", ["mast", "mast+equimod", "mast+hard"])
def test_uncertainty_against_what_tells_views_apart(train_tiny, tiny, method):
    """Of every image's first two views; as they are given to the method."""
    config = replace(tiny, mast=replace(tiny.mast, uncertainty=True))
    module = train_tiny(config=config, method=method)
    source = open_source("shapes", "train", size=config.data.size, max_images=64)
    policy = module.method.policy(config.augment)
    if module.hard_views is not None:
        policy = module.hard_views.policy
    loader = build_loader(source, policy, batch_size=32)
    found = pair_uncertainty(module, loader)
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    batches = list(loader)
    with torch.no_grad():
        want = torch.cat([module.method.pair_uncertainty(batch) for batch in batches])
    assert want.std() > 0
    rows = torch.cat([batch.parameters[:2] for batch in batches], 1)
    parameters = AugmentationParameters(rows)
    colors = parameters.standardized(config.augment)[..., 6:10].diff(dim=0)[0].norm(dim=-1)
    assert np.allclose(found.log_variance, want)
    assert np.allclose(found.crop_iou, parameters.crop_iou(0, 1))
    assert np.allclose(found.color_distance, colors, atol=1e-5)
    for name in ("crop_iou", "color_distance"):
        figure, correlation = draw_uncertainty(found, name)
        drawn = figure.axes[0].collections[0].get_offsets().data.T
        assert np.allclose(drawn, [getattr(found, name), found.log_variance])
        rho = np.corrcoef(drawn.argsort().argsort())[0, 1]
        assert correlation == pytest.approx(rho, abs=0.02)  # ties apart


@pytest.mark.parametrize("method", ["mast", "vicreg"])
def test_no_uncertainty_that_is_not_learned(train_tiny, tiny, method):
    module = train_tiny(method=method)
    source = open_source("shapes", "train", size=tiny.data.size, max_images=64)
    loader = build_loader(source, module.method.policy(tiny.augment), batch_size=32)
    assert pair_uncertainty(module, loader) is None
    assert pair_uncertainty(module, None) is None  # no view is made for it
