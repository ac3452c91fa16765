from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch.nn.functional import normalize

from mast_ext.augment import AugmentationParameters, AugmentationRecipe, Sharing, ViewBatch
from mast_ext.methods import METHODS, Encoded, SharedOptions
from mast_ext.methods.barlow_twins import BarlowTwinsOptions
from mast_ext.methods.byol import BYOLOptions
from mast_ext.methods.lejepa import LeJEPAOptions
from mast_ext.methods.mast import MASTOptions
from mast_ext.methods.moco import MoCoOptions
from mast_ext.methods.simclr import SimCLROptions
from mast_ext.methods.simsiam import SimSiamOptions
from mast_ext.methods.vicreg import VICRegOptions

RECIPE = AugmentationRecipe(size=8)
PLAIN = AugmentationRecipe(size=8, crop_scale=(1, 1), flip=0, jitter=0, grayscale=0)
SMALL = (12, 8)  # projector
KEEP = SharedOptions(freed=0.25)
KINDS = ("invariant to", "freed by")

# method, options, recipe, views
CASES = [
    ("vicreg", VICRegOptions(SMALL), RECIPE, 2),
    ("vicreg", VICRegOptions(SMALL), AugmentationRecipe(size=8, views=3), 3),
    ("simclr", SimCLROptions(SMALL), RECIPE, 2),
    ("simclr", SimCLROptions(SMALL), AugmentationRecipe(size=8, views=3), 3),
    ("simclr", SimCLROptions(SMALL, negatives="all_views"), AugmentationRecipe(views=4), 4),
    ("moco", MoCoOptions(SMALL, queue=30), RECIPE, 2),
    ("moco", MoCoOptions(SMALL, queue=30, symmetric=True), RECIPE, 2),
    ("barlow_twins", BarlowTwinsOptions(SMALL), RECIPE, 2),
    ("barlow_twins", BarlowTwinsOptions(SMALL), AugmentationRecipe(size=8, views=3), 3),
    ("byol", BYOLOptions(SMALL, 5), RECIPE, 2),
    ("byol", BYOLOptions(SMALL, 5), AugmentationRecipe(size=8, views=3), 3),
    ("simsiam", SimSiamOptions(SMALL, 5), RECIPE, 2),
    ("simsiam", SimSiamOptions(SMALL, 5), AugmentationRecipe(size=8, views=3), 3),
    ("mast", MASTOptions(SMALL), RECIPE, 2),
    ("mast", MASTOptions(SMALL, shared=dict.fromkeys(("crop", "hue", "flip"), KEEP)), RECIPE, 2),
    ("mast", MASTOptions(SMALL, shared={"hue": SharedOptions(share=0.0, freed=0.25)}), RECIPE, 2),
    ("mast", MASTOptions(SMALL, shared={"hue": SharedOptions(share=1.0)}), RECIPE, 2),
    ("mast", MASTOptions(SMALL, masks="blocks"), RECIPE, 2),
    ("mast", MASTOptions(SMALL, base="nt_xent"), RECIPE, 2),
    ("mast", MASTOptions(SMALL, base="nt_xent", masks="blocks"), RECIPE, 2),
    ("mast", MASTOptions(SMALL, uncertainty=True), RECIPE, 2),
    ("mast", MASTOptions(SMALL, uncertainty=True, base="nt_xent"), RECIPE, 2),
]
IDS = [f"{name}-{views}-{i}" for i, (name, _, _, views) in enumerate(CASES)]

