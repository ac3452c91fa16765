"""SimSiam and BYOL: views that predict other views, and Barlow Twins, by hand."""

from itertools import combinations, permutations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from mast_ext.augment import AugmentationRecipe
from mast_ext.methods import BYOL, BarlowTwins, Encoded, SimSiam
from mast_ext.methods.barlow_twins import BarlowTwinsOptions
from mast_ext.methods.byol import BYOLOptions
from mast_ext.methods.simsiam import SimSiamOptions

IMAGES, FEATURES, DIM = 12, 5, 4


def recipe_of(views):
    return AugmentationRecipe(size=8, views=views)


def build(kind, options, views=2):
    torch.manual_seed(0)
    return kind(FEATURES, recipe_of(views), options)


def features_of(views):
    return torch.randn(views, IMAGES, FEATURES, requires_grad=True)


@pytest.mark.parametrize("views", [2, 3])
def test_simsiam_by_hand(views):
    """Value and gradient: of the other view's embedding, only the prediction's side moves."""
    method = build(SimSiam, SimSiamOptions((8, DIM), 9), views)
    features = features_of(views)
    loss = method(Encoded(features), None)["loss"]
    z = method.projector(features.flatten(0, 1))
    p = method.predictor(z).unflatten(0, (views, IMAGES))
    target = z.detach().unflatten(0, (views, IMAGES))
    terms = [-cosine_similarity(p[i], target[j], -1) for i, j in permutations(range(views), 2)]
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradient, features.grad = features.grad, None
    expected.backward()
    torch.testing.assert_close(gradient, features.grad)


@pytest.mark.parametrize("views", [2, 3])
def test_byol_by_hand(views):
    method = build(BYOL, BYOLOptions((8, DIM), 9), views)
    features, targets = features_of(views), torch.randn(views, IMAGES, DIM)
    loss = method(Encoded(features, targets), None)["loss"]
    z = method.projector(features.flatten(0, 1))
    p = method.predictor(z).unflatten(0, (views, IMAGES))
    # The paper's squared distance of unit vectors, 2 − 2·cos, up to constants.
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (p, targets)]
    squares = [(unit[0][i] - unit[1][j]).square().sum(-1) for i, j in permutations(range(views), 2)]
    torch.testing.assert_close(2 + 2 * loss, torch.stack(squares).mean())
    loss.backward()
    assert features.grad.abs().sum((1, 2)).all()


def test_byol_teacher():
    """All views, the projector without the predictor, a momentum that rises to 1."""
    method = build(BYOL, BYOLOptions((8, DIM), 9, momentum=0.9, batch_norm="ema"))
    spec = method.teacher()
    assert spec.head is method.projector and spec.views == slice(None)
    assert (spec.momentum, spec.final_momentum, spec.batch_norm) == (0.9, 1.0, "ema")
    assert method.forwards(2) == 4


@pytest.mark.parametrize("views", [2, 3])
def test_barlow_twins_by_hand(views):
    method = build(BarlowTwins, BarlowTwinsOptions((8, DIM), 0.1), views)
    features = features_of(views)
    z = method.embed(features)
    normal = (z - z.mean(1, keepdim=True)) / (z.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    losses = []
    for i, j in combinations(range(views), 2):
        correlation = normal[i].T @ normal[j] / IMAGES
        squares = (correlation - torch.eye(DIM)).square()
        losses.append(squares.diagonal().sum() + 0.1 * (squares.sum() - squares.diagonal().sum()))
    torch.testing.assert_close(method(Encoded(features), None)["loss"], torch.stack(losses).mean())


@pytest.mark.parametrize("chunks", [1, 3])
def test_barlow_twins_judges_chunks_by_their_loss(chunks):
    method = build(BarlowTwins, BarlowTwinsOptions((8, DIM), chunks=chunks))
    features = features_of(4)
    found, z = method.pair_losses(Encoded(features), None), method.embed(features)
    for part in torch.arange(IMAGES).tensor_split(chunks):
        for i, j in combinations(range(4), 2):
            expected = method.loss(z[i, part], z[j, part]).expand(len(part))
            torch.testing.assert_close(found[i, j, part], expected)
