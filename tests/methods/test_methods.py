import pytest
import torch

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.methods import METHODS, MASTOptions, VICRegOptions

RECIPE = AugmentationRecipe(size=8)
PLAIN = AugmentationRecipe(size=8, crop_scale=(1, 1), flip=0, jitter=0, grayscale=0)
SMALL = (12, 8)  # projector
NAMES = ("joint", "crop", "flip", "color", "grayscale")

# method, options, recipe, views
CASES = [
    ("vicreg", VICRegOptions(SMALL), RECIPE, 2),
    ("vicreg", VICRegOptions(SMALL), AugmentationRecipe(size=8, views=3), 3),
    ("mast", MASTOptions(SMALL), RECIPE, 2),
    ("mast", MASTOptions(SMALL, partners=3, joint=0.2), RECIPE, 4),
    ("mast", MASTOptions(SMALL, policy="factorized"), RECIPE, 6),
    ("mast", MASTOptions(SMALL, policy="factorized", joint=0), RECIPE, 5),
    ("mast", MASTOptions(SMALL, masks="softmax", sparsity=1.0), RECIPE, 2),
    ("mast", MASTOptions(SMALL, uncertainty="subspace"), RECIPE, 2),
    ("mast", MASTOptions(SMALL, uncertainty="diagonal"), RECIPE, 2),
]
IDS = [f"{name}-{views}-{i}" for i, (name, _, _, views) in enumerate(CASES)]

REFUSED = [
    ("vicreg", VICRegOptions(SMALL), AugmentationRecipe(views=1), "augment.views of at least 2"),
    ("vicreg", VICRegOptions(()), RECIPE, "projector widths"),
    ("mast", MASTOptions(SMALL), PLAIN, "at least one augmentation switched on"),
    ("mast", MASTOptions(SMALL, joint=1.5), RECIPE, "joint"),
    ("mast", MASTOptions(SMALL, partners=0), RECIPE, "n must be"),
    ("mast", MASTOptions(SMALL, masks="round"), RECIPE, "parameterisation must be one of"),
]


def build(name, options, recipe, num_features=6):
    torch.manual_seed(0)
    return METHODS[name](num_features, recipe, options)


def views_of(method, recipe, images=40):
    """Features and the batch they belong to, as the method's policy arranges them."""
    plan = method.policy(recipe).plan(0, 0, torch.arange(images), torch.full((images, 2), 8))
    count = len(plan.rows)
    batch = ViewBatch(
        torch.empty(count, images, 3, 8, 8),
        plan.rows,
        plan.pair_subspace,
        torch.arange(images),
        {},
    )
    return torch.randn(count, images, 6, requires_grad=True), batch


@pytest.mark.parametrize(("name", "options", "recipe", "views"), CASES, ids=IDS)
def test_loss_reaches_features_and_every_parameter(name, options, recipe, views):
    method = build(name, options, recipe)
    features, batch = views_of(method, recipe)
    assert len(features) == method.policy(recipe).num_views() == views
    terms = method(features, batch)
    assert terms["loss"].shape == () and torch.isfinite(terms["loss"])
    assert not any(value.requires_grad for key, value in terms.items() if key != "loss")
    terms["loss"].backward()
    assert features.grad.abs().sum() > 0
    still = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(("name", "options", "recipe", "message"), REFUSED)
def test_refuses(name, options, recipe, message):
    with pytest.raises(ValueError, match=message):
        build(name, options, recipe)


@pytest.mark.parametrize(("name", "options"), [(c[0], c[1]) for c in CASES[:3:2]])
def test_views_are_one_batch_to_batch_norm(name, options):
    method = build(name, options, RECIPE)
    features = torch.randn(2, 10, 6)
    together = method.embed(features)
    assert torch.allclose(together, method.projector(features.flatten(0, 1)).view(2, 10, -1))
    apart = torch.stack([method.projector(view) for view in features])
    assert not torch.allclose(together, apart, atol=1e-3)


def test_vicreg_is_the_mean_over_pairs_of_views():
    method = build("vicreg", VICRegOptions(SMALL), AugmentationRecipe(size=8, views=3))
    features, batch = views_of(method, AugmentationRecipe(size=8, views=3))
    z = method.embed(features)
    pairs = [method.loss(z[i], z[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(method(features, batch)["loss"], sum(pairs) / 3)
    assert method.subspaces() is None


def test_mast_subspaces_and_logs():
    method = build("mast", MASTOptions(SMALL), RECIPE)
    features, batch = views_of(method, RECIPE, images=200)
    terms = method(features, batch)
    assert {f"invariance/{name}" for name in NAMES} <= terms.keys()
    found = method.subspaces()
    assert found.names == NAMES
    assert found.masks.shape == (5, 8) and not found.masks.requires_grad
    assert found.effective_dimensions.shape == (5,) and found.overlap.shape == (5, 5)


def test_mast_reads_only_used_pairs():
    method = build("mast", MASTOptions(SMALL), RECIPE).eval()
    features, batch = views_of(method, RECIPE)
    batch.pair_subspace = torch.full_like(batch.pair_subspace, -1)
    assert method(features, batch)["invariance"] == 0


def test_masks_do_not_decay():
    method = build("mast", MASTOptions(SMALL), RECIPE)
    names = dict(method.named_parameters())
    assert method.no_weight_decay() == {"loss.masks.logits"}
    assert method.no_weight_decay() <= names.keys()
    assert build("vicreg", VICRegOptions(SMALL), RECIPE).no_weight_decay() == set()