REFUSED = [
    ("vicreg", VICRegOptions(SMALL), AugmentationRecipe(views=1), "augment.views of at least 2"),
    ("vicreg", VICRegOptions(()), RECIPE, "projector widths"),
    ("simclr", SimCLROptions(SMALL), AugmentationRecipe(views=1), "augment.views of at least 2"),
    ("simclr", SimCLROptions(SMALL, temperature=0.0), RECIPE, "temperature must be"),
    ("moco", MoCoOptions(SMALL), AugmentationRecipe(views=3), "augment.views must be 2, got 3"),
    ("moco", MoCoOptions(SMALL, queue=0), RECIPE, "moco.queue must hold at least 1 key"),
    ("moco", MoCoOptions(SMALL, momentum=1.5), RECIPE, "momentum must be from 0 to 1"),
    ("moco", MoCoOptions(SMALL, temperature=-1.0), RECIPE, "temperature must be"),
    *(
        (name, options(SMALL), AugmentationRecipe(views=1), f"{name} needs augment.views of at")
        for name, options in (
            ("barlow_twins", BarlowTwinsOptions),
            ("byol", BYOLOptions),
            ("simsiam", SimSiamOptions),
        )
    ),
    ("byol", BYOLOptions(SMALL, momentum=-0.1), RECIPE, "momentum must be from 0 to 1"),
    ("byol", BYOLOptions((12, 0)), RECIPE, "projector widths"),
    ("simsiam", SimSiamOptions((12, 0)), RECIPE, "projector widths"),
    ("mast", MASTOptions(SMALL), PLAIN, "'hue', which the recipe does not change"),
    ("mast", MASTOptions(SMALL), AugmentationRecipe(hue=0.0), "'hue', which the recipe does not"),
    ("mast", MASTOptions(SMALL, shared={"tint": KEEP}), RECIPE, "shared must name crop, .*'tint'"),
    (
        "mast",
        MASTOptions(SMALL, shared={"crop": KEEP, "geometry": KEEP}),
        RECIPE,
        "not both: geometry is crop and flip",
    ),
    ("mast", MASTOptions(SMALL, base="nt_xent", temperature=0.0), RECIPE, "temperature must be"),
    ("mast", MASTOptions(SMALL, price=-1.0), RECIPE, "price must be positive"),
    ("mast", MASTOptions(SMALL), AugmentationRecipe(views=4), "augment.views must be 2, got 4"),
]


def build(name, options, recipe, num_features=6):
    torch.manual_seed(0)
    return METHODS[name](num_features, recipe, options)


def views_of(method, recipe, images=40):
    """Features of the student's views and the batch, as the method's policy arranges them."""
    plan = method.policy(recipe).plan(0, 0, torch.arange(images), torch.full((images, 2), 8))
    count = len(plan.rows)
    batch = ViewBatch(
        torch.empty(count, images, 3, 8, 8),
        plan.rows,
        torch.arange(images),
        {},
        plan.changed,
    )
    return torch.randn(count, images, 6)[method.student_views].requires_grad_(), batch


def targets_of(method, batch):
    """What a teacher says of its views; None without one."""
    wanted = method.teacher()
    if wanted is None:
        return None
    views = batch.images[wanted.views]
    return torch.randn(*views.shape[:2], wanted.head.dim)


@pytest.mark.parametrize(("name", "options", "recipe", "views"), CASES, ids=IDS)
def test_loss_reaches_features_and_every_parameter(name, options, recipe, views):
    method = build(name, options, recipe)
    features, batch = views_of(method, recipe)
    assert len(batch.images) == method.policy(recipe).num_views() == views
    terms = method(Encoded(features, targets_of(method, batch)), batch)
    assert terms["loss"].shape == () and torch.isfinite(terms["loss"])
    assert not any(value.requires_grad for key, value in terms.items() if key != "loss")
    terms["loss"].backward()
    assert features.grad.abs().sum() > 0
    still = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    # The uncertainty starts at 0 whatever its hidden layer says.
    assert [name for name in still if not name.startswith("uncertainty.0.")] == []


@pytest.mark.parametrize(("name", "options", "recipe", "message"), REFUSED)
def test_refuses(name, options, recipe, message):
    with pytest.raises(ValueError, match=message):
        build(name, options, recipe)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vicreg", VICRegOptions(SMALL)),
        ("simclr", SimCLROptions(SMALL)),
        ("moco", MoCoOptions(SMALL, symmetric=True)),
        ("barlow_twins", BarlowTwinsOptions(SMALL)),
        ("byol", BYOLOptions(SMALL)),
        ("simsiam", SimSiamOptions(SMALL)),
        ("mast", MASTOptions(SMALL)),
    ],
)
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
    assert torch.allclose(method(Encoded(features), batch)["loss"], sum(pairs) / 3)
    assert method.subspaces() is None


@pytest.mark.parametrize("negatives", ["pairs", "all_views"])
def test_simclr_is_nt_xent_of_all_views(negatives):
    recipe = AugmentationRecipe(size=8, views=3)
    method = build("simclr", SimCLROptions(SMALL, 0.3, negatives), recipe)
    features, batch = views_of(method, recipe)
    z = normalize(method.embed(features), dim=-1)
    losses = []
    for i, j in permutations(range(3), 2):
        if negatives == "pairs":
            rows, anchors = z[[i, j]].flatten(0, 1), torch.arange(40)
        else:
            rows, anchors = z.flatten(0, 1), torch.arange(40) + 40 * i
        logits = z[i] @ rows.T / 0.3
        logits[torch.arange(40), anchors] = -torch.inf
        losses.append(logits.logsumexp(1) - (z[i] * z[j]).sum(1) / 0.3)
    assert torch.allclose(method(Encoded(features), batch)["loss"], torch.stack(losses).mean())


