import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from mast_ext.augment import COLUMNS, AugmentationParameters, AugmentationRecipe, ViewBatch
from mast_ext.methods import METHODS, Encoded, EquiMod, EquiModOptions
from mast_ext.methods.byol import BYOLOptions
from mast_ext.methods.mast import MASTOptions
from mast_ext.methods.moco import MoCoOptions
from mast_ext.methods.simclr import SimCLROptions
from mast_ext.methods.vicreg import VICRegOptions

RECIPE = AugmentationRecipe(size=8)
IMAGES, FEATURES = 24, 6
OPTIONS = EquiModOptions(0.5, (12, 7), 5, temperature=0.2)

# method, options, views without the plain one
BASES = [
    ("simclr", SimCLROptions((12, 8)), 2),
    ("vicreg", VICRegOptions((12, 8)), 2),
    ("moco", MoCoOptions((12, 8), queue=20), 2),
    ("moco", MoCoOptions((12, 8), queue=20, symmetric=True), 2),
    ("byol", BYOLOptions((12, 8)), 2),
    ("mast", MASTOptions((12, 8)), 2),
    ("mast", MASTOptions((12, 8), masks="blocks", base="nt_xent"), 2),
]
each_base = pytest.mark.parametrize(("name", "options", "views"), BASES)


def build(name="simclr", options=BASES[0][1], recipe=RECIPE, equimod=OPTIONS):
    torch.manual_seed(0)
    base = METHODS[name](FEATURES, recipe, options)
    return EquiMod(base, FEATURES, recipe, equimod)


def batch_of(method, recipe=RECIPE):
    sizes = torch.full((IMAGES, 2), 8)
    plan = method.policy(recipe).plan(0, 0, torch.arange(IMAGES), sizes)
    images = torch.randn(len(plan.rows), IMAGES, 3, 8, 8)
    return ViewBatch(images, plan.rows, torch.arange(IMAGES), {}, plan.changed)


def targets_of(method, batch):
    wanted = method.teacher()
    if wanted is None:
        return None
    return torch.randn(*batch.images[wanted.views].shape[:2], wanted.head.dim)


