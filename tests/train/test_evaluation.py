import pytest
import torch
from torch import nn

from mast_ext.augment import AugmentationRecipe, evaluation_images
from mast_ext.data import open_source
from mast_ext.methods import MAST, Subspaces
from mast_ext.methods.mast import MASTOptions
from mast_ext.models import create_backbone
from mast_ext.train.config import EvaluationConfig
from mast_ext.train.evaluation.evaluate import (
    LINEAR,
    LabeledImages,
    chance,
    evaluate,
    extract_features,
    protocols,
)
from mast_ext.train.evaluation.probes import linear_accuracy
from mast_ext.train.evaluation.ranks import rankme

RECIPE = AugmentationRecipe(size=16)
FACTORS = ["shape", "hue", "size", "position", "rotation", "texture"]


class Mean(nn.Module):
    """Features that know colors and nothing else."""

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def images():
    return LabeledImages(
        open_source("shapes", "train", size=16, max_images=200),
        open_source("shapes", "test", size=16, max_images=50),
    )


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return create_backbone("resnet_small", True, channels=(8, 8, 8, 16), stem_width=4)[0]


def test_features_do_not_depend_on_the_batch_size(images, backbone):
    method = MAST(16, RECIPE, MASTOptions((8, 8)))
    whole = extract_features(backbone, images.test, RECIPE, batch_size=50, method=method)
    parts = extract_features(backbone, images.test, RECIPE, batch_size=7, method=method)
    assert whole.backbone.shape == (50, 16) and whole.embedding.shape == (50, 8)
    assert torch.allclose(whole.backbone, parts.backbone, atol=1e-5)
    assert torch.allclose(whole.embedding, parts.embedding, atol=1e-5)


def test_features_are_of_center_views_in_order_and_leave_the_network_alone(images):
    found = extract_features(Mean(), images.test, RECIPE, batch_size=16).backbone
    center = torch.cat(
        [x for x, _ in evaluation_images(images.test, 16, RECIPE.mean, RECIPE.std, 50)]
    )
    assert torch.allclose(found, center.mean((2, 3)), atol=1e-5)


def test_network_state_is_untouched(images, backbone):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract_features(backbone, images.test, RECIPE)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_the_network_can_be_trained_afterwards(images):
    """Its weights are moved to other memory formats, which must not bind them to inference."""
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", True)[0]
    extract_features(backbone, images.test, RECIPE)
    backbone.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_rows(images, backbone):
    method = MAST(16, RECIPE, MASTOptions((8, 8)))
    config = EvaluationConfig(neighbors=(5,))
    rows = evaluate("mast", backbone, images, RECIPE, config, method=method)
    parts = ["backbone", "embedding", "subspace invariant to hue", "subspace freed by hue"]
    assert [row.part for row in rows] == parts
    assert protocols(rows) == [LINEAR, "k-NN 5"]
    for row in rows:
        for scores in row.scores.values():
            assert list(scores) == FACTORS
            assert all(0 <= score <= 1 for score in scores.values())
    assert [row.dimensions for row in rows] == [16, 8, None, None]
    train = extract_features(backbone, images.train, RECIPE, method=method)
    measured = (rankme(train.backbone), rankme(train.embedding))
    assert [row.rankme for row in rows] == [*(round(rank, 4) for rank in measured), None, None]
    assert evaluate("mast", backbone, images, RECIPE, config, method=method) == rows


def test_mean_color_tells_hue_and_not_rotation(images):
    (row,) = evaluate("mean", Mean(), images, RECIPE, EvaluationConfig((5,)))
    for scores in row.scores.values():
        assert scores["hue"] > 0.3 > 1 / 8
        assert scores["rotation"] < 0.45


def test_subspaces_are_probed_on_their_own_dimensions(images, backbone, monkeypatch):
    method = MAST(16, RECIPE, MASTOptions((8, 8)))
    masks = torch.ones(2, 8)
    masks[0, [5, 2]] = torch.tensor([0.1, 0.0])
    subspaces = Subspaces(("hue", "geometry"), masks, torch.eye(2))
    monkeypatch.setattr(method, "subspaces", lambda: subspaces)
    rows = evaluate("m", backbone, images, RECIPE, EvaluationConfig((5,)), method=method)
    scores = {row.part: row.scores[LINEAR] for row in rows}
    parts = {"invariant to hue": [0, 1, 3, 4, 6, 7], "freed by hue": [5, 2]}
    assert list(scores) == ["backbone", "embedding", *(f"subspace {name}" for name in parts)]
    for name, dims in parts.items():
        train, test = (
            extract_features(backbone, source, RECIPE, method=method).embedding[:, dims]
            for source in (images.train, images.test)
        )
        expected = linear_accuracy(train, test, images.train_labels, images.test_labels)
        assert scores[f"subspace {name}"] == expected


@pytest.mark.parametrize(
    ("freed", "counts"), [(0.01, [7, 1]), (0.5, [4, 4]), (0.3, [6, 2]), (0.99, [1, 7])]
)
def test_subspaces_have_a_dimension_at_least(freed, counts):
    dims = Subspaces(("hue",), torch.full((1, 8), 1 - freed), torch.eye(1)).dimensions()
    assert [len(found) for found in dims.values()] == counts


def test_chance(images):
    scores = chance(images).scores[LINEAR]
    assert scores["hue"] == pytest.approx(1 / 8, abs=0.1)
    assert scores["position"] == pytest.approx(1 / 4, abs=0.15)
