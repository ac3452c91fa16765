"""Patches of vision transformers and of feature maps, and how they are hidden."""

import pytest
import timm
import torch

from mast_ext.models import PatchLayout, create_backbone, forward_patches, patch_layout

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}
VIT = ("vit_small_images", {**TINY, "img_size": 16})
OTHERS = {
    "no class token": (
        "vit_tiny_patch16_224",
        {**TINY, "img_size": 16, "patch_size": 4, "class_token": False, "global_pool": "avg"},
    ),
    "registers": (
        "vit_tiny_patch16_224",
        {**TINY, "img_size": 16, "patch_size": 4, "reg_tokens": 3},
    ),
    "preset": VIT,
}


def vit(name="preset"):
    torch.manual_seed(0)
    model, timm_args = OTHERS[name]
    return create_backbone(model, **timm_args)[0].eval()


def resnet():
    torch.manual_seed(0)
    return create_backbone("resnet_small", True)[0].eval()


def some_hidden(count, grid):
    masks = torch.rand(count, *grid, generator=torch.Generator().manual_seed(1)) < 0.4
    masks[0] = False
    return masks


@pytest.mark.parametrize("name", OTHERS)
def test_features_of_transformers_are_their_own(name):
    backbone, images = vit(name), torch.randn(3, 3, 16, 16)
    assert patch_layout(backbone, 16) == PatchLayout((4, 4), 16)
    features, patches = forward_patches(backbone, images)
    torch.testing.assert_close(features, backbone(images))
    assert patches.shape == (3, 4, 4, 16)
    tokens = backbone.forward_features(images)[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(patches.flatten(1, 2), tokens)


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_at_other_sizes_have_deterministic_gradients(name, monkeypatch):
    """torch has no deterministic gradient of timm's interpolation on a GPU."""
    model, timm_args = OTHERS[name]
    torch.manual_seed(0)
    backbone, _ = create_backbone(model, **{**timm_args, "dynamic_img_size": True})
    images, hidden, token = torch.randn(2, 3, 24, 24), some_hidden(2, (6, 6)), torch.randn(16)
    expected = backbone.forward_features(images)[:, backbone.num_prefix_tokens :]
    own = torch.nn.functional.interpolate

    def interpolate(x, *args, **options):
        assert not (x.requires_grad and torch.is_grad_enabled())
        return own(x, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    _, patches = forward_patches(backbone, images)
    torch.testing.assert_close(patches.flatten(1, 2), expected, atol=1e-5, rtol=1e-4)
    forward_patches(backbone, images, hidden, token)[1].sum().backward()
    assert backbone.pos_embed.grad.abs().sum() > 0
    assert backbone.patch_embed.grid_size == (4, 4)


@pytest.mark.parametrize("name", OTHERS)
def test_hidden_patches_of_transformers_are_not_seen(name):
    """Changing their pixels changes nothing, changing others' does; no mask is a plain pass."""
    backbone, images, token = vit(name), torch.randn(3, 3, 16, 16), torch.randn(16)
    hidden = some_hidden(3, (4, 4))
    features, patches = forward_patches(backbone, images, hidden, token)
    pixels = hidden.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
    changed = images.masked_fill(pixels, 7.0)
    torch.testing.assert_close(forward_patches(backbone, changed, hidden, token)[1], patches)
    torch.testing.assert_close(features[0], backbone(images)[0])
    assert not torch.allclose(features[1:], backbone(images)[1:])
    assert not torch.allclose(forward_patches(backbone, images, hidden, 2 * token)[0], features)
    # Nothing is left behind.
    torch.testing.assert_close(forward_patches(backbone, images)[0], backbone(images))


def test_positions_of_hidden_patches_stay_known():
    backbone, hidden = vit(), torch.ones(1, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        backbone.pos_embed.normal_()
    patches = forward_patches(backbone, torch.randn(1, 3, 16, 16), hidden, torch.zeros(16))[1]
    rows = patches.flatten(0, 2)
    assert len(rows.unique(dim=0)) == 16


def test_hidden_patches_of_feature_maps_are_not_seen():
    backbone, images, token = resnet(), torch.randn(3, 3, 32, 32), torch.randn(3)
    assert patch_layout(backbone, 32) == PatchLayout((2, 2), 3)
    features, patches = forward_patches(backbone, images)
    torch.testing.assert_close(features, backbone(images))
    torch.testing.assert_close(patches.mean((1, 2)), features)
    hidden = some_hidden(3, (2, 2))
    features, _ = forward_patches(backbone, images, hidden, token)
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    expected = torch.where(pixels, token[:, None, None], images)
    torch.testing.assert_close(features, backbone(expected))


@pytest.mark.parametrize(
    ("make", "size", "dim"), [(vit, 16, 16), (resnet, 32, 3)], ids=["transformer", "feature map"]
)
def test_token_and_backbone_get_gradients(make, size, dim):
    backbone, token = make(), torch.randn(dim, requires_grad=True)
    hidden = some_hidden(3, patch_layout(backbone, size).grid)
    hidden[1, 0, 0] = True
    images = torch.randn(3, 3, size, size)
    features, patches = forward_patches(backbone, images, hidden, token)
    (features.square().sum() + patches[hidden].square().sum()).backward()
    assert token.grad.abs().sum() > 0
    # A batch without hidden patches gives it one, too: processes wait for each other's gradients.
    token.grad = None
    forward_patches(backbone, images, torch.zeros_like(hidden), token)[0].sum().backward()
    assert token.grad is not None and not token.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_transformers_at_other_sizes_in_other_precisions(dtype):
    torch.manual_seed(0)
    backbone, _ = create_backbone(VIT[0], **VIT[1], dynamic_img_size=True)
    backbone = backbone.to(dtype).eval()
    images = torch.randn(2, 3, 24, 24, dtype=dtype)
    assert patch_layout(backbone, 24).grid == (6, 6)
    pooled, patches = forward_patches(backbone, images)
    assert pooled.dtype == patches.dtype == dtype
    torch.testing.assert_close(pooled, backbone(images), atol=1e-2, rtol=1e-2)


def test_layout_leaves_the_backbone_as_it_was():
    backbone = resnet().train()
    frozen = backbone.layer1.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    patch_layout(backbone, 32)
    assert backbone.training and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (vit, 18, "VisionTransformer gives no patches of 18 pixel images"),
        (lambda: timm.create_model("swin_s3_tiny_224", num_classes=0), 224, "no patches that can"),
        (lambda: torch.nn.Linear(2, 2), 16, "Linear gives no patches"),
        (lambda: create_backbone("mobilenetv3_small_050")[0], 32, "feature map .N, 1024, H, W."),
        (
            lambda: create_backbone(VIT[0], **VIT[1], patch_drop_rate=0.5)[0],
            16,
            "drops patches",
        ),
    ],
    ids=["size", "swin", "linear", "widened", "dropped"],
)
def test_refuses(make, size, message):
    with pytest.raises(ValueError, match=message):
        patch_layout(make(), size)
