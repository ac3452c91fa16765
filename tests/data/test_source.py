"""Opening a source by name refuses what makes no sense, and makes colors gray."""

import numpy as np
import pytest
from PIL import Image

from mast_ext.data import open_source

REFUSED = [
    ({"name": "imagenet"}, "source must be one of shapes, folder, shards, .*, got 'imagenet'"),
    ({"channels": 2}, "images of shapes have 3 channels .* of 8 bits, got channels 2"),
    ({"name": "cifar10", "path": "x", "bits": 16}, "images of cifar10 .*, got .* bits 16"),
    ({"name": "numpy"}, "source 'numpy' needs a path: the folder or file with the images"),
    ({"split": "val"}, "split must be train or test, got 'val'"),
    ({"on_bad_image": "ignore"}, "on_bad_image must be error or skip"),
    ({"max_images": 0}, "max_images must be at least 1, got 0"),
    ({"size": 8}, "size must be at least 16 pixels"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"name": "folder"}, "source 'folder' needs a path"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_source(**{"name": "shapes", "split": "train", **options})


@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_images_in_memory_become_gray(tmp_path, name):
    """As Pillow makes them gray."""
    options = {"size": 16, "max_images": 6}
    if name == "cifar10":
        pixels = np.random.default_rng(0).integers(0, 256, (4, 3073), np.uint8)
        pixels[:, 0] = 1
        for i in range(1, 6):
            pixels.tofile(tmp_path / f"data_batch_{i}.bin")
        options["path"] = tmp_path
    gray, colored = (open_source(name, "train", channels=c, **options) for c in (1, 3))
    side = 16 if name == "shapes" else 32
    assert gray.channels == 1 and gray.stacked.shape == (6, 1, side, side)
    for i in range(6):
        image = Image.fromarray(colored.image(i).permute(1, 2, 0).numpy())
        assert np.array_equal(gray.image(i)[0].numpy(), np.asarray(image.convert("L")))
    assert all(np.array_equal(gray.labels[name], ids) for name, ids in colored.labels.items())
