"""Policies write the rows and pairs that they promise."""

import numpy as np
import pytest
import torch

from mast_ext.augment import GROUPS, AugmentationRecipe, make_policy, sampler
from mast_ext.augment.parameters import COLUMN, SHAREABLE

EVERYTHING = AugmentationRecipe(blur=0.5, solarize=0.2)
INDICES = np.arange(200)
SIZES = np.full((200, 2), 32)

VIEW_COUNTS = [
    ("composed", {}, 2),
    ("composed", {"views": 4}, 4),
    ("composed", {"views": 3, "with_center": True}, 4),
    ("factorized", {}, 7),
    ("factorized", {"joint": True}, 8),
    ("factorized", {"joint": True, "with_center": True}, 9),
    ("sampled", {}, 2),
    ("sampled", {"n": 3, "with_center": True}, 5),
    ("shared", {}, 2),
    ("shared", {"shared": ["geometry", "hue"], "share": 0.9, "with_center": True}, 3),
]


def make(name, recipe=EVERYTHING, **options):
    policy = make_policy(name, recipe, **options)
    return policy, policy.plan(0, 0, INDICES, SIZES)


def differing_groups(rows, other):
    """Names of the groups in which two rows differ."""
    return {name for name, group in GROUPS.items() if (rows[group] != other[group]).any()}


@pytest.mark.parametrize(("name", "options", "views"), VIEW_COUNTS)
def test_plan_has_the_promised_form(name, options, views):
    policy, plan = make(name, **options)
    assert policy.num_views() == views
    names = options.get("shared", ["hue"]) if name == "shared" else EVERYTHING.augmentations
    assert policy.subspaces == ("joint", *names)
    assert plan.rows.shape == (views, 200, 14) and plan.rows.dtype == torch.float32
    assert plan.pair_subspace.shape == (views, views, 200)
    assert plan.pair_subspace.dtype == torch.int64
    assert torch.equal(plan.pair_subspace, plan.pair_subspace.transpose(0, 1))
    assert (plan.pair_subspace.diagonal() == -1).all()
    assert plan.pair_subspace.max() < len(policy.subspaces)


@pytest.mark.parametrize(("name", "options", "views"), VIEW_COUNTS)
def test_plan_of_an_image_does_not_depend_on_the_batch(name, options, views):
    policy, plan = make(name, **options)
    part = policy.plan(0, 0, INDICES[150:30:-7], SIZES[150:30:-7])
    chosen = torch.from_numpy(INDICES[150:30:-7].copy())
    assert torch.equal(part.rows, plan.rows[:, chosen])
    assert torch.equal(part.pair_subspace, plan.pair_subspace[..., chosen])


@pytest.mark.parametrize(("name", "options", "views"), VIEW_COUNTS)
def test_epochs_and_seeds_differ(name, options, views):
    policy, plan = make(name, **options)
    for seed, epoch in ((0, 1), (1, 0)):
        other = policy.plan(seed, epoch, INDICES, SIZES)
        augmented = slice(0, views - policy.with_center)
        assert (other.rows != plan.rows)[augmented].any(-1).float().mean() > 0.95


def test_composed_pairs_are_joint_and_views_independent():
    _, plan = make("composed", views=3)
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert (plan.pair_subspace[off_diagonal] == 0).all()
    rows = plan.rows.numpy()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(rows[i, :, 0], rows[j, :, 0])[0, 1]) < 0.25


@pytest.mark.parametrize("joint", [False, True])
def test_factorized_view_differs_by_its_augmentation_alone(joint):
    policy, plan = make("factorized", joint=joint)
    for k, name in enumerate(EVERYTHING.augmentations, start=1):
        assert (plan.pair_subspace[0, k] == k).all()
        for b in INDICES:
            assert differing_groups(plan.rows[0, b], plan.rows[k, b]) == {name}
    used = (plan.pair_subspace[..., 0] >= 0).sum()
    assert used == 2 * (len(EVERYTHING.augmentations) + joint)
    if joint:
        assert (plan.pair_subspace[0, -1] == 0).all()
        np.testing.assert_array_equal(
            plan.rows[-1], sampler.composed_rows(EVERYTHING, 0, 0, INDICES, SIZES, 7)
        )


@pytest.mark.parametrize("joint", [0.0, 0.3, 1.0])
def test_sampled_views_are_of_the_kind_their_pair_says(joint):
    policy = make_policy("sampled", EVERYTHING, n=2, joint=joint)
    indices = np.arange(1500)
    plan = policy.plan(0, 0, indices, np.full((1500, 2), 32))
    for view in (1, 2):
        subspace = plan.pair_subspace[0, view]
        fresh = sampler.composed_rows(EVERYTHING, 0, 0, indices, np.full((1500, 2), 32), view)
        for b in indices:
            k = int(subspace[b])
            if k:
                changed = differing_groups(plan.rows[0, b], plan.rows[view, b])
                assert changed == {policy.subspaces[k]}
            else:
                np.testing.assert_array_equal(plan.rows[view, b], fresh[b])
        frequency = torch.bincount(subspace, minlength=7) / 1500
        assert frequency[0] == pytest.approx(joint, abs=0.05)
        assert frequency[1:].tolist() == pytest.approx([(1 - joint) / 6] * 6, abs=0.04)
    assert (plan.pair_subspace[1, 2] == -1).all()
    assert joint in (0.0, 1.0) or (plan.pair_subspace[0, 1] != plan.pair_subspace[0, 2]).any()


