"""Gram anchoring of DINO and iBOT: which patches are compared, with what weight, and when."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mast_ext import reference
from mast_ext.methods import METHODS, GramTeacherSpec, encode
from mast_ext.methods.dino import DINOOptions
from mast_ext.methods.ibot import IBOTOptions
from mast_ext.models import EMATeacher, create_backbone, forward_patches

IMAGES = 12
both = pytest.mark.parametrize("name", ["dino", "ibot"])
with_equimod = pytest.mark.parametrize("equimod", [False, True])
on_resnet = pytest.mark.parametrize("resnet", [False, True])


def anchored(crops, name, **options):
    return replace(crops.options[name], **{"gram_weight": 2.0, "gram_start": 0, **options})


def build(crops, name, *, equimod=False, resnet=False):
    """Method, backbone, teacher, Gram teacher and a batch."""
    method, backbone, teacher = crops.build(
        name, anchored(crops, name), equimod=equimod, resnet=resnet
    )
    gram_teacher = EMATeacher(backbone, batch_norm="ema")
    with torch.no_grad():
        for parameter in gram_teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = crops.batch_of(method.policy(crops.large if resnet else crops.recipe))
    return method, backbone, teacher, gram_teacher, batch


@both
@with_equimod
@on_resnet
def test_patches_are_those_of_full_size_views(crops, name, equimod, resnet):
    method, backbone, teacher, gram_teacher, batch = build(
        crops, name, equimod=equimod, resnet=resnet
    )
    backbone.eval()
    found = encode(method, backbone, teacher, batch, gram_teacher=gram_teacher)
    plain = encode(method, backbone, teacher, batch)
    torch.testing.assert_close(found.features, plain.features)
    torch.testing.assert_close(found.targets, plain.targets)
    assert plain.anchored is None
    shown = batch.images[:2].flatten(0, 1)
    hidden = None if batch.masks is None else batch.masks.flatten(0, 1)
    student = forward_patches(backbone, shown, hidden, method.hidden_token())[1]
    earlier = forward_patches(gram_teacher.module, shown)[1]
    torch.testing.assert_close(found.anchored.student, student.flatten(1, 2))
    torch.testing.assert_close(found.anchored.teacher, earlier.flatten(1, 2))
    assert found.anchored.student.shape == (2 * IMAGES, 4 if resnet else 16, 8)
    assert found.anchored.student.requires_grad and not found.anchored.teacher.requires_grad


@both
@with_equimod
def test_loss_by_hand(crops, name, equimod):
    method, backbone, teacher, gram_teacher, batch = build(crops, name, equimod=equimod)
    encoded = encode(method, backbone, teacher, batch, gram_teacher=gram_teacher)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    terms = method(encoded, batch)
    terms["loss"].backward()
    assert all(p.grad is None for p in gram_teacher.parameters())
    method.load_state_dict(state)  # centers as they were
    without = method(replace(encoded, anchored=None), batch)
    patches = encoded.anchored.student, encoded.anchored.teacher
    gram = reference.gram_difference(*(F.normalize(x.double(), dim=-1) for x in patches)).mean()
    torch.testing.assert_close(terms["gram"].double(), gram.detach())
    torch.testing.assert_close(terms["loss"], without["loss"] + 2 * gram.float())
    assert without["gram"].isnan() and list(without) == list(terms)
    assert not terms["gram"].requires_grad


@both
def test_is_off_by_default(crops, name):
    method, backbone, teacher = crops.build(name)
    assert method.gram_teacher() is None
    batch = crops.batch_of(method.policy(crops.recipe))
    assert "gram" not in method(encode(method, backbone, teacher, batch), batch)


def test_when_the_teacher_is_taken(crops):
    options = anchored(crops, "dino", gram_start=5, gram_every=3)
    spec = crops.build("dino", options, equimod=True)[0].gram_teacher()
    assert spec == GramTeacherSpec(start=5, every=3, views=2)
    assert [step for step in range(14) if spec.taken_at(step)] == [5, 8, 11]
    assert [spec.forwards(steps) for steps in (0, 5, 7)] == [0, 0, 4]


@pytest.mark.parametrize("options", [DINOOptions, IBOTOptions])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram_weight": -1.0}, "gram_weight must be at least 0, got -1"),
        ({"gram_weight": float("inf")}, "gram_weight must be at least 0 and finite, got inf"),
        ({"gram_weight": 2.0, "gram_start": None}, "gram_start must be given with gram_weight"),
        ({"gram_start": -1}, "gram_start must be at least 0, got -1"),
        ({"gram_every": 0}, "gram_every must be at least 1, got 0"),
    ],
)
def test_options_refused(options, change, message):
    with pytest.raises(ValueError, match=message):
        options(**change)


def test_refuses_backbones_without_patches(crops):
    options = anchored(crops, "dino")
    swin, features = create_backbone(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=1,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 1),
    )
    with pytest.raises(ValueError, match=r"gram_weight: SwinTransformer has no patches"):
        METHODS["dino"].create(swin, features, replace(crops.recipe, size=32), options)


@both
def test_refuses_a_single_patch(crops, name):
    vit = {"img_size": 8, "patch_size": 8, "depth": 1, "embed_dim": 8, "num_heads": 2}
    backbone, features = create_backbone("vit_small_images", **vit)
    with pytest.raises(ValueError, match="at least 2 patches, got a grid of 1 x 1"):
        METHODS[name].create(backbone, features, crops.recipe, anchored(crops, name))
