"""DINO and iBOT: what their losses compare, and what follows a schedule."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax, softmax

from mast_ext.augment import BlockMasks
from mast_ext.methods import METHODS, Encoded, encode
from mast_ext.methods.dino import DINOOptions
from mast_ext.methods.ibot import IBOTHead, IBOTOptions
from mast_ext.models import NormalizedLinear, PatchLayout, forward_patches, forward_views

LOCALS, IMAGES = 3, 12
both = pytest.mark.parametrize("name", ["dino", "ibot"])
with_equimod = pytest.mark.parametrize("equimod", [False, True])

OPTIONS_REFUSED = [
    (DINOOptions, {"student_temperature": 0.0}, "student_temperature must be positive, got 0.0"),
    (DINOOptions, {"teacher_temperature": -1.0}, "teacher_temperature must be positive"),
    (DINOOptions, {"temperature_warmup": -1.0}, "temperature_warmup must be at least 0"),
    (
        DINOOptions,
        {"freeze_last_layer": float("nan")},
        "freeze_last_layer must be a number",
    ),
    (DINOOptions, {"local_views": -2}, "local_views must be at least 0, got -2"),
    (IBOTOptions, {"local_views": -2}, "local_views must be at least 0, got -2"),
    (DINOOptions, {"prototypes": 0}, "dino.prototypes must be at least 1, got 0"),
    (IBOTOptions, {"bottleneck": -1}, "ibot.bottleneck must be at least 1, got -1"),
    (IBOTOptions, {"mask_ratio": (0.5, 0.1)}, "ibot.mask_ratio must be .low, high. with 0 <= low"),
    (IBOTOptions, {"mask_probability": 2.0}, "ibot.mask_probability must be from 0 to 1"),
    (IBOTOptions, {"patch_weight": -1.0}, "patch_weight must be at least 0"),
    (IBOTOptions, {"patch_temperature": 0.0}, "patch_temperature must be positive"),
]

# changes of the options of either method, part of the sentence
REFUSED = [
    ("dino", {"momentum": 1.5}, "momentum must be from 0 to 1"),
    ("dino", {"center_mode": "median"}, "center_mode|mode"),
    ("dino", {"local_scale": (0.5, 0.1)}, "local_scale must be .low, high. with 0 < low"),
]


def cross_entropy(teacher, student, temperature, center):
    """[T, S, B] from the definition, with the student's temperature of 0.1."""
    targets = softmax((teacher - center) / temperature, -1)
    return -(targets[:, None] * log_softmax(student / 0.1, -1)[None]).sum(-1)


def dino_loss(teacher, student, temperature, center):
    losses = cross_entropy(teacher, student, temperature, center).mean(-1)
    return torch.stack(
        [losses[i, j] for i in range(len(teacher)) for j in range(len(student)) if i != j]
    ).mean()


@both
@with_equimod
@pytest.mark.parametrize("resnet", [False, True])
def test_networks_see_the_views_that_are_theirs(crops, name, equimod, resnet):
    method, backbone, teacher = crops.build(name, equimod=equimod, resnet=resnet)
    backbone.eval(), teacher.eval()
    batch = crops.batch_of(method.policy(crops.large if resnet else crops.recipe))
    assert len(batch.images) == 2 + equimod and len(batch.local_images) == LOCALS
    encoded = encode(method, backbone, teacher, batch)
    student, head = encoded.features, teacher.module[1]
    assert student.shape == (2 + LOCALS + equimod, IMAGES, 8)
    torch.testing.assert_close(student[2 : 2 + LOCALS], forward_views(backbone, batch.local_images))
    if equimod:
        torch.testing.assert_close(student[-1], backbone(batch.images[2]))
    torch.testing.assert_close(encoded.targets, forward_views(teacher, batch.images[:2]))
    assert not encoded.targets.requires_grad
    full = forward_views(backbone, batch.images[:2])
    if name == "dino":
        assert encoded.patches is None and batch.masks is None
        torch.testing.assert_close(student[:2], full)
        return
    hidden, masks = encoded.patches, batch.masks
    assert hidden.masks is masks and masks.shape[:2] == (2, IMAGES)
    clear = ~masks.any(-1).any(-1)
    assert 0 < clear.sum() < clear.numel()
    torch.testing.assert_close(student[:2][clear], full[clear])
    assert not torch.allclose(student[:2][~clear], full[~clear])
    token = method.hidden_token()
    seen = forward_patches(backbone, batch.images[:2].flatten(0, 1), masks.flatten(0, 1), token)[1]
    torch.testing.assert_close(hidden.student, seen[masks.flatten(0, 1)])
    taught = forward_patches(teacher.module[0], batch.images[:2].flatten(0, 1))[1]
    torch.testing.assert_close(hidden.teacher, head(taught[masks.flatten(0, 1)]))
    assert not hidden.teacher.requires_grad and hidden.student.requires_grad