@pytest.mark.parametrize("masks", ["learned", "blocks"])
def test_mast_subspaces(masks):
    shared = {"hue": KEEP, "geometry": SharedOptions(), "blur": SharedOptions(freed=0.5)}
    recipe = AugmentationRecipe(size=8, blur=0.5)
    method = build("mast", MASTOptions(SMALL, shared=shared, masks=masks), recipe)
    found = method.subspaces()
    assert found.names == ("hue", "geometry", "blur")
    assert found.masks.shape == (3, 8) and not found.masks.requires_grad
    assert torch.equal(found.masks, method.loss.masks().detach())
    torch.testing.assert_close(found.freed, torch.tensor([2.0, 0, 4]), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.overlap, method.loss.masks.overlap())
    dims = found.dimensions()
    assert list(dims) == [f"{kind} {name}" for name in ("hue", "blur") for kind in KINDS]
    for k, name in ((0, "hue"), (2, "blur")):
        invariant, freed = dims[f"invariant to {name}"], dims[f"freed by {name}"]
        assert len(freed) == round(8 * shared[name]["freed"])
        assert sorted([*invariant.tolist(), *freed.tolist()]) == list(range(8))
        assert found.masks[k, invariant].min() >= found.masks[k, freed].max()


def test_mast_without_freed_dimensions_is_one_space():
    method = build("mast", MASTOptions(SMALL, shared={"hue": SharedOptions()}), RECIPE)
    assert method.subspaces() is None
    assert (method.loss.masks() == 1).all()


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        (MASTOptions(SMALL), 5.0),
        (MASTOptions(SMALL, price=0.2), 5.0),
        (MASTOptions(SMALL, base="nt_xent"), 1.0),
        (MASTOptions(SMALL, base="nt_xent", invariance=2.0), 2.0),
    ],
)
def test_mast_is_a_weighted_sum_of_what_it_logs(options, weight):
    method = build("mast", options, RECIPE)
    features, batch = views_of(method, RECIPE)
    terms = method(Encoded(features), batch)
    expected = weight * terms["invariance"]
    if options.base == "vicreg":
        expected = expected + 25 * terms["variance"] + terms["covariance"]
    if options.price is not None:
        expected = expected + weight * options.price * terms["freed"]
    assert ("variance" in terms) == (options.base == "vicreg")
    assert torch.allclose(terms["loss"], expected)


@pytest.mark.parametrize("epochs", [0.5, 9.0, 100.0])
def test_mast_shares_from_a_fraction_of_the_epochs_on(epochs):
    shared = {"hue": KEEP, "flip": SharedOptions(share=0.25, start=1 / 3)}
    options = METHODS["mast"].complete(MASTOptions(SMALL, shared=shared), epochs)
    assert METHODS["mast"].complete(options, 1000.0) == options
    policy = build("mast", options, RECIPE).policy(RECIPE)
    assert policy.sharing == {"hue": Sharing(0.5, 0), "flip": Sharing(0.25, round(epochs / 3))}


def test_mast_needs_to_know_what_views_share():
    method = build("mast", MASTOptions(SMALL), RECIPE)
    features, batch = views_of(method, RECIPE)
    with pytest.raises(ValueError, match="needs views of a SharedPolicy"):
        method(Encoded(features), replace(batch, changed=None))


def test_mast_compares_freed_dimensions_only_where_they_are_shared():
    """Views of one hue are all that the dimensions freed by hue learn from."""
    shared = {"hue": SharedOptions(freed=0.25)}
    options = MASTOptions(SMALL, shared=shared, masks="blocks", variance=0.0, covariance=0.0)
    method = build("mast", options, RECIPE).eval()
    _, batch = views_of(method, RECIPE)
    changed = batch.changed[:, 0]
    assert 5 < changed.sum() < 35
    method.projector = torch.nn.Identity()
    embeddings = torch.randn(2, 40, 8, requires_grad=True)
    method(Encoded(embeddings), batch)["loss"].backward()
    gradient = embeddings.grad
    free = method.subspaces().dimensions()["freed by hue"]
    assert (gradient[:, changed][..., free] == 0).all()
    assert (gradient[:, ~changed][..., free] != 0).any(-1).all()
    assert (gradient != 0).any(-1).all()


