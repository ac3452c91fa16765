from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from mast_ext.augment import COLUMNS, AugmentationParameters, AugmentationRecipe, ViewBatch
from mast_ext.augment.parameters import SHAREABLE
from mast_ext.methods import (
    METHODS,
    Encoded,
    EquiMod,
    EquiModOptions,
    HardViewOptions,
    HardViews,
    encode,
)
from mast_ext.methods.barlow_twins import BarlowTwinsOptions
from mast_ext.methods.byol import BYOLOptions
from mast_ext.methods.mast import MASTOptions
from mast_ext.methods.moco import MoCoOptions
from mast_ext.methods.simclr import SimCLROptions
from mast_ext.methods.simsiam import SimSiamOptions
from mast_ext.methods.vicreg import VICRegOptions
from mast_ext.models import EMATeacher, forward_views

RECIPE = AugmentationRecipe(size=8)
IMAGES, FEATURES, VIEWS = 24, 6, 4
SMALL = (12, 8)
OPTIONS = HardViewOptions(VIEWS)

METHOD_OPTIONS = {
    "vicreg": VICRegOptions(SMALL),
    "barlow_twins": BarlowTwinsOptions(SMALL),
    "simclr": SimCLROptions(SMALL, 0.3),
    "moco": MoCoOptions(SMALL, queue=20),
    "byol": BYOLOptions(SMALL, 16),
    "simsiam": SimSiamOptions(SMALL, 16),
    "mast": MASTOptions(SMALL),
}
each_method = pytest.mark.parametrize("name", METHOD_OPTIONS)

# changes of the options, part of the sentence
OPTIONS_REFUSED = [
    ({"views": 1}, r"hard_views.views must be 0 \(off\) or at least 2, got 1"),
    ({"views": -4}, "hard_views.views"),
    ({"every": 0}, "hard_views.every must be at least 1, got 0"),
    ({"warmup": -1.0}, "hard_views.warmup must be at least 0"),
    ({"warmup": float("nan")}, "hard_views.warmup must be a number, got nan"),
    ({"size": 0}, "hard_views.size must be at least 1, got 0"),
    ({"precision": "fp8"}, "hard_views.precision must be 'same' or 'bf16', got 'fp8'"),
    ({"differ": "color"}, "hard_views.differ must be 'all' or 'geometry', got 'color'"),
    ({"differ": "geometry", "candidates": "anchor"}, "candidates must be all or even_odd where"),
    ({"mode": "eval"}, "hard_views.mode must be 'train' or 'frozen', got 'eval'"),
    ({"scorer": "both"}, "hard_views.scorer must be 'student' or 'teacher', got 'both'"),
]

# method, its options, recipe, changes of the options, part of the sentence
REFUSED = [
    ("simclr", None, replace(RECIPE, views=3), {}, "trains on two views of an image, got 3"),
    ("simclr", None, RECIPE, {"scorer": "teacher"}, "scorer teacher: simclr has no teacher"),
    ("simclr", None, RECIPE, {"size": 9}, "at most the views' 8 pixels, got 9"),
    ("simclr", None, RECIPE, {"candidates": "some"}, "candidates must be"),
    ("simclr", None, RECIPE, {"strategy": "best"}, "strategy must be"),
    ("simclr", None, RECIPE, {"strategy": "softmax", "temperature": 0.0}, "temperature must be"),
    ("simclr", None, RECIPE, {"fraction": 1.5}, "fraction must be from 0 to 1"),
]

# every, warm-up in epochs of 10 steps, which of 25 steps select
SCHEDULES = [
    (1, 0.0, list(range(25))),
    (1, 0.5, list(range(5, 25))),
    (3, 0.0, [2, 5, 8, 11, 14, 17, 20, 23]),
    (4, 1.1, [11, 15, 19, 23]),
    (10, 0.0, [9, 19]),
    (1, 9.0, []),
]


