"""Hard views of DINO and iBOT: what is chosen, what is carried along, what it leaves behind."""

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import nn

from mast_ext.augment import COLUMNS, AugmentationParameters
from mast_ext.methods import HardCrops, HardViewOptions, HardViews, encode, hard_selection
from mast_ext.methods.simclr import SimCLR, SimCLROptions

GLOBALS, CANDIDATES, LOCALS, IMAGES = 4, 5, 3, 12
HARD = HardViewOptions(GLOBALS, local_views=CANDIDATES, mode="frozen")
both = pytest.mark.parametrize("name", ["dino", "ibot"])
with_equimod = pytest.mark.parametrize("equimod", [False, True])

# changes of the options, part of the sentence
REFUSED = [
    ({"scorer": "teacher"}, "hard_views.scorer: dino takes the hardest tuple .* got 'teacher'"),
    ({"candidates": "anchor"}, "hard_views.candidates: .* got 'anchor'"),
    ({"strategy": "softmax"}, "hard_views.strategy: .* got 'softmax'"),
    ({"fraction": 0.5}, "hard_views.fraction: .* got 0.5"),
    ({"size": 9}, "hard_views.size must be at most the views' 8 pixels, got 9"),
    (
        {"local_views": 2},
        "hard_views.local_views must be at least the 3 that dino trains on, got 2",
    ),
]
OPTIONS_REFUSED = [
    ({"local_views": -1}, "hard_views.local_views must be at least 0, got -1"),
    ({"limit": 0}, "hard_views.limit must be at least 1, got 0"),
]


def build(crops, name, options=HARD, equimod=False, **changes):
    method, backbone, teacher = crops.build(
        name, replace(crops.options[name], **changes), equimod=equimod
    )
    return HardCrops(method, crops.recipe, options), backbone, teacher


def chosen_by_hand(batch, index, locals_):
    """The batch of views ``index``, image by image."""
    parts = []
    for image, (a, b, *rest) in enumerate(index.T.tolist()):
        local = [view - GLOBALS for view in rest]
        parts.append(
            {
                "images": batch.images[[a, b], image],
                "local": batch.local_images[local, image],
                "rows": batch.parameters[[a, b, *rest], image],
                "masks": None if batch.masks is None else batch.masks[[a, b], image],
            }
        )
    return parts


@both
@with_equimod
def test_choice_is_the_tuple_with_the_highest_training_loss(crops, name, equimod):
    """Every tuple of one image at a time through the method's own forward, in evaluation mode."""
    hard, backbone, teacher = build(crops, name, equimod=equimod)
    batch = crops.batch_of(hard.policy)
    assert len(batch.images) == GLOBALS + equimod
    base = hard.method.base if equimod else hard.method
    chosen, _ = hard(batch, backbone, teacher, select=True)
    networks = nn.ModuleList([backbone, base, teacher]).eval()
    subsets = list(combinations(range(GLOBALS, GLOBALS + CANDIDATES), LOCALS))
    tuples = [(a, b, *subset) for (a, b), subset in product(product((0, 2), (1, 3)), subsets)]
    for image in range(3):
        losses = []
        for a, b, *local in tuples:
            one = replace(
                batch,
                images=batch.images[[a, b], image : image + 1],
                local_images=batch.local_images[[v - GLOBALS for v in local], image : image + 1],
                masks=None if batch.masks is None else batch.masks[[a, b], image : image + 1],
                hidden=None,
            )
            with torch.no_grad():
                encoded = encode(base, backbone, teacher, one)
                losses.append(base(encoded, one)["loss"])
        a, b, *local = tuples[int(torch.stack(losses).argmax())]
        shown = chosen.images[:2, image]
        assert torch.equal(shown, batch.images[[a, b], image])
        kept = batch.local_images[[v - GLOBALS for v in local], image]
        assert torch.equal(chosen.local_images[:, image], kept)
    networks.train()


@both
def test_pairs_of_full_size_views_that_differ_by_geometry_alone(crops, name):
    """Their colors are those of the first two views, as without selection."""
    hard, backbone, teacher = build(crops, name, replace(HARD, differ="geometry"))
    plain, _, _ = build(crops, name)
    batch, before = crops.batch_of(hard.policy), crops.batch_of(plain.policy)
    chosen, _ = hard(batch, backbone, teacher, select=True)
    appearance = slice(COLUMNS.index("jitter"), None)
    assert torch.equal(chosen.parameters[:2, :, appearance], before.parameters[:2, :, appearance])
    assert not torch.equal(chosen.parameters[:2], before.parameters[:2])
    assert torch.equal(batch.parameters[GLOBALS:], before.parameters[GLOBALS:])


