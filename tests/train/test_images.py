"""What is said of images that cannot be probed by, or not in full. Training needs no labels."""

import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from mast_ext.train.config import DataConfig
from mast_ext.train.evaluation.images import open_images


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def folder(root, **counts):
    """Folders of so many images each; a name has two underscores for a slash."""
    for name, count in counts.items():
        place = root / name.replace("__", "/")
        place.mkdir(parents=True)
        for i in range(count):
            (place / f"{i}.png").write_bytes(png(i))
    return DataConfig("folder", str(root))


ONE_EACH = {f"case{i}": 1 for i in range(8)}

# images by folder, for how many to train on, why nothing is probed
UNPROBED = [
    (ONE_EACH, 8, "no images .* in the test split of"),
    ({"train__a": 6, "train__b": 6, "test": 0}, 12, "no images .* in .*test"),
    ({"train__a": 6, "train__b": 6}, 12, "has train/ but none of test/, testing/, val"),
    ({"a": 20}, 18, "all training images are of one class"),
    ({"train__a": 6, "test__a": 6}, 6, "all training images are of one class"),
    ({"train__a": 6, "train__b": 6, "test__a": 1, "test__c": 1}, 12, "that train/ has not: c"),
    ({"train__a": 6, "train__b": 6, "test": 2}, 12, "has not: files without a class"),
    ({"train": 6, "test": 2}, 6, "the images have no labels"),
]


def test_what_lies_beside_the_training_images_is_told(tmp_path):
    """A class may be called train."""
    found = open_images(folder(tmp_path, train=6, car=3, bus=3))
    assert len(found.train) == 6
    assert found.notes == ["left out, as beside the folder of the training split: bus, car"]


@pytest.mark.parametrize(("counts", "images", "why"), UNPROBED)
def test_trains_on_what_cannot_be_probed(tmp_path, counts, images, why):
    found = open_images(folder(tmp_path, **counts))
    assert len(found.train) == images and found.labeled is None and found.notes == []
    assert re.search(why, found.why_not)


def test_unreadable_test_images(tmp_path):
    data = folder(tmp_path, train__a=6, train__b=6, test__a=1)
    (tmp_path / "test/a/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"test/a/0\.png: the file is empty"):
        open_images(data)
    found = open_images(DataConfig("folder", data.path, on_bad_image="skip"))
    assert found.labeled is None and "none of the 1 image files" in found.why_not


def test_classes_that_test_has_not(tmp_path):
    found = open_images(folder(tmp_path, a=20, b=20, c=1, d=1))
    assert len(found.labeled.test) == 4
    assert found.notes == [
        "test has no images of 2 of the 4 classes in train, of which probes tell nothing: c, d"
    ]


def test_classes_that_train_has_not(tmp_path):
    """As few images may leave some out, or archives whose labels are numbers."""
    data = folder(tmp_path, train__a=9, train__b=1, train__c=9, test__b=1, test__c=1)
    found = open_images(DataConfig("folder", data.path, max_images=5))
    assert found.notes == [
        "test has no images of 1 of the 2 classes in train, of which probes tell nothing: a",
        "train has no images of 1 of the 2 classes in test, which probes cannot get right: b",
    ]


def shards(root, **splits):
    """An archive for each split, of samples with these labels, or without one for None."""
    for split, labels in splits.items():
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for i, label in enumerate(labels):
                members = {f"{i}.png": png(i)}
                if label is not None:
                    members[f"{i}.cls"] = str(label).encode()
                for name, content in members.items():
                    header = tarfile.TarInfo(name)
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
    return DataConfig("shards", str(root))


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        ([0, 1, 0, 1, 0], [None, None], "the test images have no labels"),
        (["a", "b", "a", "b", "a"], ["a", "c"], "its class 'c' is not among those of the training"),
        ([7, 7, 7, 7, 7], [7], "all training images are of one class"),
    ],
)
def test_archives_that_cannot_be_probed(tmp_path, train, test, why):
    found = open_images(shards(tmp_path, train=train, test=test))
    assert len(found.train) == 5 and found.labeled is None and why in found.why_not


def test_numbers_of_classes_that_train_has_not(tmp_path):
    found = open_images(shards(tmp_path, train=[0, 1, 0, 1, 0], test=[1, 5]))
    assert found.notes[1].endswith("classes in test, which probes cannot get right: 5")


@pytest.mark.parametrize("splits", [True, False])
def test_images_of_kinds_that_are_not_read_are_counted(tmp_path, splits):
    """Wherever they lie, once; neither other files nor hidden ones."""
    names = ["train__a", "train__b"] if splits else ["a", "b"]
    data = folder(tmp_path, **dict.fromkeys(names, 20), **({"test__a": 2} if splits else {}))
    place = tmp_path / names[0].replace("__", "/")
    (place / "deep").mkdir()
    for name in ("0.HEIC", "deep/1.heic", "2.gif", ".3.gif", "notes.txt", "4.cls"):
        (place / name).write_bytes(b"")
    (note,) = [note for note in open_images(data).notes if "not read" in note]
    assert note == "3 images of kinds that are not read left out in train: 1 .gif, 2 .heic"


def test_images_of_other_kinds_alone(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images .* but 3 of other kinds \(\.heic\)"):
        open_images(DataConfig("folder", str(tmp_path)))