@pytest.mark.parametrize("names", [("hue",), ("geometry", "flip", "saturation", "blur")])
def test_shared_pairs_have_in_common_what_they_say(names):
    policy, plan = make("shared", shared=names, share=0.6)
    first, second = plan.rows[:2].numpy()
    subspace = plan.pair_subspace[0, 1].numpy()
    assert np.abs((subspace > 0).mean() - 0.6) < 0.12
    independent = sampler.composed_rows(EVERYTHING, 0, 0, INDICES, SIZES, 1)
    assert (second[subspace == 0] == independent[subspace == 0]).all()
    for k, name in enumerate(names, start=1):
        columns = [COLUMN[column] for column in SHAREABLE[name]]
        members = subspace == k
        assert members.sum() > 20
        assert (first[members][:, columns] == second[members][:, columns]).all()
        others = np.setdiff1d(np.arange(len(COLUMN)), columns)
        same = (first[members][:, others] == second[members][:, others]).mean(0)
        assert same.max() < 0.9
    # Factors are neutral exactly where the jitter's gate is shut.
    colors, shut = second[:, GROUPS["color"]][:, 1:], second[:, COLUMN["jitter"]] == 0
    assert (colors[shut] == [1, 1, 1, 0]).all()
    assert (colors[~shut] != [1, 1, 1, 0]).all()


@pytest.mark.parametrize("pairs", ["joint", "shared"])
def test_aligned_pairs_have_one_geometry_and_stay_what_they_are(pairs):
    options = {"share": 0.5, "aligned": 0.5, "aligned_pairs": pairs}
    _, plan = make("shared", **options)
    _, without = make("shared", **(options | {"aligned": 0.0}))
    first, second = plan.rows[:2].numpy()
    where = np.r_[GROUPS["crop"], GROUPS["flip"]]
    aligned = (first[:, where] == second[:, where]).all(1)
    assert torch.equal(plan.pair_subspace, without.pair_subspace)
    members = (plan.pair_subspace[0, 1].numpy() == 0) == (pairs == "joint")
    assert not (aligned & ~members).any()
    assert np.abs(aligned[members].mean() - 0.5) < 0.15
    other = without.rows[1].numpy()
    assert (second[~aligned] == other[~aligned]).all()
    colors = slice(GROUPS["color"].start, None)
    assert (second[aligned, colors] == other[aligned, colors]).all()


def test_pairs_are_aligned_from_their_epoch_on():
    policy = make_policy("shared", EVERYTHING, share=0.0, aligned=1.0, aligned_from=3)
    where = np.r_[GROUPS["crop"], GROUPS["flip"]]
    for epoch in (0, 2, 3, 9):
        first, second = policy.plan(0, epoch, INDICES, SIZES).rows[:2].numpy()
        aligned = (first[:, where] == second[:, where]).all(1)
        assert aligned.all() if epoch >= 3 else aligned.mean() < 0.1


@pytest.mark.parametrize("name", ["composed", "factorized", "sampled", "shared"])
def test_centre_view_is_plain_and_in_no_pair(name):
    policy = make_policy(name, EVERYTHING, with_center=True)
    plan = policy.plan(0, 0, [5, 9], [[32, 32], [20, 40]])
    assert plan.rows[-1].tolist() == [
        [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0.25, 1, 0.5, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
    ]
    assert (plan.pair_subspace[-1] == -1).all() and (plan.pair_subspace[:, -1] == -1).all()
    without = make_policy(name, EVERYTHING).plan(0, 0, [5, 9], [[32, 32], [20, 40]])
    assert torch.equal(plan.rows[:-1], without.rows)


def test_subspaces_number_only_what_is_on():
    recipe = AugmentationRecipe(flip=0.0, crop_scale=(1.0, 1.0))
    policy, plan = make("factorized", recipe)
    assert policy.subspaces == ("joint", "color", "grayscale")
    assert plan.pair_subspace[0, :, 0].tolist() == [-1, 1, 2]


NOTHING = AugmentationRecipe(crop_scale=(1.0, 1.0), flip=0, jitter=0, grayscale=0)
REFUSED = [
    (lambda: make_policy("random", EVERYTHING), "must be one of composed, factorized, sampled"),
    (lambda: make_policy("composed", EVERYTHING, n=2), "'composed' does not take these options"),
    (lambda: make_policy("composed", EVERYTHING, views=0), "views must be an integer"),
    (lambda: make_policy("sampled", EVERYTHING, n=0), "n must be an integer"),
    (lambda: make_policy("sampled", EVERYTHING, joint=1.5), "joint must be a probability"),
    (lambda: make_policy("sampled", NOTHING), "needs a recipe with an augmentation"),
    (lambda: make_policy("factorized", NOTHING), "needs a recipe with an augmentation"),
    (lambda: make_policy("shared", EVERYTHING, shared=["tint"]), "shared must name crop, .*'tint'"),
    (lambda: make_policy("shared", EVERYTHING, shared=[]), "different things, at least one"),
    (lambda: make_policy("shared", EVERYTHING, shared=["hue", "hue"]), "different things"),
    (lambda: make_policy("shared", NOTHING), "'hue', which the recipe does not change"),
    (lambda: make_policy("shared", EVERYTHING, share=-0.1), "share must be a probability"),
    (lambda: make_policy("shared", EVERYTHING, aligned=1.1), "aligned must be a probability"),
    (lambda: make_policy("shared", EVERYTHING, aligned_pairs="all"), "aligned_pairs must be one"),
    (lambda: make_policy("shared", EVERYTHING, aligned_from=-1), "aligned_from must be an integer"),
    (lambda: make("composed")[0].plan(0, 0, [1, 2], [[32, 32]]), r"shapes \[B\] and \[B, 2\]"),
]


@pytest.mark.parametrize(("action", "message"), REFUSED)
def test_misuse_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_sampled_without_augmentations_is_possible_when_all_pairs_are_joint():
    plan = make("sampled", NOTHING, joint=1.0)[1]
    assert (plan.pair_subspace[0, 1] == 0).all()
