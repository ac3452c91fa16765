"""DALI renders the pixels of the torchvision renderer from the same rows."""

import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mast_ext.augment import AugmentationRecipe, Sharing, ViewPlan, make_policy
from mast_ext.augment.dali import DaliRenderer
from mast_ext.augment.torchvision import render

pytest.importorskip("nvidia.dali", reason="needs DALI")

LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # leaves levels in [0, 255]
EVERYTHING = AugmentationRecipe(blur=0.5, solarize=0.3, **LEVELS)


class Images:
    """Images of one size: stacked, or one by one."""

    def __init__(self, images, stacked=True):
        self.images = images
        self.stacked = images if stacked else None
        self.sizes = np.tile(images.shape[-2:], (len(images), 1))

    def image(self, index):
        return self.images[index]


def policy_of(recipe, local, views):
    """What a renderer asks of a policy; the last view is local if there is a recipe for it."""
    local_views = int(local is not None)
    return SimpleNamespace(
        recipe=recipe,
        recipes=(recipe,) * (views - local_views) + (local,) * local_views,
        local_recipe=local,
        local_views=local_views,
        with_center=False,
        num_views=lambda: views,
    )


def dali(images, rows, recipe, local=None, **options):
    """Views of one batch, levels, each [B, 3, S, S]."""
    source = images if isinstance(images, Images) else Images(images)
    options = {"batch_size": len(source.sizes), "prefetch": False, **options}
    renderer = DaliRenderer(source, policy_of(recipe, local, len(rows)), **options)
    plan = ViewPlan(rows)
    (batch,) = renderer.render([np.arange(len(source.sizes))], lambda _: plan)
    views = [*batch.images] + ([] if local is None else [*batch.local_images])
    return [view.round() for view in views]


def difference(images, rows, recipe, **options):
    """|DALI's - torchvision's| of one view per image, in levels."""
    (ours,) = dali(images, rows[None], recipe, **options)
    return (ours - render(images, rows[None], recipe)[0].round()).abs()


GEOMETRY = [(32, 32, 32), (32, 32, 20), (48, 31, 32), (16, 40, 24), (120, 90, 32), (20, 100, 40)]


@pytest.mark.parametrize("shape", GEOMETRY, ids=str)
def test_crop_resize_and_flip(smooth_images, shape):
    height, width, size = shape
    recipe = AugmentationRecipe(size=size, jitter=0, grayscale=0, **LEVELS)
    images = smooth_images(40, height, width)
    policy = make_policy("composed", recipe, views=1)
    rows = policy.plan(0, 0, np.arange(40), np.tile((height, width), (40, 1))).rows[0]
    found = difference(images, rows, recipe)
    assert found.mean() <= 0.25
    # torchvision's filter ends at the border of a crop, where DALI repeats the border.
    assert found.max() <= 10
    assert found[..., 3:-3, 3:-3].max() <= 1


@pytest.mark.parametrize("stacked", [True, False])
def test_whole_image_at_its_own_size_is_untouched(smooth_images, row, stacked):
    images = smooth_images(3, 32, 32)
    rows = torch.stack((row().repeat(3, 1), row(flip=1).repeat(3, 1)))
    plain, flipped = dali(Images(images, stacked), rows, AugmentationRecipe(**LEVELS))
    assert torch.equal(plain, images.float())
    assert torch.equal(flipped, images.flip(-1).float())


OPERATIONS = [  # changes to the neutral row, largest mean and single difference in levels
    ({"jitter": 1, "brightness": 0.6}, 0.01, 1),
    ({"jitter": 1, "brightness": 1.7}, 0.01, 1),
    ({"jitter": 1, "brightness": 0.0}, 0, 0),
    ({"jitter": 1, "contrast": 0.5}, 0.02, 1),
    ({"jitter": 1, "contrast": 1.8}, 0.02, 1),
    ({"jitter": 1, "contrast": 0.0}, 0.02, 1),
    ({"jitter": 1, "saturation": 0.2}, 0.02, 1),
    ({"jitter": 1, "saturation": 1.9}, 0.02, 1),
    ({"jitter": 1, "hue": 0.1}, 0.05, 1),
    ({"jitter": 1, "hue": -0.5}, 0.05, 1),
    # (Of 1.3 times 10, float32 may make 13, or 12.)
    ({"jitter": 1, "brightness": 1.31, "contrast": 0.71, "saturation": 1.2, "hue": -0.08}, 0.01, 3),
    ({"grayscale": 1}, 0.01, 1),
    ({"blur": 1, "sigma": 0.1}, 0, 0),
    ({"blur": 1, "sigma": 0.8}, 0.05, 1),
    ({"blur": 1, "sigma": 2.0}, 0.05, 1),
    ({"solarize": 1}, 0, 0),
]


