"""Images in arrays of NumPy's."""

import io
import weakref
import zipfile

import numpy as np
import pytest
import torch

from mast_ext.data import NumpySource, SplitError, open_source
from mast_ext.data.arrays import _Arrays


def levels(*shape, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=dtype)


@pytest.fixture(params=["npz", "folder"])
def write(request, tmp_path):
    """Writes arrays by name, and gives their path."""

    def write(**arrays):
        if request.param == "npz":
            np.savez(tmp_path / "images.npz", **arrays)
            return tmp_path / "images.npz"
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        return tmp_path

    return write


def check(source, array):
    """That a source has these images ``[N, H, W, C]``."""
    assert len(source) == len(source.sizes) == len(array)
    assert (source.channels, source.bits) == (array.shape[-1], 8 * array.dtype.itemsize)
    for i, expected in enumerate(array):
        image = source.image(i)
        assert image.is_contiguous() and tuple(source.sizes[i]) == expected.shape[:2]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


SHAPES = [(8, 9), (8, 9, 1), (8, 9, 3), (70, 80, 13)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_splits_and_labels(write, shape, dtype):
    plain = np.dtype(dtype).newbyteorder("=")
    arrays = {split: levels(6, *shape, dtype=plain) for split in ("train", "test")}
    labels = {"train": np.arange(6) % 3, "test": np.zeros(6, np.uint8)}
    stored = {f"{name}_images": array.astype(dtype) for name, array in arrays.items()}
    path = write(**stored, **{f"{name}_labels": ids for name, ids in labels.items()})
    for split, array in arrays.items():
        source = open_source("numpy", split, path=path)
        check(source, array if len(shape) == 3 else array[..., None])
        assert source.labels["class"].tolist() == labels[split].tolist()
        assert source.labels["class"].dtype == np.int64
        assert source.classes == {"class": ["0", "1", "2"]}
        assert (source.stacked is not None) == (shape[0] <= 64)


def test_without_splits_a_tenth_is_for_tests(write):
    array, labels = levels(40, 8, 8), np.arange(40)
    path = write(images=array, labels=labels)
    train, test = (NumpySource(path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    both = np.concatenate((train.labels["class"], test.labels["class"]))
    assert sorted(both.tolist()) == labels.tolist()
    for source in (train, test):
        check(source, array[source.labels["class"]][..., None])


def test_one_file_without_labels(tmp_path):
    np.save(tmp_path / "scans.npy", levels(20, 70, 80, dtype=np.uint16))
    train, test = (NumpySource(tmp_path / "scans.npy", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2) and train.labels == {} and train.stacked is None


def test_names_of_other_programs(write):
    """MedMNIST's with ``val``, and those with the split behind, under names that are given."""
    path = write(x_train=levels(5, 8, 8), y_train=np.arange(5), x_val=levels(3, 8, 8))
    train, test = (
        NumpySource(path, split, image_column="x", label_column=column)
        for split, column in (("train", "y"), ("test", None))
    )
    assert (len(train), len(test)) == (5, 3)
    assert train.labels["class"].tolist() == [0, 1, 2, 3, 4] and test.labels == {}


@pytest.mark.parametrize("column", ["in", "t", "rain"])
def test_names_that_are_in_those_of_splits(write, column):
    ids = {"train": [0, 1, 0], "test": [1, 0]}
    images = {f"{split}_{column}": levels(len(ids[split]), 8, 8) for split in ids}
    path = write(**images, **{f"{split}_labels": np.array(ids[split]) for split in ids})
    for split in ids:
        source = NumpySource(path, split, image_column=column)
        assert source.labels["class"].tolist() == ids[split]


def test_labels_with_a_split_in_their_name(write):
    names = {"latest_train": np.array(["b", "a"]), "latest_test": np.array(["b"])}
    path = write(images_train=levels(2, 8, 8), images_test=levels(1, 8, 8), **names)
    source = NumpySource(path, "test", label_column="latest")
    assert source.labels["class"].tolist() == [1]


@pytest.mark.parametrize("shape", [(5, 1, 7, 3), (5, 2, 8, 4)])
def test_images_of_few_rows(write, shape):
    array = levels(*shape)
    check(NumpySource(write(train_images=array), "train"), array)


def test_names_of_classes_are_those_of_the_training_split(write):
    images = {"train_images": levels(3, 8, 8), "val_images": levels(2, 8, 8)}
    names = {"train_labels": np.array(["b", "a", "c"]), "val_labels": np.array(["c", "b"])}
    path = write(**images, **names)
    train, test = (NumpySource(path, split) for split in ("train", "test"))
    assert train.classes == test.classes == {"class": ["a", "b", "c"]}
    assert train.labels["class"].tolist() == [1, 0, 2]
    assert test.labels["class"].tolist() == [2, 1]


def test_class_unknown_to_train(write):
    images = {"train_images": levels(2, 8, 8), "test_images": levels(2, 8, 8)}
    names = {"train_labels": np.array(["b", "a"]), "test_labels": np.array(["a", "emu"])}
    with pytest.raises(SplitError, match="classes that the training split has not: emu"):
        NumpySource(write(**images, **names), "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_with_different_numbers_of_labels(write, split):
    images = {"train_images": levels(2, 8, 8), "test_images": levels(2, 8, 8)}
    other = {"train": "test", "test": "train"}[split]
    labels = {f"{split}_labels": np.zeros((2, 2), int), f"{other}_labels": np.zeros(2, int)}
    path, message = write(**images, **labels), "as many labels of each image as those to train on"
    with pytest.raises(ValueError, match=message):
        NumpySource(path, "test")


def test_several_labels_are_factors(write):
    labels = np.array([[0, 5], [1, 4], [0, 3]])
    source = NumpySource(write(train_images=levels(3, 8, 8), train_labels=labels), "train")
    assert {name: ids.tolist() for name, ids in source.labels.items()} == {
        "class 0": [0, 1, 0],
        "class 1": [5, 4, 3],
    }
    assert source.classes["class 1"] == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("side", [8, 70])
def test_conversions_and_fewer_images(write, side):
    array = levels(10, side, side, dtype=np.uint16)
    source = NumpySource(write(train_images=array), "train", max_images=5, channels=3, bits=8)
    check(source, np.repeat((array[::2] >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_small_images_are_in_memory_once(write, monkeypatch):
    arrays = []
    load = _Arrays.read
    monkeypatch.setattr(_Arrays, "read", lambda *args: arrays.append(load(*args)) or arrays[-1])
    source = NumpySource(write(images=levels(6, 8, 8, 3)), "train")
    assert len(source.stacked) == 5
    held = weakref.ref(arrays.pop())
    assert not arrays and held() is None


def test_npy_is_not_read_before_it_is_used(tmp_path):
    """Here a file of 4 GB, most of which has never been written."""
    header = io.BytesIO()
    shape = (1 << 16, 256, 256)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with open(tmp_path / "large.npy", "wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + (1 << 32))
    source = NumpySource(tmp_path / "large.npy", "train")
    assert len(source) > 58000 and torch.count_nonzero(source.image(7)) == 0


REFUSED = {
    "no array images or train_images (but x, y): data.image_column says": {"x": 1, "y": 2},
    "got float32 [N, 8, 8]": {"images": np.zeros((2, 8, 8), np.float32)},
    "got uint8 [N, 8]": {"images": np.zeros((2, 8), np.uint8)},
    "numpy.moveaxis(array, 1, -1) moves them": {"images": np.zeros((2, 3, 8, 8), np.uint8)},
    "no images in the train split of images": {"images": np.zeros((0, 8, 8), np.uint8)},
    "must have a label for each of 2 images, [N] or [N, K], got [3]": {
        "images": levels(2, 8, 8),
        "labels": np.zeros(3, int),
    },
    "labels must be integers or names, got float64": {
        "images": levels(2, 8, 8),
        "labels": np.zeros(2),
    },
    "label -1 of image 1 is out of range": {
        "images": levels(2, 8, 8),
        "labels": np.array([0, -1]),
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_arrays_that_cannot_be_used(write, message):
    with pytest.raises(ValueError) as caught:
        NumpySource(write(**REFUSED[message]), "train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_split_and_labels_that_are_not_there(write):
    path = write(train_images=levels(2, 8, 8))
    with pytest.raises(FileNotFoundError, match="train_images but no test_images or val_images"):
        NumpySource(path, "test")
    with pytest.raises(ValueError, match="has no array train_ids"):
        NumpySource(path, "train", label_column="ids")


@pytest.mark.parametrize("name", ["none.npz", "none.npy", "folder"])
def test_what_is_not_there(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=name):
        NumpySource(tmp_path / name, "train")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("keep", [0, 4, 60, -40])
def test_damaged_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"images.{suffix}"
    save = {"npy": np.save, "npz": lambda path, x: np.savez(path, images=x)}[suffix]
    save(path, levels(4, 70, 80))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"cannot read .*images\.{suffix}"):
        NumpySource(path, "train")


def test_damage_inside_of_an_archive(tmp_path):
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\1\0nonsense")
    with pytest.raises(ValueError, match=r"cannot read images in .*images\.npz"):
        NumpySource(path, "train")


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "images.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot read"):
        NumpySource(tmp_path / "images.npy", "train")
