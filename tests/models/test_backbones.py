import pytest
import torch

from mast_ext.models import BackboneSpec, create_backbone, forward_views, is_resnet
from mast_ext.models.backbones import _interpolation

TINY = {"channels": (8, 8, 8, 16), "layers": (1, 1, 1, 1)}

# name, small_images, timm_args, size of the images, features, side of the first stage's input
BUILDS = [
    ("resnet18", True, TINY, 16, 16, 16),
    ("resnet18", False, TINY, 32, 16, 8),
    ("resnet10t", True, {"stem_width": 8, "channels": (8, 8, 8, 8)}, 16, 8, 16),
    ("resnet_small", True, {"stem_width": 4, **TINY}, 16, 16, 8),
    ("test_vit", False, {"img_size": 32, "patch_size": 16}, 32, 64, None),
    ("resnet18", False, {**TINY, "global_pool": "catavgmax"}, 32, 32, 8),
    # A layer stands between their pooling and the classifier that they had.
    ("mobilenetv3_small_050", False, {}, 32, 1024, None),
    ("mobilenetv3_small_050", False, {"global_pool": "catavgmax"}, 32, 1024, None),
]

REFUSED = [
    ("resnt18", False, {}, "no backbone is called 'resnt18' in timm; did you mean resnet18"),
    ("test_vit", True, {}, "small_images changes the stem of ResNets, and 'test_vit' is none"),
    ("resnet18", False, {"wings": 2}, "timm cannot build 'resnet18' with {'wings': 2}"),
    ("resnet18", False, {"pretrained": True}, "pretrained is not an option"),
    ("resnet18", False, {"global_pool": ""}, "gives no pooled features"),
    ("test_vit", False, {"global_pool": ""}, "gives no pooled features"),
]


@pytest.mark.parametrize(
    ("name", "small", "arguments", "size", "features", "stage"), BUILDS, ids=lambda v: str(v)[:20]
)
def test_pooled_features(name, small, arguments, size, features, stage):
    backbone, num_features = create_backbone(name, small, **arguments)
    seen = []
    if stage is not None:
        backbone.layer1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pooled = backbone(torch.randn(2, 3, size, size))
    assert num_features == features
    assert pooled.shape == (2, features)
    assert [x.shape[-1] for x in seen] == ([] if stage is None else [stage])


@pytest.mark.parametrize(("name", "small", "arguments", "message"), REFUSED)
def test_refuses(name, small, arguments, message):
    with pytest.raises(ValueError) as error:
        create_backbone(name, small, **arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("resnet_small", True), ("resnet50", True), ("test_vit", False), ("nothing", False)),
        *(("resnest14d", True), ("res2net50_14w_8s", True), ("skresnet18", True)),
    ],
)
def test_is_resnet(name, expected):
    assert is_resnet(name) is expected
    if expected:
        create_backbone(name, small_images=True)


TRANSFORMER = {"depth": 1, "embed_dim": 16, "num_heads": 2}
# further arguments, side of the images
SIZES = [
    ({}, 16),
    ({}, 24),
    ({}, 32),
    ({"no_embed_class": True, "reg_tokens": 2}, 16),
    ({"class_token": False, "global_pool": "avg"}, 40),
    ({"pos_embed": "none"}, 16),
    ({"dynamic_img_pad": True}, 18),
]


@pytest.mark.parametrize(("arguments", "side"), SIZES)
def test_transformer_at_other_sizes_than_its_own(arguments, side):
    """The value and the gradients are those of timm's interpolation."""
    torch.manual_seed(0)
    backbone, _ = create_backbone("vit_small_images", **TRANSFORMER, **arguments)
    backbone.train()
    views, weights = torch.randn(2, 3, 3, side, side), torch.randn(2, 3, 16)
    results = []
    for call in (
        lambda: forward_views(backbone, views),
        lambda: backbone(views.flatten(0, 1)).unflatten(0, (2, 3)),
    ):
        backbone.zero_grad()
        features = call()
        (features * weights).sum().backward()
        results.append((features, [p.grad.clone() for p in backbone.parameters()]))
    (found, gradients), (expected, others) = results
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-3)
    assert backbone.patch_embed.grid_size == (8, 8)


def test_other_sizes_are_taken_whatever_the_default_device_and_dtype():
    """Of the call that first meets a size, whose interpolation is kept for all."""
    backbone, _ = create_backbone("vit_small_images", **TRANSFORMER)
    views = torch.randn(2, 3, 3, 24, 24)
    want = forward_views(backbone, views)
    _interpolation.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = forward_views(backbone, views)
    finally:
        torch.set_default_dtype(torch.float32)
        _interpolation.cache_clear()
    assert torch.equal(found, want)


def test_transformer_comes_back_to_its_own_size_after_an_error():
    backbone, _ = create_backbone("vit_small_images", **TRANSFORMER)
    with pytest.raises(RuntimeError):
        forward_views(backbone, torch.randn(1, 2, 5, 16, 16))
    assert backbone.patch_embed.grid_size == (8, 8)


def test_transformer_for_small_images():
    backbone, features = create_backbone("vit_small_images")
    assert features == 128 and backbone.patch_embed.grid_size == (8, 8)
    assert 0.7e6 < sum(p.numel() for p in backbone.parameters()) < 0.9e6
    assert not is_resnet("vit_small_images")
    assert (
        BackboneSpec("vit_small_images", False).create()(torch.randn(1, 3, 16, 16)).shape[1] == 128
    )
