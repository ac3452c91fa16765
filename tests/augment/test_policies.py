"""Policies draw the rows that they promise, and say what views have in common."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mast_ext.augment import GROUPS, AugmentationRecipe, Sharing, make_policy, sampler
from mast_ext.augment.parameters import COLUMN, SHAREABLE

EVERYTHING = AugmentationRecipe(blur=0.5, solarize=0.2)
INDICES = np.arange(400)
SIZES = np.full((400, 2), 32)
EACH = {name: Sharing() for name in SHAREABLE if name not in ("crop", "flip")}

VIEW_COUNTS = [
    ("composed", {}, 2),
    ("composed", {"views": 4}, 4),
    ("composed", {"views": 3, "with_center": True}, 4),
    ("shared", {"shared": {"hue": Sharing()}}, 2),
    ("shared", {"shared": EACH, "views": 4}, 4),
    ("shared", {"shared": {"crop": Sharing(0.9), "hue": Sharing(0.2)}, "with_center": True}, 3),
]
each_policy = pytest.mark.parametrize(("name", "options", "views"), VIEW_COUNTS)


def make(name, recipe=EVERYTHING, **options):
    policy = make_policy(name, recipe, **options)
    return policy, policy.plan(0, 0, INDICES, SIZES)


def agree(first, second, name):
    """Where two views' rows ``[B, P]`` have an entry in common, ``[B]``."""
    columns = [COLUMN[column] for column in SHAREABLE[name]]
    return (first[:, columns] == second[:, columns]).all(1)


@each_policy
def test_plan_has_the_promised_form(name, options, views):
    policy, plan = make(name, **options)
    assert policy.num_views() == views
    assert plan.rows.shape == (views, 400, 14) and plan.rows.dtype == torch.float32
    assert policy.shared == tuple(options.get("shared", ()))
    if name == "shared":
        assert plan.changed.shape == (400, len(policy.shared)) and plan.changed.dtype == torch.bool
    else:
        assert plan.changed is None


@each_policy
def test_plan_of_an_image_does_not_depend_on_the_batch(name, options, views):
    policy, plan = make(name, **options)
    part = policy.plan(0, 0, INDICES[150:30:-7], SIZES[150:30:-7])
    chosen = torch.from_numpy(INDICES[150:30:-7].copy())
    assert torch.equal(part.rows, plan.rows[:, chosen])
    assert plan.changed is None or torch.equal(part.changed, plan.changed[chosen])


@each_policy
def test_epochs_and_seeds_differ(name, options, views):
    policy, plan = make(name, **options)
    for seed, epoch in ((0, 1), (1, 0)):
        other = policy.plan(seed, epoch, INDICES, SIZES)
        augmented = slice(0, views - policy.with_center)
        assert (other.rows != plan.rows)[augmented].any(-1).float().mean() > 0.95
        assert plan.changed is None or not torch.equal(plan.changed, other.changed)


@each_policy
@pytest.mark.parametrize("count", [2, 3, 7])
def test_views_do_not_depend_on_how_many_there_are(name, options, views, count):
    policy, plan = make(name, **options)
    before = policy.num_views()
    other = policy.enlarged(count)
    assert other.num_views() == count + policy.with_center and policy.num_views() == before
    more, both = other.plan(0, 0, INDICES, SIZES), min(count, policy.views)
    assert torch.equal(more.rows[:both], plan.rows[:both])
    assert plan.changed is None or torch.equal(more.changed, plan.changed)


@each_policy
def test_views_of_two_appearances(name, options, views):
    policy, _ = make(name, **options)
    rows = policy.enlarged(5).plan(0, 0, INDICES, SIZES).rows
    found = policy.enlarged(5, appearances=2).plan(0, 0, INDICES, SIZES).rows
    for view in range(policy.num_views() + 5 - policy.views):
        own = view if view >= 5 else view % 2  # local views, and the center
        assert torch.equal(found[view][:, :5], rows[view][:, :5])  # the crop and the flip
        assert torch.equal(found[view][:, 5:], rows[own][:, 5:])