@pytest.fixture(scope="module")
def each_operation(smooth_images, row):
    """What DALI and torchvision make of 16 images by every operation, of one batch for a mode."""

    @functools.cache
    def rendered(photometric, operations):
        images = smooth_images(16, 32, 32).repeat(len(operations), 1, 1, 1)
        rows = torch.stack([row(**dict(changes)) for changes in operations])
        rows = rows.repeat_interleave(16, 0)
        found = difference(images, rows, EVERYTHING, photometric=photometric)
        return dict(zip(operations, found.view(-1, 16, *found.shape[1:]), strict=True))

    def difference_by(photometric, table, changes):
        operations = tuple(tuple(line[0].items()) for line in table)
        return rendered(photometric, operations)[tuple(changes.items())]

    return difference_by


@pytest.mark.parametrize(("changes", "mean", "largest"), OPERATIONS, ids=str)
def test_operation(each_operation, changes, mean, largest):
    found = each_operation("exact", OPERATIONS, changes)
    assert found.mean() <= mean
    assert found.max() <= largest


FUSED = [  # operations that are the same in fused mode, largest mean difference in levels
    ({"jitter": 1, "brightness": 0.6}, 0.7),
    ({"jitter": 1, "saturation": 1.9}, 0.7),
    ({"jitter": 1}, 0),
    ({"grayscale": 1}, 0.7),
    ({"grayscale": 1, "jitter": 1, "saturation": 0.3}, 2),  # torchvision truncates twice
    ({"blur": 1, "sigma": 0.8}, 0.05),
    ({"solarize": 1}, 0),
]


@pytest.mark.parametrize(("changes", "mean"), FUSED, ids=str)
def test_fused_operation(each_operation, changes, mean):
    assert each_operation("fused", FUSED, changes).mean() <= mean


def test_fused_contrast_is_about_the_middle_level(row):
    images = torch.tensor([60, 200], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 8, 8)
    rows = row(jitter=1, contrast=0.5).repeat(1, 2, 1)
    (views,) = dali(images, rows, AugmentationRecipe(size=8, **LEVELS), photometric="fused")
    assert views[:, 0, 0, 0].tolist() == [94, 164]


def test_fused_jitter_is_as_strong_as_exact(smooth_images):
    images = smooth_images(64, 32, 32)
    recipe = AugmentationRecipe(crop_scale=(1, 1), jitter=1, grayscale=0, flip=0, **LEVELS)
    rows = make_policy("composed", recipe, views=1).plan(0, 0, np.arange(64), [[32, 32]] * 64).rows
    exact, fused = (dali(images, rows, recipe, photometric=m)[0] for m in ("exact", "fused"))
    strength = [(views - images).abs().mean() for views in (exact, fused)]
    assert strength[1] / strength[0] == pytest.approx(1, abs=0.1)
    assert 2 < (exact - fused).abs().mean() < 12  # yet they are not the same


POLICIES = [
    ("composed", {"views": 2}, (32, 32)),
    ("composed", {"views": 2}, (90, 70)),
    ("shared", {"shared": {"geometry": Sharing()}, "with_center": True}, (40, 30)),
    ("shared", {"shared": {"hue": Sharing()}, "with_center": True}, (90, 90)),
]


@pytest.mark.parametrize(("name", "options", "size"), POLICIES)
def test_whole_recipes_of_every_policy(smooth_images, name, options, size):
    images = smooth_images(48, *size)
    policy = make_policy(name, EVERYTHING, **options)
    rows = policy.plan(3, 1, np.arange(48), np.tile(size, (48, 1))).rows
    ours = dali(images, rows, EVERYTHING)
    theirs = render(images, rows, EVERYTHING).round()
    for view, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        found = (mine - other).abs()
        assert found.mean() <= 1.5, view
        assert found.flatten().kthvalue(math.ceil(0.99 * found.numel())).values <= 4, view


def test_views_of_two_sizes_come_from_one_image(smooth_images, row):
    images = smooth_images(8, 60, 50)
    recipes = [AugmentationRecipe(size=size, **LEVELS) for size in (32, 12)]
    rows = torch.stack((row(h=0.5).repeat(8, 1), row(x=0.5, w=0.5, flip=1).repeat(8, 1)))
    views = dali(images, rows, *recipes)
    assert [view.shape for view in views] == [(8, 3, 32, 32), (8, 3, 12, 12)]
    for view, recipe, chosen in zip(views, recipes, rows, strict=True):
        found = (view - render(images, chosen[None], recipe)[0].round()).abs()
        assert found.mean() <= 0.5  # a view of 12 pixels is border for a good part


def test_normalization(smooth_images, row):
    images, rows = smooth_images(4, 32, 32), row().repeat(1, 4, 1)
    recipe = AugmentationRecipe()
    renderer = DaliRenderer(Images(images), policy_of(recipe, None, 1), batch_size=4)
    (batch,) = renderer.render([np.arange(4)], lambda _: ViewPlan(rows))
    torch.testing.assert_close(batch.images, render(images, rows, recipe))