def test_mast_pairs_are_as_uncertain_as_their_parameters_say():
    """The same for views in the other order; of an image alone; and it learns."""
    method = build("mast", MASTOptions(SMALL, uncertainty=True), RECIPE)
    _, batch = views_of(method, RECIPE)
    assert (method.pair_uncertainty(batch) == 0).all()
    torch.nn.init.normal_(method.uncertainty[-1].weight)
    found = method.pair_uncertainty(batch)
    assert found.shape == (40,) and found.std() > 0
    swapped = replace(batch, parameters=batch.parameters.flip(0))
    torch.testing.assert_close(method.pair_uncertainty(swapped), found)
    part = replace(batch, parameters=batch.parameters[:, 3:9], changed=batch.changed[3:9])
    torch.testing.assert_close(method.pair_uncertainty(part), found[3:9])
    other = method.pair_uncertainty(replace(batch, changed=~batch.changed))
    assert not torch.allclose(other, found)
    assert build("mast", MASTOptions(SMALL), RECIPE).pair_uncertainty(batch) is None


def test_mast_learns_which_pairs_are_uncertain():
    """Of features that are the further apart the less the crops overlap."""
    method = build("mast", MASTOptions((8,), uncertainty=True, masks="blocks"), RECIPE)
    _, batch = views_of(method, RECIPE, images=200)
    distance = 1 - AugmentationParameters(batch.parameters).crop_iou(0, 1)
    x = torch.randn(200, 6)
    features = torch.stack((x, x + 2 * distance[:, None] * torch.randn(200, 6)))
    optimizer = torch.optim.Adam(method.uncertainty.parameters(), 0.01)
    logs = []
    for _ in range(200):
        terms = method(Encoded(features), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        logs.append(terms["uncertainty"].item())
    assert logs[-1] < logs[0]
    found = torch.stack((method.pair_uncertainty(batch).detach(), distance))
    assert torch.corrcoef(found)[0, 1] > 0.5


def test_masks_do_not_decay():
    method = build("mast", MASTOptions(SMALL, uncertainty=True), RECIPE)
    names = {name for name, _ in method.named_parameters()}
    assert method.no_weight_decay() == {name for name in names if name.startswith("loss.masks.")}
    assert method.no_weight_decay()
    fixed = build("mast", MASTOptions(SMALL, masks="blocks"), RECIPE)
    assert fixed.no_weight_decay() == set()
    assert build("vicreg", VICRegOptions(SMALL), RECIPE).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": {}}, "mast.shared must map at least one augmentation to"),
        (
            {"shared": {"hue": SharedOptions(share=1.5)}},
            r"share of hue must be from 0 to 1, got 1.5",
        ),
        ({"shared": {"hue": SharedOptions(freed=1)}}, r"freed of hue must be 0, or from .*, got 1"),
        (
            {"shared": {"flip": {"freed": 0.9999999}}},
            "freed of flip must be 0, or",
        ),
        ({"epochs": 0.0}, "mast.epochs must be positive"),
        ({"price": 0.2, "masks": "blocks"}, "mast.price is for .* got vicreg and blocks"),
        ({"price": 0.2, "base": "nt_xent"}, "mast.price is for .* got nt_xent and learned"),
        (
            {"shared": {"blur": SharedOptions(start=-1)}},
            "mast.shared: start of blur must be from 0",
        ),
        ({"shared": ("hue",)}, "mast.shared must map at least one augmentation to its settings"),
        ({"shared": {"hue": {"fred": 0.1}}}, "hue takes share, freed and start, got 'fred'"),
        ({"masks": "round"}, "mast.masks must be 'learned' or 'blocks', got 'round'"),
    ],
)
def test_mast_options_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        MASTOptions(SMALL, **options)


@pytest.mark.parametrize(
    ("name", "options", "forwards"),
    [
        ("vicreg", VICRegOptions(SMALL), 2),
        ("mast", MASTOptions(SMALL), 2),
        ("moco", MoCoOptions(SMALL), 2),
        ("moco", MoCoOptions(SMALL, symmetric=True), 4),
    ],
)
def test_forwards_count_student_and_teacher(name, options, forwards):
    method = build(name, options, RECIPE)
    assert method.forwards(method.policy(RECIPE).num_views()) == forwards


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (BYOLOptions, {"predictor": 0}, "byol.predictor must be at least 1, got 0"),
        (SimSiamOptions, {"predictor": 0}, "simsiam.predictor must be at least 1, got 0"),
        (VICRegOptions, {"covariance": -1.0}, "vicreg.covariance must be at least 0, got -1"),
        (VICRegOptions, {"invariance": float("inf")}, "vicreg.invariance must be at least 0"),
        (MASTOptions, {"variance": -1.0}, "mast.variance must be at least 0, got -1"),
        (LeJEPAOptions, {"regularization": 2.0}, "lejepa.regularization must be from 0 to 1"),
        (LeJEPAOptions, {"slices": 0}, "lejepa.slices must be at least 1, got 0"),
    ],
)
def test_options_are_named(options, values, message):
    with pytest.raises(ValueError, match=message):
        options(**values)