@both
@with_equimod
def test_everything_of_a_view_stays_together(crops, name, equimod):
    hard, backbone, teacher = build(crops, name, equimod=equimod)
    batch = crops.batch_of(hard.policy)
    chosen, _ = hard(batch, backbone, teacher, select=True)
    rows, found = batch.parameters, set()
    assert chosen.images.shape[0] == 2 + equimod and chosen.local_images.shape[0] == LOCALS
    assert chosen.parameters.shape[0] == 2 + LOCALS + equimod
    for image in range(IMAGES):
        views = [
            next(v for v in range(len(rows)) if torch.equal(rows[v, image], row))
            for row in chosen.parameters[:, image]
        ]
        a, b, *local = views[: 2 + LOCALS]
        assert a % 2 == 0 and b % 2 == 1 and max(a, b) < GLOBALS <= min(local)
        assert local == sorted(set(local))
        assert torch.equal(chosen.images[:2, image], batch.images[[a, b], image])
        kept = [view - GLOBALS for view in local]
        assert torch.equal(chosen.local_images[:, image], batch.local_images[kept, image])
        if name == "ibot":
            assert torch.equal(chosen.masks[:, image], batch.masks[[a, b], image])
            places = chosen.masks.flatten().nonzero()[:, 0]
            assert torch.equal(chosen.hidden.flat, places)
        if equimod:
            assert views[-1] == GLOBALS + CANDIDATES
            assert torch.equal(chosen.images[2, image], batch.images[GLOBALS, image])
        found.add(tuple(views))
    assert len(found) > 3 and torch.equal(chosen.index, batch.index)
    # As a plain batch of the method: it trains on what was chosen.
    plain = crops.batch_of(hard.method.policy(crops.recipe))
    assert chosen.parameters.shape == plain.parameters.shape
    hard.method(encode(hard.method, backbone, teacher, chosen), chosen)["loss"].backward()


@both
@with_equimod
def test_first_views_are_those_of_plain_training(crops, name, equimod):
    hard, backbone, teacher = build(crops, name, equimod=equimod)
    batch, plain = crops.batch_of(hard.policy), crops.batch_of(hard.method.policy(crops.recipe))
    first, logs = hard(batch, backbone, teacher, select=False)
    for field in ("images", "local_images", "parameters", "index"):
        assert torch.equal(getattr(first, field), getattr(plain, field)), field
    assert (first.masks is None) == (name == "dino")
    assert name == "dino" or torch.equal(first.masks, plain.masks)
    assert all(value.isnan() for value in logs.values())


@both
@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_selection_leaves_no_trace(crops, name, mode):
    """Not on weights and centers; on running statistics in train mode only."""
    method, backbone, teacher = crops.build(name, resnet=True)
    hard = HardCrops(method, crops.large, replace(HARD, mode=mode))
    modules = nn.ModuleList([backbone, method, teacher])
    before = {n: v.clone() for n, v in modules.state_dict().items()}
    modes = [module.training for module in modules.modules()]
    chosen, logs = hard(crops.batch_of(hard.policy), backbone, teacher, select=True)
    assert [module.training for module in modules.modules()] == modes
    changed = {n for n, v in modules.state_dict().items() if not torch.equal(v, before[n])}
    assert all("running" in n or "num_batches" in n for n in changed)
    assert bool(changed) == (mode == "train")
    assert not chosen.images.requires_grad
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize(
    ("views", "local", "trained"), [(2, 5, 3), (4, 0, 3), (4, 0, 0), (3, 4, 4), (6, 8, 3)]
)
def test_numbers_of_views(crops, views, local, trained):
    options = replace(HARD, views=views, local_views=local)
    hard, backbone, teacher = build(crops, "dino", options, local_views=trained)
    batch = crops.batch_of(hard.policy)
    assert len(batch.parameters) == views + max(local, trained)
    chosen, _ = hard(batch, backbone, teacher, select=True)
    assert len(chosen.images) == 2 and len(chosen.parameters) == 2 + trained
    assert (chosen.local_images is None) == (trained == 0)
    assert trained == 0 or len(chosen.local_images) == trained


def test_random_tuples_only(crops):
    """Two of 40 tuples, the same for all images, drawn from torch's generator."""
    hard, backbone, teacher = build(crops, "dino", replace(HARD, limit=2))
    batch, seen = crops.batch_of(hard.policy), []
    for _ in range(2):
        torch.manual_seed(3)
        chosen, _ = hard(batch, backbone, teacher, select=True)
        views = (chosen.parameters[:, None] == batch.parameters[None]).all(-1).nonzero()
        seen.append({tuple(views[views[:, 2] == b][:, 1].tolist()) for b in range(IMAGES)})
    assert seen[0] == seen[1] and len(seen[0]) <= 2
    exact, _ = build(crops, "dino")[0](batch, backbone, teacher, select=True)
    assert not torch.equal(chosen.parameters, exact.parameters)


def test_size_and_precision_are_those_of_selection_alone(crops):
    options = replace(HARD, size=4, precision="bf16")
    method, backbone, teacher = crops.build("dino", resnet=True)
    hard = HardCrops(method, crops.large, replace(options, size=16))
    seen, dtypes = [], []
    backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    backbone.layer1.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    chosen, _ = hard(crops.batch_of(hard.policy), backbone, teacher, select=True)
    assert seen == [(GLOBALS * IMAGES, 3, 16, 16), (CANDIDATES * IMAGES, 3, 8, 8)]
    assert dtypes == [torch.bfloat16] * 2
    assert chosen.images.shape[-1] == 32 and chosen.images.dtype == torch.float32