@pytest.mark.parametrize(("photometric", "threads"), [("exact", 3), ("fused", 1)])
def test_pixels_do_not_depend_on_threads_or_batch(smooth_images, photometric, threads):
    images = smooth_images(20, 40, 40)
    policy = make_policy("composed", EVERYTHING, views=2)
    rows = policy.plan(0, 0, np.arange(20), [[40, 40]] * 20).rows
    options = {"photometric": photometric, "threads": threads}
    whole = dali(images, rows, EVERYTHING, photometric=photometric)
    part = dali(images[5:8], rows[:, 5:8], EVERYTHING, **options)
    for view, other in zip(whole, part, strict=True):
        assert torch.equal(view[5:8], other)


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("photometric", ["exact", "fused"])
def test_gpu_graph_is_built_without_a_gpu(encoded, photometric):
    """Every operator on pixels is the GPU's. (Without one, the graph can be made, not run.)"""
    from mast_ext.augment.dali_graph import build_graph

    options = {"batch_size": 8, "num_threads": 1, "device_id": None}
    recipes = [EVERYTHING, AugmentationRecipe(size=16)]
    graph = build_graph(recipes, encoded=encoded, photometric=photometric, gpu=True, **options)
    assert (b"mixed" in graph.serialize()) == encoded
    devices = {}
    for node in graph._ops:  # DALI has no public way to list them
        name = getattr(node._op, "schema_name", "input")
        devices.setdefault(name, []).append(node._op.device)
    for name in ("Slice", "Resize", "GaussianBlur", "LookupTable", "CropMirrorNormalize"):
        assert set(devices[name]) == {"gpu"}, name
    if encoded:
        assert devices["decoders__Image"] == ["mixed"]
    if photometric == "fused":
        assert devices["ColorTwist"] == ["gpu"] * 2
    else:
        for name in ("BrightnessContrast", "CoordTransform", "reductions__Mean"):
            assert set(devices[name]) == {"gpu"}, name


def test_contrast_of_gpus_is_that_of_cpus(smooth_images):
    """On a GPU it is another operator's work, which the CPU can do, too."""
    from nvidia.dali import fn, pipeline_def, types

    from mast_ext.augment.dali_graph import _contrast

    @pipeline_def(batch_size=16, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def both():
        view = fn.external_source(name="view", dtype=types.UINT8, ndim=3, layout="HWC")
        factor = fn.external_source(name="factor", dtype=types.FLOAT, ndim=0)
        return tuple(_contrast(view, factor, gpu) for gpu in (True, False))

    views = smooth_images(16, 24, 24).permute(0, 2, 3, 1).contiguous().numpy()
    found = both().run(view=views, factor=np.linspace(0.02, 1.9, 16, dtype=np.float32))
    ours, theirs = (torch.from_dlpack(output.as_tensor()).int() for output in found)
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() <= 0.001
    assert (ours - torch.from_numpy(views)).abs().float().mean() > 5


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
def test_rows_that_the_recipe_does_not_allow_are_refused(smooth_images, row, name):
    off = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), 0)
    rows = torch.stack((row().repeat(2, 1), row(**{name: 1}).repeat(2, 1)))
    with pytest.raises(ValueError, match=f"view 1 has {name}, which its recipe switches off"):
        dali(smooth_images(2, 8, 8), rows, AugmentationRecipe(size=8, **off, **LEVELS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("photometric", ["exact", "fused"])
def test_gpu_renders_what_the_cpu_does(smooth_images, photometric):
    images = smooth_images(32, 60, 50)
    policy = make_policy("composed", EVERYTHING, views=2)
    rows = policy.plan(0, 0, np.arange(32), [[60, 50]] * 32).rows
    options = {"local": replace(EVERYTHING, size=12), "photometric": photometric}
    ours = dali(images, rows, EVERYTHING, device="gpu", **options)
    theirs = dali(images, rows, EVERYTHING, **options)
    for view, other in zip(ours, theirs, strict=True):
        assert view.is_cuda
        assert (view.cpu() - other).abs().mean() <= 0.5


REFUSED = [
    ({"photometric": "hsv"}, ValueError, "photometric must be one of exact, fused, got 'hsv'"),
    ({"device": "cuda"}, ValueError, "device must be cpu or gpu, got 'cuda'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_bad_option_is_refused(smooth_images, options, error, message):
    with pytest.raises(error, match=message):
        DaliRenderer(
            Images(smooth_images(2, 8, 8)), policy_of(EVERYTHING, None, 1), batch_size=2, **options
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_is_asked_for_where_there_is_none(smooth_images):
    with pytest.raises(ValueError, match="DALI on the GPU needs a GPU"):
        DaliRenderer(
            Images(smooth_images(2, 8, 8)),
            policy_of(EVERYTHING, None, 1),
            batch_size=2,
            device="gpu",
        )
