"""Opening a source by name refuses what makes no sense."""

import pytest

from mast_ext.data import open_source

REFUSED = [
    ({"name": "imagenet"}, "source must be one of shapes, folder, shards, .*, got 'imagenet'"),
    ({"channels": 1}, "images of shapes have 3 channels of 8 bits, got channels 1"),
    ({"name": "cifar10", "path": "x", "bits": 16}, "images of cifar10 .*, got .* bits 16"),
    ({"name": "numpy"}, "source 'numpy' needs a path"),
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