@both
def test_loss_by_hand_and_center(crops, name):
    """Two steps: the second one's center is a moving average of the teacher's scores."""
    method, backbone, teacher = crops.build(name)
    batch = crops.batch_of(method.policy(crops.recipe))
    encoded = encode(method, backbone, teacher, batch)
    views, patches = torch.zeros(10), torch.zeros(10)
    for _ in range(2):
        terms = method(encoded, batch)
        student = method.head(encoded.features)
        expected = dino_loss(encoded.targets, student, 0.04, views)
        views = 0.9 * views + 0.1 * encoded.targets.mean((0, 1))
        if name == "ibot":
            hidden = encoded.patches
            torch.testing.assert_close(terms["views"], expected.detach())
            scores = method.head(hidden.student)
            each = cross_entropy(hidden.teacher[None], scores[None], 0.04, patches)[0, 0]
            per_view = torch.zeros(hidden.masks.shape)
            per_view[hidden.masks] = each
            counts = hidden.masks.sum((2, 3)).clamp(min=1)
            of_patches = (per_view.sum((2, 3)) / counts).mean()
            torch.testing.assert_close(terms["patches"], of_patches.detach())
            expected = expected + of_patches
            patches = 0.9 * patches + 0.1 * hidden.teacher.mean(0)
        torch.testing.assert_close(terms["loss"], expected)
    assert [key for key, value in terms.items() if value.requires_grad] == ["loss"]


@both
@with_equimod
@pytest.mark.parametrize("resnet", [False, True])
def test_every_parameter_learns(crops, name, equimod, resnet):
    method, backbone, teacher = crops.build(name, equimod=equimod, resnet=resnet)
    batch = crops.batch_of(method.policy(crops.large if resnet else crops.recipe))
    method(encode(method, backbone, teacher, batch), batch)["loss"].backward()
    networks = nn.ModuleList([method, backbone])
    still = [n for n, p in networks.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(p.grad is None for p in teacher.parameters())


def test_a_batch_without_hidden_patches(crops):
    method, backbone, teacher = crops.build(
        "ibot", replace(crops.options["ibot"], mask_probability=0.0)
    )
    batch = crops.batch_of(method.policy(crops.recipe))
    assert not batch.masks.any()
    terms = method(encode(method, backbone, teacher, batch), batch)
    assert terms["patches"] == 0 and terms["loss"].isfinite()
    terms["loss"].backward()
    assert method.token.grad is not None
    assert all(buffer.isfinite().all() for buffer in method.buffers())


@pytest.mark.parametrize(("views", "patches"), [(2.0, 0.5), (0.0, 1.0)])
def test_weights_of_the_terms(crops, views, patches):
    options = replace(crops.options["ibot"], view_weight=views, patch_weight=patches)
    method, backbone, teacher = crops.build("ibot", options)
    batch = crops.batch_of(method.policy(crops.recipe))
    terms = method(encode(method, backbone, teacher, batch), batch)
    expected = views * terms["views"] + patches * terms["patches"]
    torch.testing.assert_close(terms["loss"].detach(), expected)


def test_evaluation_leaves_the_centers(crops):
    method, backbone, teacher = crops.build("ibot")
    batch = crops.batch_of(method.policy(crops.recipe))
    encoded = encode(method, backbone, teacher, batch)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    method(encoded, batch)
    method.train()
    method.crop_losses(encoded)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    method(encoded, batch), method(encoded, batch)
    changed = {n for n, value in method.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in changed} == {"loss", "patch_loss"}


@both
def test_teacher(crops, name):
    method, _, _ = crops.build(name)
    spec = method.teacher()
    assert spec.head is method.head
    assert (spec.momentum, spec.final_momentum) == (0.9, 1.0)
    assert list(range(7)[spec.views]) == [0, 1]


@with_equimod
def test_forwards_count_pixels(crops, equimod):
    method, _, _ = crops.build("dino", equimod=equimod)
    views = method.policy(crops.recipe).num_views()
    assert views == 2 + LOCALS + equimod
    # Two by the student, two by the teacher, the plain one, and local ones of a quarter each.
    assert method.forwards(views) == 4 + equimod + LOCALS / 4


def test_embedding_is_the_normalized_bottleneck(crops):
    method, _, _ = crops.build("dino")
    embedded = method.embed(torch.randn(2, 5, 8))
    assert embedded.shape == (2, 5, 6)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2, 5))


@with_equimod
def test_temperatures_warm_up(crops, equimod):
    options = replace(
        crops.options["ibot"],
        warmup_teacher_temperature=0.04,
        teacher_temperature=0.07,
        warmup_patch_temperature=0.06,
        patch_temperature=0.02,
        temperature_warmup=2.5,
    )
    method, _, _ = crops.build("ibot", options, equimod=equimod)
    ibot = method.base if equimod else method
    found = []
    for step in (0, 5, 15, 25, 40):
        method.at_step(step, 10, 1000)
        found.append((ibot.teacher_temperature, ibot.patch_temperature))
    expected = [(0.04, 0.06), (0.046, 0.052), (0.058, 0.036), (0.07, 0.02), (0.07, 0.02)]
    assert [a for a, _ in found] == pytest.approx([a for a, _ in expected])
    assert [b for _, b in found] == pytest.approx([b for _, b in expected])