@each_base
def test_loss_is_the_sum_and_reaches_every_parameter(name, options, views):
    method = build(name, options)
    batch = batch_of(method)
    assert len(batch.images) == views + 1
    features = torch.randn(views + 1, IMAGES, FEATURES, requires_grad=True)
    terms = method(Encoded(features, targets_of(method, batch)), batch)
    expected = terms[name] + 0.5 * terms["equivariance"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    assert [key for key, value in terms.items() if value.requires_grad] == ["loss"]
    terms["loss"].backward()
    assert (features.grad.abs().sum((1, 2)) > 0).all()
    still = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@each_base
def test_base_sees_no_plain_view(name, options, views, monkeypatch):
    method = build(name, options)
    batch, seen = batch_of(method), []
    features = torch.randn(views + 1, IMAGES, FEATURES)

    def look(encoded, batch):
        seen.append((encoded.features, batch, encoded.targets))
        return {"loss": encoded.features.sum(), "log": torch.zeros(())}

    monkeypatch.setattr(method.base, "forward", look)
    targets = targets_of(method, batch)
    assert "log" in method(Encoded(features, targets), batch)
    ((shown, hidden, passed),) = seen
    assert torch.equal(shown, features[:views][method.base.student_views])
    assert torch.equal(hidden.images, batch.images[:views])
    assert torch.equal(hidden.parameters, batch.parameters[:views])
    assert hidden.changed is batch.changed
    assert passed is targets
    # As the base alone arranges its views.
    plan = method.base.policy(RECIPE).plan(0, 0, torch.arange(IMAGES), torch.full((IMAGES, 2), 8))
    assert torch.equal(hidden.parameters, plan.rows)
    assert (plan.changed is None) == (name != "mast")
    assert plan.changed is None or torch.equal(hidden.changed, plan.changed)


@pytest.mark.parametrize(("options", "views"), [(b[1], b[2]) for b in BASES if b[0] == "moco"])
def test_teacher_sees_no_plain_view(options, views):
    method = build("moco", options)
    wanted, plain = method.teacher(), method.base.teacher()
    indices = torch.arange(views + 1)
    assert torch.equal(indices[wanted.views], indices[:views][plain.views])
    assert (wanted.head, wanted.momentum) == (plain.head, plain.momentum)
    assert method.forwards(views + 1) == views + 1 + len(indices[:views][plain.views])


@pytest.mark.parametrize("views", [slice(None), slice(-1, None)])
def test_teacher_of_an_open_slice_sees_no_plain_view(views, monkeypatch):
    method = build("moco", MoCoOptions((12, 8), queue=20))
    spec = replace(method.base.teacher(), views=views)
    monkeypatch.setattr(method.base, "teacher", lambda: spec)
    assert list(range(3)[method.teacher().views]) == list(range(2)[views])


def by_hand(method, features, batch):
    """Embeddings, predictions and the plain image's embedding, view by view in evaluation mode."""
    rows = AugmentationParameters(batch.parameters).standardized(RECIPE)
    start = method.projector(features[-1])
    actual, predicted = [], []
    for view in range(len(features) - 1):
        actual.append(method.projector(features[view]))
        encoded = method.encoder(rows[view])
        predicted.append(method.predictor(torch.cat((start, encoded), 1)))
    return torch.stack(actual), torch.stack(predicted), start


def test_loss_and_gains_by_hand():
    """Loss and gains of predictions that belong to their own view's parameters."""
    method = build().eval()
    batch, features = batch_of(method), torch.randn(3, IMAGES, FEATURES)
    terms = method(Encoded(features), batch)
    actual, predicted, start = by_hand(method, features, batch)

    rows = normalize(torch.cat((actual, predicted)).flatten(0, 1), dim=1)
    logits = (rows @ rows.T / 0.2).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(rows)).roll(len(rows) // 2)
    torch.testing.assert_close(terms["equivariance"], cross_entropy(logits, partner))

    gain = cosine_similarity(actual, predicted, -1) - cosine_similarity(actual, start[None], -1)
    torch.testing.assert_close(terms["equivariance_gain"], gain.mean())
    for name, column in (("flip", "flip"), ("color", "jitter"), ("grayscale", "grayscale")):
        applied = batch.parameters[:-1, :, COLUMNS.index(column)] == 1
        assert 0 < applied.sum() < applied.numel()
        torch.testing.assert_close(terms[f"equivariance_gain/{name}"], gain[applied].mean())
    cropped = (batch.parameters[:-1, :, :4] != torch.tensor([0.0, 0, 1, 1])).any(-1)
    torch.testing.assert_close(terms["equivariance_gain/crop"], gain[cropped].mean())
    assert {key for key in terms if "/" in key} == {
        f"equivariance_gain/{name}" for name in RECIPE.augmentations
    }


def test_gain_of_what_no_view_has():
    method = build()
    batch = batch_of(method)
    batch.parameters[..., COLUMNS.index("flip")] = 0
    terms = method(Encoded(torch.randn(3, IMAGES, FEATURES)), batch)
    assert math.isnan(terms["equivariance_gain/flip"])
    assert not math.isnan(terms["equivariance_gain"])


def test_one_batch_to_batch_norm():
    """The plain view is normalized together with the others."""
    method = build()
    features = torch.randn(3, IMAGES, FEATURES) + torch.tensor([0.0, 0.0, 9.0])[:, None, None]
    seen = []
    method.projector.register_forward_hook(lambda module, args, out: seen.append(out))
    method(Encoded(features), batch_of(method))
    assert len(seen) == 1 and len(seen[0]) == 3 * IMAGES


def test_delegates_to_its_base():
    method = build("mast", MASTOptions((12, 8), uncertainty=True))
    assert method.name == "mast+equimod"
    features = torch.randn(4, FEATURES)
    assert torch.equal(method.eval().embed(features), method.base.embed(features))
    assert method.subspaces().names == method.base.subspaces().names
    decayless = {f"base.{name}" for name in method.base.no_weight_decay()}
    assert method.no_weight_decay() == decayless and decayless
    assert method.no_weight_decay() <= dict(method.named_parameters()).keys()
    torch.nn.init.normal_(method.base.uncertainty[-1].weight)
    batch = batch_of(method)
    found = method.pair_uncertainty(batch)
    alone = replace(batch, parameters=batch.parameters[:-1])
    assert torch.equal(found, method.base.pair_uncertainty(alone)) and found.std() > 0
    plain = build()
    assert plain.subspaces() is None and plain.teacher() is None
    assert plain.policy(RECIPE).num_views() == plain.forwards(3) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -0.1}, "equimod.weight must be at least 0"),
        ({"weight": float("nan")}, "equimod.weight must be a number, got nan"),
        ({"weight": float("inf")}, "equimod.weight must be at least 0 and finite"),
        ({"parameters": 0}, "equimod.parameters must be at least 1"),
        ({"projector": ()}, "projector widths"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        build(equimod=replace(OPTIONS, **values))