def test_composed_views_are_independent():
    rows = make("composed", views=3)[1].rows.numpy()
    for i, j in combinations(range(3), 2):
        assert abs(np.corrcoef(rows[i, :, 0], rows[j, :, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("shared", [EACH, {"crop": Sharing(), "flip": Sharing()}], ids=str)
def test_all_views_have_in_common_what_the_plan_says(shared):
    policy, plan = make("shared", shared=shared, views=4)
    for i, j in combinations(range(4), 2):
        first, second = plan.rows[i].numpy(), plan.rows[j].numpy()
        for name, changed in zip(policy.shared, plan.changed.T.numpy(), strict=True):
            assert agree(first, second, name)[~changed].all()


@pytest.mark.parametrize("name", [name for name in SHAREABLE if name != "flip"])
@pytest.mark.parametrize("others", [False, True])
def test_what_is_not_shared_differs(name, others):
    """Where its numbers are drawn at all, whatever else is shared."""
    always = dict.fromkeys((n for n in EACH if others and n != name), Sharing(1.0))
    if name == "crop":
        always.pop("geometry", None)
    policy, plan = make("shared", shared={**always, name: Sharing(0.0)}, views=3)
    assert plan.changed[:, -1].all() and not plan.changed[:, :-1].any()
    column = COLUMN[{"crop": "y", "geometry": "y", "blur": "sigma"}.get(name, name)]
    for i, j in combinations(range(3), 2):
        first, second = plan.rows[i].numpy(), plan.rows[j].numpy()
        drawn = np.ones(len(first), bool)
        if name not in ("crop", "geometry"):
            gate = COLUMN["blur" if name == "blur" else "jitter"]
            drawn = (first[:, gate] > 0) & (second[:, gate] > 0)
        else:
            drawn = (first[:, COLUMN["h"]] < 1) & (second[:, COLUMN["h"]] < 1)
        assert drawn.sum() > 50
        same = (first[:, column] == second[:, column])[drawn].mean()
        assert same < (0.2 if name in ("crop", "geometry") else 0.01)  # places are few


@pytest.mark.parametrize("name", SHAREABLE)
def test_an_entry_leaves_other_columns_as_they_are(name):
    """Of independent views, but for jitter's factors behind a gate that another view gives."""
    _, plan = make("shared", shared={name: Sharing(0.5)}, views=3)
    independent = make("composed", views=3)[1].rows.numpy()
    rows, shared = plan.rows.numpy(), ~plan.changed[:, 0].numpy()
    assert (rows[0] == independent[0]).all()
    assert (rows[:, ~shared] == independent[:, ~shared]).all()
    rest = [n for n in COLUMN if n not in SHAREABLE[name]]
    if "jitter" in SHAREABLE[name]:
        rest = [n for n in rest if n not in ("brightness", "contrast", "saturation", "hue")]
    rest = [COLUMN[n] for n in rest]
    assert (rows[..., rest] == independent[..., rest]).all()
    gate, jitter = rows[..., COLUMN["jitter"]] > 0, independent[..., COLUMN["jitter"]] > 0
    factors = GROUPS["color"].start + 1 + np.arange(4)
    own = [f for f in factors if f not in [COLUMN[n] for n in SHAREABLE[name]]]
    kept = gate & jitter
    assert (rows[..., own][kept] == independent[..., own][kept]).all()
    # Factors are neutral exactly where the jitter's gate is shut.
    colors = rows[..., factors]
    assert (colors[~gate] == [1, 1, 1, 0]).all() and (colors[gate] != [1, 1, 1, 0]).all()


def test_entries_are_shared_with_their_probabilities_apart_from_each_other():
    shared = {"hue": Sharing(0.3), "geometry": Sharing(0.6), "blur": Sharing(1.0)}
    policy = make_policy("shared", EVERYTHING, shared=shared)
    indices = np.arange(20000)
    changed = policy.plan(0, 0, indices, np.full((20000, 2), 32)).changed.numpy()
    assert (~changed).mean(0) == pytest.approx([0.3, 0.6, 1.0], abs=0.015)
    assert abs(np.corrcoef(changed[:, 0], changed[:, 1])[0, 1]) < 0.03
    for view in range(2):  # nor do they go with what is drawn
        rows = policy.plan(0, 0, indices, np.full((20000, 2), 32)).rows[view].numpy()
        for column in ("y", "jitter", "hue", "brightness"):
            assert abs(np.corrcoef(changed[:, 0], rows[:, COLUMN[column]])[0, 1]) < 0.03


def test_an_entry_does_not_depend_on_others():
    alone = make("shared", shared={"hue": Sharing(0.4)})[1]
    policy, both = make("shared", shared={"geometry": Sharing(), "hue": Sharing(0.4)})
    assert policy.shared == ("geometry", "hue")
    assert torch.equal(alone.changed[:, 0], both.changed[:, 1])
    colors = slice(GROUPS["color"].start, None)
    assert torch.equal(alone.rows[..., colors], both.rows[..., colors])


def test_entries_are_shared_from_their_epoch_on():
    shared = {"geometry": Sharing(1.0, start=3), "hue": Sharing(1.0)}
    policy = make_policy("shared", EVERYTHING, shared=shared)
    for epoch in (0, 2, 3, 9):
        plan = policy.plan(0, epoch, INDICES, SIZES)
        same = agree(*plan.rows.numpy(), "geometry")
        assert same.all() if epoch >= 3 else same.mean() < 0.1
        assert (plan.changed[:, 0] == (epoch < 3)).all() and not plan.changed[:, 1].any()


@pytest.mark.parametrize(
    ("name", "options"), [("composed", {}), ("shared", {"shared": {"geometry": Sharing(1.0)}})]
)
def test_center_view_is_plain(name, options):
    policy = make_policy(name, EVERYTHING, with_center=True, **options)
    plan = policy.plan(0, 0, [5, 9], [[32, 32], [20, 40]])
    assert plan.rows[-1].tolist() == [
        [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0.25, 1, 0.5, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
    ]
    policy.with_center = False
    without = policy.plan(0, 0, [5, 9], [[32, 32], [20, 40]])
    assert torch.equal(plan.rows[:-1], without.rows)


def test_sharing_takes_numbers_of_the_first_view():
    plan = make("shared", shared={"hue": Sharing(1.0)})[1]
    own = sampler.composed_rows(EVERYTHING, 0, 0, INDICES, SIZES, 1)
    first, second = plan.rows.numpy()
    assert agree(first, second, "hue").all() and not agree(second, own, "hue").all()


NOTHING = AugmentationRecipe(crop_scale=(1.0, 1.0), flip=0, jitter=0, grayscale=0)


def shared(recipe=EVERYTHING, **options):
    return lambda: make_policy("shared", recipe, **options)


REFUSED = [
    (lambda: make_policy("random", EVERYTHING), "must be one of composed, shared, multi_crop"),
    (lambda: make_policy("composed", EVERYTHING, n=2), "'composed' does not take these options"),
    (lambda: make_policy("composed", EVERYTHING, views=0), "views must be at least 1, got 0"),
    (shared(shared={"hue": Sharing()}, views=1), "views must be at least 2, got 1"),
    (shared(shared={"tint": Sharing()}), "shared must name crop, .*'tint'"),
    (shared(shared={}), "at least one name"),
    (shared(shared=["hue"]), "shared must map at least one name to a Sharing, got .'hue'"),
    (shared(shared={"hue": 0.5}), "shared must map 'hue' to a Sharing, got 0.5"),
    (shared(NOTHING, shared={"hue": Sharing()}), "'hue', which the recipe does not change"),
    (
        shared(shared={"crop": Sharing(), "geometry": Sharing()}),
        "'geometry' or 'crop', not both: geometry is crop and flip",
    ),
    (
        shared(shared={"geometry": Sharing(), "crop": Sharing(), "flip": Sharing()}),
        "'geometry' or 'crop' and 'flip', not both",
    ),
    (lambda: Sharing(1.5), "probability must be from 0 to 1, got 1.5"),
    (lambda: Sharing(-0.1), "probability must be from"),
    (lambda: Sharing(0.5, -1), "start must be at least 0, got -1"),
    (lambda: Sharing(0.5, 0.5), "start must be an integer"),
    (lambda: make("composed")[0].plan(0, 0, [1, 2], [[32, 32]]), r"shapes \[B\] and \[B, 2\]"),
]


@pytest.mark.parametrize(("action", "message"), REFUSED)
def test_misuse_is_refused(action, message):
    with pytest.raises((TypeError, ValueError), match=message):
        action()