def test_barlow_twins_options_refuse():
    with pytest.raises(ValueError, match="barlow_twins.redundancy must be at least 0, got -1"):
        BarlowTwinsOptions(SMALL, redundancy=-1)
    with pytest.raises(ValueError, match="barlow_twins.chunks must be at least 0, got -1"):
        BarlowTwinsOptions(SMALL, chunks=-1)


# method, options: what its loss of two views is, it says of every pair of views of every image
WITH_PAIRS = [
    ("simclr", SimCLROptions(SMALL)),
    ("simsiam", SimSiamOptions(SMALL)),
    ("byol", BYOLOptions(SMALL)),
]


@pytest.mark.parametrize(("name", "options"), WITH_PAIRS)
def test_pair_losses_are_those_of_training_on_the_pair(name, options):
    method = build(name, options, RECIPE).eval()
    features = torch.randn(4, 10, 6)
    targets = torch.randn(4, 10, 8) if method.teacher() else None
    losses = method.pair_losses(Encoded(features, targets), None)
    assert losses.shape == (4, 4, 10)
    for i, j in ((0, 1), (1, 3), (0, 2)):
        pair = [i, j]
        taught = None if targets is None else targets[pair]
        expected = method(Encoded(features[pair], taught), None)["loss"]
        torch.testing.assert_close((losses[i, j] + losses[j, i]).mean() / 2, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vicreg", VICRegOptions(SMALL)),
        ("barlow_twins", BarlowTwinsOptions(SMALL)),
    ],
)
def test_pair_losses_are_the_invariance_terms(name, options):
    method = build(name, options, RECIPE).eval()
    features = torch.randn(3, 10, 6)
    losses, z = method.pair_losses(Encoded(features), None), method.embed(features)
    assert torch.equal(losses, method.loss.pair_losses(z))
    if name == "vicreg":
        torch.testing.assert_close(losses[0, 2].mean(), 5 * (z[0] - z[2]).square().mean())


def test_mast_pair_losses_are_of_what_the_views_do_not_share():
    method = build("mast", MASTOptions(SMALL), RECIPE).eval()
    _, batch = views_of(method, RECIPE)
    features = torch.randn(3, 40, 6)
    losses, z = method.pair_losses(Encoded(features), batch), method.embed(features)
    assert torch.equal(losses, method.loss.pair_losses(z, batch.changed))
    swapped = method.pair_losses(Encoded(features), replace(batch, changed=~batch.changed))
    assert not torch.allclose(losses, swapped)


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_pair_losses_are_queries_against_keys(symmetric):
    method = build("moco", MoCoOptions(SMALL, queue=9, symmetric=symmetric), RECIPE)
    features, targets = torch.randn(3, 10, 6), torch.randn(3, 10, 8)
    queue, queries = method.queue.bank.clone(), method.embed(features)
    losses = method.pair_losses(Encoded(features, targets), None)
    for i in range(3):
        for j in range(3):
            expected = method.loss(queries[i], targets[j], queue)
            torch.testing.assert_close(losses[i, j].mean(), expected)
    assert torch.equal(method.queue.bank, queue)


@pytest.mark.parametrize(
    ("name", "options"), [("moco", MoCoOptions(SMALL, queue=9)), ("byol", BYOLOptions(SMALL))]
)
def test_teacher_judges_alone(name, options):
    method = build(name, options, RECIPE)
    targets = torch.randn(3, 10, 8)
    losses = method.teacher_pair_losses(targets)
    assert losses.shape == (3, 3, 10)
    unit = normalize(targets, dim=-1)
    cosine = torch.einsum("ibd,jbd->ijb", unit, unit)
    if name == "byol":
        torch.testing.assert_close(losses, -cosine)
    else:  # of one query, the harder the less alike
        assert torch.equal(losses[0].argmax(0), (-cosine[0]).argmax(0))


def test_teacherless_methods_have_no_teacher_to_judge():
    with pytest.raises(ValueError, match="simclr has no teacher"):
        build("simclr", SimCLROptions(SMALL), RECIPE).teacher_pair_losses(torch.randn(2, 4, 8))