def test_weights_keep_their_gradients_under_autocast(crops):
    hard, backbone, teacher = build(crops, "ibot")
    with torch.autocast("cpu", torch.bfloat16):
        chosen, _ = hard(crops.batch_of(hard.policy), backbone, teacher, select=True)
        encoded = encode(hard.method, backbone, teacher, chosen)
        hard.method(encoded, chosen)["loss"].backward()
    parameters = [*backbone.parameters(), *hard.method.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in parameters)


def test_logs_by_hand(crops):
    hard, backbone, teacher = build(crops, "dino", asymmetric=True)
    batch = crops.batch_of(hard.policy)
    chosen, logs = hard(batch, backbone, teacher, select=True)
    backbone.eval()
    with torch.no_grad():
        encoded = encode(hard.method, backbone, teacher, batch, taught=slice(None))
        losses = hard.method.crop_losses(encoded)
    subsets = list(combinations(range(GLOBALS, GLOBALS + CANDIDATES), LOCALS))
    scores = torch.stack(
        [
            losses[a, b] + losses[b, a] + sum(losses[a, v] + losses[b, v] for v in subset)
            for (a, b), subset in product(product((0, 2), (1, 3)), subsets)
        ]
    )
    margin = (scores.amax(0) - scores.mean(0)).mean() / (2 + 2 * LOCALS)
    torch.testing.assert_close(logs["hard_views/margin"], margin)
    recipes = hard.policy.recipes
    pairs = list(product((0, 2), (1, 3)))
    for parameters, suffix, which in (
        (batch.parameters, "_random", pairs),
        (chosen.parameters, "", [(0, 1)]),
    ):
        rows = AugmentationParameters(parameters)
        colors = rows.standardized(*recipes)[..., COLUMNS.index("jitter") : COLUMNS.index("blur")]
        iou = torch.stack([rows.crop_iou(i, j) for i, j in which]).mean()
        color = torch.stack([(colors[i] - colors[j]).norm(dim=-1) for i, j in which]).mean()
        torch.testing.assert_close(logs[f"hard_views/iou{suffix}"], iou)
        torch.testing.assert_close(logs[f"hard_views/color{suffix}"], color)


@with_equimod
def test_forwards_count_pixels(crops, equimod):
    options = replace(HARD, every=2, warmup=1.0)
    hard, _, _ = build(crops, "dino", options, equimod=equimod)
    # Of 20 steps, 10 to an epoch, five select, by full-size views in two networks, and local ones.
    trained = 2 + 2 + equimod + LOCALS / 4
    assert hard.forwards(20, 10) == 20 * trained + 5 * (2 * GLOBALS + CANDIDATES / 4)


def test_forwards_without_a_teacher(crops):
    hard, _, _ = build(crops, "lejepa", local_views=LOCALS)
    # Of 20 steps all select, by views in the student alone.
    assert hard.forwards(20, 10) == 20 * (2 + LOCALS / 4) + 20 * (GLOBALS + CANDIDATES / 4)


@both
def test_selection_fits_the_method(crops, name):
    method, _, _ = crops.build(name)
    assert isinstance(hard_selection(method, crops.recipe, HARD), HardCrops)
    method, _, _ = crops.build(name, equimod=True)
    assert isinstance(hard_selection(method, crops.recipe, HARD), HardCrops)
    simclr = SimCLR(8, crops.recipe, SimCLROptions((8, 8)))
    assert isinstance(hard_selection(simclr, crops.recipe, HardViewOptions(4)), HardViews)
    for name, value in (("local_views", 4), ("limit", 3)):
        options = replace(HardViewOptions(4), **{name: value})
        with pytest.raises(ValueError, match=f"hard_views.{name} is for dino, ibot and lejepa"):
            hard_selection(simclr, crops.recipe, options)


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_refuses(crops, values, message):
    with pytest.raises(ValueError, match=message):
        build(crops, "dino", replace(HARD, **values))


def test_refuses_smaller_views_of_masked_ones(crops):
    with pytest.raises(ValueError, match="hard_views.size: ibot hides patches"):
        build(crops, "ibot", replace(HARD, size=4))


def test_refuses_three_views(crops):
    recipe = replace(crops.recipe, views=3)
    method, _, _ = crops.build("dino", recipe=recipe)
    with pytest.raises(ValueError, match="augment.views of dino must be 2, got 3"):
        HardCrops(method, recipe, HARD)


@pytest.mark.parametrize(("values", "message"), OPTIONS_REFUSED)
def test_options_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        HardViewOptions(4, **values)


def test_nan_is_not_hidden(crops):
    """A view that makes the teacher overflow is not chosen while there are others."""
    hard, backbone, teacher = build(crops, "dino")
    batch = crops.batch_of(hard.policy)
    batch.images[2, 0] = math.nan
    chosen, _ = hard(batch, backbone, teacher, select=True)
    assert chosen.images.isfinite().all()
