"""The picture of what hard view selection chooses."""

from dataclasses import replace

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
    images, rows = torch.randn(VIEWS, BATCH, 3, 4, 4), torch.rand(VIEWS, BATCH, 14)
    batch = ViewBatch(images, rows, torch.arange(BATCH), {})
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
    figure = draw_uncertainty(module, loader)
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    batches = list(loader)
    with torch.no_grad():
        want = torch.cat([module.method.pair_uncertainty(batch) for batch in batches])
    assert want.std() > 0
    rows = torch.cat([batch.parameters[:2] for batch in batches], 1)
    parameters = AugmentationParameters(rows)
    colors = parameters.standardized(config.augment)[..., 6:10].diff(dim=0)[0].norm(dim=-1)
    drawn = [torch.from_numpy(a.collections[0].get_offsets().data).float() for a in figure.axes]
    for found, difference in zip(drawn, (parameters.crop_iou(0, 1), colors), strict=True):
        torch.testing.assert_close(found[:, 0], difference)
        torch.testing.assert_close(found[:, 1], want)
    for axes, found in zip(figure.axes, drawn, strict=True):
        rho = torch.corrcoef(found.T.argsort().argsort().float())[0, 1]
        shown = float(axes.get_title().split()[-1])
        assert shown == pytest.approx(rho.item(), abs=0.02)  # ties apart
    assert "pair of views" in figure.get_suptitle()


@pytest.mark.parametrize("method", ["mast", "vicreg"])
def test_no_picture_without_uncertainty(train_tiny, tiny, method):
    module = train_tiny(method=method)
    source = open_source("shapes", "train", size=tiny.data.size, max_images=64)
    loader = build_loader(source, module.method.policy(tiny.augment), batch_size=32)
    assert draw_uncertainty(module, loader) is None
