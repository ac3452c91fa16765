"""The picture of what hard view selection chooses."""

from dataclasses import replace

import pytest
import torch

from mast_ext.augment import AugmentationRecipe, ViewBatch, build_loader
from mast_ext.data import open_source
from mast_ext.methods import HardViewOptions
from mast_ext.train.report.figures import (
    IMAGES,
    draw_chosen_views,
    draw_hard_view_examples,
    draw_uncertainty,
)

VIEWS, BATCH = 4, 10


@pytest.mark.parametrize("views", [2, VIEWS])
def test_frames_stand_around_the_chosen_views(views):
    torch.manual_seed(0)
    recipe = AugmentationRecipe(size=4)
    pairs = torch.zeros(VIEWS, VIEWS, BATCH, dtype=torch.int64)
    images, rows = torch.randn(VIEWS, BATCH, 3, 4, 4), torch.rand(VIEWS, BATCH, 14)
    batch = ViewBatch(images, rows, pairs, torch.arange(BATCH), {})
    index = torch.stack([torch.randperm(views)[:2] for _ in range(BATCH)], 1)
    chosen = replace(batch, parameters=rows.gather(0, index[..., None].expand(-1, -1, 14)))
    figure = draw_chosen_views(batch, chosen, recipe, views=views)
    framed = [[s.get_visible() for s in axes.spines.values()] for axes in figure.axes]
    expected = [[j in index[:, b].tolist()] * 4 for b in range(IMAGES) for j in range(views)]
    assert framed == expected
    red = images[0, 0, 0] * recipe.std[0] + recipe.mean[0]
    drawn = torch.from_numpy(figure.axes[0].images[0].get_array()[..., 0].data)
    torch.testing.assert_close(drawn, red.clamp(0, 1))


@pytest.mark.parametrize("method", ["simsiam", "mast+equimod", "dino"])
def test_choice_of_a_trained_run(train_tiny, tiny, method):
    config = replace(tiny, hard_views=HardViewOptions(VIEWS))
    module = train_tiny(config=config, method=method)
    source = open_source("shapes", "train", size=config.data.size, max_images=64)
    loader = build_loader(source, module.hard_views.policy, batch_size=32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    figure = draw_hard_view_examples(module, loader)
    assert len(figure.axes) == IMAGES * VIEWS
    frames = [axes.spines["left"].get_visible() for axes in figure.axes]
    assert [sum(frames[i : i + VIEWS]) for i in range(0, len(frames), VIEWS)] == [2] * IMAGES
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_picture_without_hard_views(train_tiny):
    assert draw_hard_view_examples(train_tiny(), loader=None) is None


@pytest.mark.parametrize("uncertainty", ["subspace", "diagonal"])
@pytest.mark.parametrize("method", ["mast", "mast+equimod"])
def test_uncertainty_against_strength(train_tiny, tiny, method, uncertainty):
    config = replace(tiny, mast=replace(tiny.mast, uncertainty=uncertainty))
    module = train_tiny(config=config, method=method)
    source = open_source("shapes", "train", size=config.data.size, max_images=64)
    policy = module.method.policy(config.augment)
    loader = build_loader(source, policy, batch_size=32)
    figure = draw_uncertainty(module, loader)
    assert len(figure.axes) == 4  # two subspaces against two strengths
    views = 64 * policy.num_views()
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    batch = next(iter(loader))
    areas = (batch.parameters[..., 2] * batch.parameters[..., 3]).flatten()
    for subspace, axes in enumerate(figure.axes[::2]):
        drawn = torch.from_numpy(axes.collections[0].get_offsets().data)
        assert len(drawn) == views and "ρ" in axes.get_title()
        with torch.no_grad():
            features = module.backbone(batch.images.flatten(0, 1)).unflatten(0, (-1, 32))
            want = module.method.uncertainty(features)[..., subspace].flatten()
        torch.testing.assert_close(drawn[: len(areas), 0].float(), areas)
        torch.testing.assert_close(drawn[: len(areas), 1].float(), want, rtol=1e-4, atol=1e-5)


def test_views_without_jitter_have_the_least_change_of_color(train_tiny, tiny):
    config = replace(
        tiny,
        mast=replace(tiny.mast, uncertainty="subspace"),
        augment=replace(tiny.augment, jitter=0.5),
    )
    module = train_tiny(config=config, method="mast")
    source = open_source("shapes", "train", size=config.data.size, max_images=64)
    loader = build_loader(source, module.method.policy(config.augment), batch_size=64)
    figure = draw_uncertainty(module, loader)
    change = torch.from_numpy(figure.axes[1].collections[0].get_offsets().data)[:, 0]
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    jittered = next(iter(loader)).parameters[..., 5].flatten() > 0
    assert change[~jittered].max() < change[jittered].median()


@pytest.mark.parametrize("method", ["mast", "vicreg"])
def test_no_picture_without_uncertainty(train_tiny, tiny, method):
    module = train_tiny(method=method)
    source = open_source("shapes", "train", size=tiny.data.size, max_images=64)
    loader = build_loader(source, module.method.policy(tiny.augment), batch_size=32)
    assert draw_uncertainty(module, loader) is None
