"""Pictures of odd shapes and kinds, and augmentations at their extremes, by both renderers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.data import open_source

SIZES = [(1, 5000), (5000, 1), (1, 1), (1, 65), (65, 1), (2, 3), (3, 4000), (90, 70)]
KINDS = {  # by the file's ending: how a picture is stored
    "png": {},
    "webp": {"lossless": True},
    "bmp": {},
    "ink.jpg": {"mode": "CMYK", "quality": 100},
    "deep.png": {"mode": "I;16"},
    "ink.png": {"mode": "1"},
    "clear.png": {"mode": "LA"},
}
RECIPES = {
    "usual": {"blur": 0.5, "solarize": 0.5},
    "crops of one pixel": {"crop_scale": (1e-9, 1e-8)},
    "crops of one row or column": {"crop_ratio": (1e-3, 1e3), "crop_scale": (1e-3, 1.0)},
    "views of one pixel": {"size": 1, "blur": 1.0, "blur_sigma": (0.1, 50.0)},
    "blur over the whole view": {"blur": 1.0, "blur_sigma": (100.0, 200.0)},
    "hardly any blur": {"blur": 1.0, "blur_sigma": (1e-5, 1e-4)},
    "colors": {
        **{"jitter": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5},
        **{"solarize": 1.0, "solarize_threshold": 0},
    },
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "train").mkdir()
    for height, width in SIZES:
        noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for kind, options in KINDS.items():
            options = dict(options)
            mode = options.pop("mode", "RGB")
            picture = Image.fromarray(noise)
            if mode == "I;16":
                picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
            path = folder / "train" / f"{height}x{width}.{kind}"
            picture.convert(mode).save(path, **options)
    return open_source("folder", "train", path=folder)


def levels(source, backend, policy):
    """Views in [0, 255], and their images."""
    loader = build_loader(source, policy, batch_size=8, drop_last=False, backend=backend)
    batches = list(loader)
    return torch.cat([batch.images for batch in batches], 1), torch.cat([b.index for b in batches])


def recipe(**options):
    return AugmentationRecipe(**{"size": 16, "mean": (0, 0, 0), "std": (1 / 255,) * 3, **options})


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_views(source, name):
    """Levels of the image, and the same by both renderers up to rounding."""
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    policy = ComposedPolicy(recipe(**RECIPES[name]), views=2)
    ours, theirs = (levels(source, backend, policy) for backend in ("torchvision", "dali"))
    assert torch.equal(ours[1], theirs[1])
    for views, _ in (ours, theirs):
        assert views.isfinite().all() and views.min() >= -0.01 and views.max() <= 255.01
    # One resize in two steps and one at once round differently, of noise shrunk to one pixel most.
    apart = (ours[0] - theirs[0]).abs().mean((0, 2, 3, 4))
    names = [Path(source.sample_name(i)).name for i in ours[1].tolist()]
    assert apart.mean() < 1.5, dict(zip(names, apart.tolist(), strict=True))
    assert apart.max() < 12, dict(zip(names, apart.tolist(), strict=True))


class Boxes(ComposedPolicy):
    """Every view of the same box, whatever the image."""

    box = (0.0, 0.0, 1.0, 1.0)

    def plan(self, *arguments, **options):
        plan = super().plan(*arguments, **options)
        plan.rows[..., :4] = torch.tensor(self.box)
        return plan


@pytest.mark.parametrize("backend", ["torchvision", "dali"])
@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1.1), (-0.1, 0, 1, 1), (0.5, 0, 0.6, 1), (0, 0, 0, 1), (float("nan"), 0, 1, 1)],
)
def test_box_beyond_the_image_is_refused(source, backend, box):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="needs DALI")
    policy = Boxes(recipe(), views=2)
    policy.box = box
    with pytest.raises(ValueError, match="crop boxes must be non-empty and inside the image, got"):
        levels(source, backend, policy)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (0.99, 0.99, 0.01, 0.01)])
def test_box_that_rounds_beyond_the_image_ends_with_it(source, box):
    """Half of 3 pixels, from the half on: rounded, pixels 2 and 3 of 0 to 2."""
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    plain = dict.fromkeys(("flip", "jitter", "grayscale"), 0.0)
    policy = Boxes(recipe(**plain), views=1)
    policy.box = box
    ours, theirs = (levels(source, backend, policy)[0] for backend in ("torchvision", "dali"))
    assert (ours - theirs).abs().mean() < 1.5
    white = (ours.amax((0, 2, 3, 4)) > 0).float().mean()
    assert white > 0.8  # nothing of it is padding