def test_a_warmup_takes_no_longer_than_the_training(crops):
    options = replace(
        crops.options["dino"],
        warmup_teacher_temperature=0.04,
        teacher_temperature=0.08,
        temperature_warmup=30.0,
    )
    method, _, _ = crops.build("dino", options)
    found = []
    for step in (0, 10, 20):
        method.at_step(step, 10, 20)
        found.append(method.teacher_temperature)
    assert found == pytest.approx([0.04, 0.06, 0.08])


@pytest.mark.parametrize("temperature", [0.04, 0.2])
def test_losses_take_the_warmed_temperature(crops, temperature):
    options = replace(
        crops.options["dino"], warmup_teacher_temperature=temperature, temperature_warmup=9.0
    )
    method, backbone, teacher = crops.build("dino", options)
    batch = crops.batch_of(method.policy(crops.recipe))
    encoded = encode(method, backbone, teacher, batch)
    method.at_step(0, 10, 1000)
    scores = method.head(encoded.features)
    losses = method.crop_losses(encoded)
    expected = cross_entropy(encoded.targets, scores, temperature, torch.zeros(10))
    torch.testing.assert_close(losses, expected)
    expected = dino_loss(encoded.targets, scores, temperature, torch.zeros(10))
    torch.testing.assert_close(method(encoded, batch)["loss"], expected)


@pytest.mark.parametrize("shared", [True, False])
@with_equimod
def test_prototypes_are_frozen_at_first(crops, shared, equimod):
    """In both heads: the optimizer does not touch them, weight decay included."""
    options = replace(
        crops.options["ibot"], shared_head=shared, norm_last_layer=False, freeze_last_layer=0.5
    )
    method, _, _ = crops.build("ibot", options, equimod=equimod)
    frozen = {
        parameter
        for module in method.modules()
        if isinstance(module, NormalizedLinear)
        for parameter in module.parameters()
    }
    assert len(frozen) == (2 if shared else 4)
    for step, held in ((0, True), (4, True), (5, False)):
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.at_step(step, 10, 1000)
        method.before_update()
        without = {p for p in method.parameters() if p.grad is None}
        assert without == (frozen if held else set())


@pytest.mark.parametrize("shared", [True, False])
def test_patches_have_their_own_head_or_not(crops, shared):
    torch.manual_seed(0)
    head = IBOTHead(8, replace(crops.options["ibot"], shared_head=shared))
    views, rows = torch.randn(2, 3, 8), torch.randn(4, 8)
    of_views, of_patches = head.both(views, rows)
    torch.testing.assert_close(of_views, head(views))
    torch.testing.assert_close(of_patches, (head if shared else head.patches)(rows))
    names = {name.split(".")[0] for name in head.state_dict()}
    assert names == {"layers", "prototypes"} | (set() if shared else {"patches"})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("patches", [0, 1, 9])
def test_batch_norm_takes_any_number_of_patches(crops, shared, patches):
    """A shared head normalizes views and patches together."""
    options = replace(crops.options["ibot"], shared_head=shared, head_batch_norm=True)
    head, views = IBOTHead(8, options), torch.randn(2, 6, 8)
    of_views, of_patches = head.both(views, 5 + torch.randn(patches, 8))
    assert of_patches.shape == (patches, 10) and of_views.isfinite().all()
    apart = torch.allclose(of_views, head(views), atol=1e-5)
    assert apart == (not shared or patches == 0)


def test_masks_fit_the_backbone(crops):
    method, _, _ = crops.build("ibot")
    assert method.masks == BlockMasks((4, 4), 0.5, (0.2, 0.5))
    assert method.token.shape == (8,)
    method, _, _ = crops.build("ibot", resnet=True)
    assert method.masks.grid == (2, 2) and method.token.shape == (3,)


def test_missing_targets(crops):
    features = torch.randn(5, IMAGES, 8)
    with pytest.raises(ValueError, match="dino needs targets"):
        crops.build("dino")[0](Encoded(features), None)
    with pytest.raises(ValueError, match="ibot needs patches"):
        crops.build("ibot")[0](Encoded(features, torch.randn(2, IMAGES, 10)), None)


@pytest.mark.parametrize(("options", "values", "message"), OPTIONS_REFUSED)
def test_options_refuse(options, values, message):
    with pytest.raises(ValueError, match=message):
        options(**values)


@pytest.mark.parametrize(("name", "values", "message"), REFUSED)
def test_refuses(crops, name, values, message):
    with pytest.raises(ValueError, match=message):
        method, _, _ = crops.build(name, replace(crops.options[name], **values))
        method.policy(crops.recipe)


@both
def test_refuses_one_view(crops, name):
    recipe = replace(crops.recipe, views=1)
    extra = {"dino": (), "ibot": (PatchLayout((4, 4), 8),)}[name]
    with pytest.raises(ValueError, match=f"{name} needs augment.views of at least 2, got 1"):
        METHODS[name](8, recipe, crops.options[name], *extra)