class Backbone(nn.Module):
    """Images to features, with what batches and chance change in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, 3, bias=False)
        self.norm, self.dropout = nn.BatchNorm2d(FEATURES), nn.Dropout(0.0)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.dropout(self.norm(self.conv(images)).relu()).mean((2, 3))


def build(name, options=OPTIONS, equimod=False, recipe=RECIPE, method_options=None):
    torch.manual_seed(0)
    method = METHODS[name](FEATURES, recipe, method_options or METHOD_OPTIONS[name])
    if equimod:
        method = EquiMod(method, FEATURES, recipe, EquiModOptions(1.0, SMALL, 5))
    backbone, wanted = Backbone(), method.teacher()
    teacher = None
    if wanted is not None:
        teacher = EMATeacher(nn.Sequential(backbone, wanted.head))
        for parameter in teacher.parameters():
            parameter.mul_(1.1).add_(0.05)  # that it differs from the student
    return HardViews(method, recipe, options), backbone, teacher


def batch_of(hard_views):
    sizes = torch.full((IMAGES, 2), 40)
    plan = hard_views.policy.plan(0, 0, torch.arange(IMAGES), sizes)
    images = torch.randn(len(plan.rows), IMAGES, 3, 8, 8)
    return ViewBatch(images, plan.rows, torch.arange(IMAGES), {}, plan.changed)


def nt_xent(x, y, temperature):
    """Per image, from equation 1 of SimCLR: both views as anchors, negatives of these two views."""
    rows = normalize(torch.cat((x, y)), dim=1)
    logits = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(rows)).roll(len(x))
    terms = logits.logsumexp(1) - logits[torch.arange(len(rows)), partner]
    return terms.view(2, -1).mean(0)


def brute_force(method, features, targets, changed):
    """Score of every pair as published: per image, symmetric, pair by pair."""
    name, z = method.name, method.embed(features)
    scores = {}
    for i, j in combinations(range(len(features)), 2):
        if name == "simclr":
            scores[i, j] = nt_xent(z[i], z[j], 0.3)
        elif name == "vicreg":
            scores[i, j] = (z[i] - z[j]).square().mean(1)
        elif name == "barlow_twins":
            normal = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, unbiased=False)
            scores[i, j] = (normal[i] - normal[j]).square().sum(1)
        elif name == "mast":
            weights = torch.where(changed[..., None], method.loss.masks().square(), 1.0).prod(1)
            scores[i, j] = (weights * (z[i] - z[j]).square()).sum(1) / weights.sum(1)
        else:
            other = z.detach() if name == "simsiam" else targets
            p = method.predictor(z.flatten(0, 1)).view_as(z)
            ij, ji = cosine_similarity(p[i], other[j], -1), cosine_similarity(p[j], other[i], -1)
            scores[i, j] = -(ij + ji) / 2
    pairs = torch.tensor(list(scores))
    return pairs[torch.stack(list(scores.values())).argmax(0)].T


@pytest.mark.parametrize("equimod", [False, True])
@pytest.mark.parametrize("name", [name for name in METHOD_OPTIONS if name != "moco"])
def test_choice_is_that_of_brute_force(name, equimod):
    """And pixels and parameters of the chosen views stay together, and what they share."""
    options = replace(OPTIONS, differ="all")
    hard_views, backbone, teacher = build(name, options, equimod)
    batch = batch_of(hard_views)
    chosen, _ = hard_views(batch, backbone, teacher, select=True)
    method = hard_views.method.base if equimod else hard_views.method
    images = batch.images[:VIEWS]
    targets = None if teacher is None else forward_views(teacher, images)
    with torch.no_grad():
        index = brute_force(method, forward_views(backbone, images), targets, batch.changed)
    each = torch.arange(IMAGES)
    for slot in range(2):
        assert torch.equal(chosen.images[slot], batch.images[index[slot], each])
        assert torch.equal(chosen.parameters[slot], batch.parameters[index[slot], each])
    assert len({tuple(pair) for pair in index.T.tolist()}) > 3
    assert torch.equal(chosen.index, batch.index)
    # What views share is as in a plain batch of the method.
    plan = hard_views.method.policy(RECIPE).plan(0, 0, each, torch.full((IMAGES, 2), 40))
    assert (plan.changed is None) == (name != "mast")
    assert plan.changed is None or torch.equal(chosen.changed, plan.changed)
    if equimod:
        assert len(chosen.images) == 3
        assert torch.equal(chosen.images[2], batch.images[VIEWS])
        assert torch.equal(chosen.parameters[2], plan.rows[2])


@each_method
@pytest.mark.parametrize("equimod", [False, True])
def test_first_views_are_those_of_plain_training(name, equimod):
    hard_views, backbone, teacher = build(name, equimod=equimod)
    batch, sizes = batch_of(hard_views), torch.full((IMAGES, 2), 40)
    plan = hard_views.method.policy(RECIPE).plan(0, 0, torch.arange(IMAGES), sizes)
    assert hard_views.policy.num_views() == len(batch.images) == VIEWS + equimod
    pair, logs = hard_views(batch, backbone, teacher, select=False)
    assert torch.equal(pair.parameters, plan.rows)
    assert plan.changed is None or torch.equal(pair.changed, plan.changed)
    assert torch.equal(pair.images[:2], batch.images[:2])
    assert len(pair.images) == 2 + equimod
    assert backbone.seen == [] and all(value.isnan() for value in logs.values())


def test_mast_chooses_among_views_that_share():
    """Whatever two are chosen, they have in common what the batch says."""
    hard_views, *networks = build("mast", recipe=replace(RECIPE, hue=0.5))
    batch = batch_of(hard_views)
    shared = ~batch.changed[:, 0]
    assert 0 < shared.sum() < IMAGES
    chosen, _ = hard_views(batch, *networks, select=True)
    first, second = chosen.parameters[:2]
    columns = [COLUMNS.index(name) for name in SHAREABLE["hue"]]
    assert torch.equal(first[shared][:, columns], second[shared][:, columns])
    assert not torch.equal(first[~shared][:, columns], second[~shared][:, columns])
    for members in (shared, ~shared):
        assert not torch.equal(chosen.parameters[:2, members], batch.parameters[:2, members])
    assert hard_views.method(encode(hard_views.method, networks[0], None, chosen), chosen)


@each_method
@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_running_statistics(name, mode):
    hard_views, backbone, teacher = build(name, replace(OPTIONS, mode=mode), equimod=True)
    modules = nn.ModuleList([backbone, hard_views.method, *([] if teacher is None else [teacher])])
    before = {n: v.clone() for n, v in modules.state_dict().items()}
    modes = [module.training for module in modules.modules()]
    hard_views(batch_of(hard_views), backbone, teacher, select=True)
    assert [module.training for module in modules.modules()] == modes
    changed = {n for n, v in modules.state_dict().items() if not torch.equal(v, before[n])}
    assert all("running" in n or "num_batches" in n for n in changed)
    assert ("0.norm.running_mean" in changed) == (mode == "train")
    assert bool(changed) == (mode == "train")


def test_modes_come_back_after_an_error():
    hard_views, backbone, _ = build("simclr", replace(OPTIONS, mode="frozen"))
    batch = batch_of(hard_views)
    batch.images = batch.images[:, :, :2]
    with pytest.raises(RuntimeError):
        hard_views(batch, backbone, None, select=True)
    assert backbone.training and hard_views.method.training


def test_frozen_choice_does_not_depend_on_the_batch():
    hard_views, backbone, _ = build("vicreg", replace(OPTIONS, mode="frozen"))
    batch = batch_of(hard_views)
    whole, _ = hard_views(batch, backbone, None, select=True)
    half = replace(
        batch,
        images=batch.images[:, :7],
        parameters=batch.parameters[:, :7],
        index=batch.index[:7],
    )
    part, _ = hard_views(half, backbone, None, select=True)
    assert torch.equal(part.images, whole.images[:, :7])


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_teacher_judges_alone(name):
    hard_views, backbone, teacher = build(name, replace(OPTIONS, scorer="teacher"))
    batch = batch_of(hard_views)
    copy = teacher.module[0]
    chosen, _ = hard_views(batch, backbone, teacher, select=True)
    assert backbone.seen == [] and len(copy.seen) == 1
    losses = hard_views.method.teacher_pair_losses(forward_views(teacher, batch.images))
    index, _ = hard_views.selector(losses)
    assert torch.equal(chosen.images[1], batch.images[index[1], torch.arange(IMAGES)])


def test_size_and_precision_are_those_of_selection_alone():
    hard_views, backbone, _ = build("simclr", replace(OPTIONS, size=4, precision="bf16"))
    batch, dtypes = batch_of(hard_views), []
    backbone.conv.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    chosen, _ = hard_views(batch, backbone, None, select=True)
    assert backbone.seen[0].shape == (VIEWS * IMAGES, 3, 4, 4)
    assert dtypes == [torch.bfloat16]
    assert chosen.images.shape == (2, IMAGES, 3, 8, 8) and chosen.images.dtype == torch.float32


def test_smaller_views_are_averages():
    hard_views, backbone, _ = build("simclr", replace(OPTIONS, size=4))
    batch = batch_of(hard_views)
    batch.images = torch.arange(VIEWS).view(-1, 1, 1, 1, 1).expand_as(batch.images) * 1.0
    hard_views(batch, backbone, None, select=True)
    means = backbone.seen[0].unflatten(0, (VIEWS, IMAGES)).mean((1, 2, 3, 4))
    torch.testing.assert_close(means, torch.arange(VIEWS) * 1.0)


def test_weights_keep_their_gradients_under_autocast():
    """Casts of weights made without gradient must not be taken for those of the training pass."""
    hard_views, backbone, _ = build("simclr")
    with torch.autocast("cpu", torch.bfloat16):
        chosen, _ = hard_views(batch_of(hard_views), backbone, None, select=True)
        features = forward_views(backbone, chosen.images)
        hard_views.method(Encoded(features), chosen)["loss"].backward()
    parameters = [*backbone.parameters(), *hard_views.method.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in parameters)


def test_nothing_has_a_gradient():
    hard_views, backbone, _ = build("simclr")
    chosen, logs = hard_views(batch_of(hard_views), backbone, None, select=True)
    assert not chosen.images.requires_grad
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize("name", ["simclr", "mast"])
@pytest.mark.parametrize(
    ("candidates", "is_one"),
    [
        ("all", lambda i, j: True),
        ("anchor", lambda i, j: i == 0),
        ("even_odd", lambda i, j: (i + j) % 2 == 1),
    ],
)
def test_logs_by_hand(name, candidates, is_one):
    """The mean pair is the mean over all pairs that there are to choose from."""
    hard_views, *networks = build(name, replace(OPTIONS, candidates=candidates, differ="all"))
    batch = batch_of(hard_views)
    chosen, logs = hard_views(batch, *networks, select=True)
    with torch.no_grad():
        features = forward_views(networks[0], batch.images)
        losses = hard_views.method.pair_losses(Encoded(features), batch)
    pairs = [pair for pair in combinations(range(VIEWS), 2) if is_one(*pair)]
    scores = torch.stack([(losses[i, j] + losses[j, i]) / 2 for i, j in pairs])
    margin = (scores.amax(0) - scores.mean(0)).mean()
    torch.testing.assert_close(logs["hard_views/margin"], margin)

    rows = AugmentationParameters(batch.parameters)
    colors = rows.standardized(RECIPE)[..., COLUMNS.index("jitter") : COLUMNS.index("blur")]
    iou = torch.stack([rows.crop_iou(i, j) for i, j in pairs]).mean(0)
    color = torch.stack([(colors[i] - colors[j]).norm(dim=-1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(logs["hard_views/iou_random"], iou.mean())
    torch.testing.assert_close(logs["hard_views/color_random"], color.mean())
    rows = AugmentationParameters(chosen.parameters)
    colors = rows.standardized(RECIPE)[..., COLUMNS.index("jitter") : COLUMNS.index("blur")]
    torch.testing.assert_close(logs["hard_views/iou"], rows.crop_iou(0, 1).mean())
    expected = (colors[0] - colors[1]).norm(dim=-1).mean()
    torch.testing.assert_close(logs["hard_views/color"], expected)


@pytest.mark.parametrize("equimod", [False, True])
@pytest.mark.parametrize("name", ["simclr", "mast"])
def test_pairs_that_differ_by_geometry_alone(name, equimod):
    """Their colors are those of the first two views, as without selection."""
    hard_views, *networks = build(name, replace(OPTIONS, differ="geometry"), equimod)
    plain, _, _ = build(name, replace(OPTIONS, differ="all"), equimod)
    batch, before = batch_of(hard_views), batch_of(plain)
    chosen, logs = hard_views(batch, *networks, select=True)
    appearance = slice(COLUMNS.index("jitter"), None)
    pair, first_two = chosen.parameters[:2, :, appearance], before.parameters[:2, :, appearance]
    same, swapped = (pair == first_two).all(-1).all(0), (pair == first_two.flip(0)).all(-1).all(0)
    assert (same | swapped).all() and same.any() and swapped.any()
    torch.testing.assert_close(logs["hard_views/color"], logs["hard_views/color_random"])
    boxes = before.parameters[:VIEWS, :, :5]
    assert (chosen.parameters[:2, None, :, :5] == boxes).all(-1).any(1).all()


@pytest.mark.parametrize(
    ("name", "candidates", "choices"),
    [("simclr", "all", 6), ("mast", "all", 4), ("mast", "anchor", 3)],
)
def test_pairs_differ_by_geometry_where_views_share_augmentations(name, candidates, choices):
    """By default, of four views; those with the first view are no such pairs."""
    found, _, _ = build(name, replace(OPTIONS, candidates=candidates))
    assert found.choices.shape == (2, choices)


def test_selector_gets_its_options():
    options = replace(
        OPTIONS, candidates="anchor", strategy="softmax", temperature=0.5, fraction=0.25
    )
    hard_views, backbone, _ = build("simclr", options)
    selector = hard_views.selector
    found = (selector.candidates, selector.strategy, selector.temperature, selector.fraction)
    assert found == ("anchor", "softmax", 0.5, 0.25)
    batch = batch_of(hard_views)
    chosen, _ = hard_views(batch, backbone, None, select=True)
    assert torch.equal(chosen.images[0], batch.images[0])


@pytest.mark.parametrize(("every", "warmup", "expected"), SCHEDULES)
def test_schedule(every, warmup, expected):
    options = HardViewOptions(VIEWS, every=every, warmup=warmup)
    assert [step for step in range(25) if options.selects(step, 10)] == expected
    for steps in range(26):
        assert options.selections(steps, 10) == sum(step < steps for step in expected)


@pytest.mark.parametrize(
    ("name", "scorer", "equimod", "forwards"),
    [
        ("simclr", "student", False, 10 * 2 + 5 * 4),
        ("simclr", "student", True, 10 * 3 + 5 * 4),
        ("byol", "student", False, 10 * 4 + 5 * 8),
        ("byol", "teacher", False, 10 * 4 + 5 * 4),
        ("byol", "teacher", True, 10 * 5 + 5 * 4),
        ("moco", "student", False, 10 * 2 + 5 * 8),
    ],
)
def test_forwards_count_those_of_selection(name, scorer, equimod, forwards):
    hard_views, *_ = build(name, replace(OPTIONS, scorer=scorer, every=2), equimod)
    assert hard_views.forwards(10, 10) == forwards


@pytest.mark.parametrize(("values", "message"), OPTIONS_REFUSED)
def test_options_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **values)


@pytest.mark.parametrize(("name", "method_options", "recipe", "values", "message"), REFUSED)
def test_refuses(name, method_options, recipe, values, message):
    with pytest.raises(ValueError, match=message):
        build(name, replace(OPTIONS, **values), recipe=recipe, method_options=method_options)
