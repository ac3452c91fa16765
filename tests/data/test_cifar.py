"""CIFAR as published: both forms, both data sets, and files that are not what they should be."""

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision

from mast_ext.data import CIFARSource, open_source

NAMES = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}
TRAIN = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
TEST = {"cifar10": "test_batch", "cifar100": "test"}
COUNT = 20  # images in a file


def batch(name, seed):
    """Pixels [COUNT, 3072], labels and superclasses of one file."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    labels = generator.integers(0, 10 if name == "cifar10" else 100, COUNT)
    return pixels, labels, labels // 5


def write_pickles(folder, name, text=False):
    """With keys of bytes, as Python 2's pickles have them when loaded, or of text."""
    folder.mkdir(parents=True)
    for seed, file in enumerate([*TRAIN[name], TEST[name]]):
        pixels, fine, coarse = batch(name, seed)
        labels = {b"labels": fine.tolist()}
        if name == "cifar100":
            labels = {b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
        contents = {b"data": pixels, **labels}
        if text:
            contents = {key.decode(): value for key, value in contents.items()}
        (folder / file).write_bytes(pickle.dumps(contents, protocol=2))
    if name == "cifar10":
        meta, names = "batches.meta", {"label_names": [f"class {i}".encode() for i in range(10)]}
    else:
        meta, names = "meta", {"fine_label_names": [b"%d" % i for i in range(100)]}
    (folder / meta).write_bytes(pickle.dumps(names, protocol=2))


def write_binary(folder, name):
    folder.mkdir(parents=True)
    for seed, file in enumerate([*TRAIN[name], TEST[name]]):
        pixels, fine, coarse = batch(name, seed)
        columns = [fine] if name == "cifar10" else [coarse, fine]
        labels = np.stack(columns, axis=1).astype(np.uint8)
        (folder / f"{file}.bin").write_bytes(np.concatenate((labels, pixels), axis=1).tobytes())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("write", [write_pickles, write_binary])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_forms(tmp_path, name, write, inside):
    folder = tmp_path / NAMES[name][write is write_binary]
    write(folder, name)
    for split, seeds in (("train", range(len(TRAIN[name]))), ("test", [len(TRAIN[name])])):
        source = open_source(name, split, path=folder if inside else tmp_path)
        parts = [batch(name, seed) for seed in seeds]
        pixels = torch.from_numpy(np.concatenate([part[0] for part in parts]))
        assert source.name == name and len(source) == len(pixels)
        assert torch.equal(source.stacked, pixels.view(-1, 3, 32, 32))
        assert source.image(3).shape == (3, 32, 32)
        assert source.sizes.tolist() == [[32, 32]] * len(pixels)
        assert np.array_equal(source.labels["class"], np.concatenate([p[1] for p in parts]))
        assert len(source.classes["class"]) == (10 if name == "cifar10" else 100)
        if name == "cifar100":
            assert np.array_equal(source.labels["superclass"], parts[0][2])


def test_names_of_classes(tmp_path):
    write_pickles(tmp_path / "cifar-10-batches-py", "cifar10")
    assert CIFARSource("cifar10", tmp_path, "train").classes["class"][3] == "class 3"


def test_same_images_as_torchvision(tmp_path, monkeypatch):
    write_pickles(tmp_path / "cifar-10-batches-py", "cifar10", text=True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = torchvision.datasets.CIFAR10(tmp_path, train=True)
    ours = CIFARSource("cifar10", tmp_path, "train")
    assert np.array_equal(ours.stacked.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels["class"].tolist() == theirs.targets


def test_max_images_is_spread(tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin", "cifar10")
    everything = CIFARSource("cifar10", tmp_path, "train")
    few = CIFARSource("cifar10", tmp_path, "train", max_images=5)
    assert torch.equal(few.stacked, everything.stacked[::20])
    assert few.labels["class"].tolist() == everything.labels["class"][::20].tolist()


class Command:
    """A pickle of it would run a command when loaded."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


DAMAGED = [  # contents of data_batch_2, message
    (b"", "cannot read .*data_batch_2: "),
    (b"words", "cannot read .*data_batch_2: "),
    (pickle.dumps([1]), "it holds a list"),
    (pickle.dumps(Command()), "posix.mkdir is not expected in it"),
    (pickle.dumps({b"labels": [0]}), "data_batch_2 has no b'data': not a batch of cifar10"),
    (pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [0]}), "must have uint8 images"),
    (pickle.dumps({b"data": np.zeros((1, 9), np.uint8), b"labels": [0]}), r"\[N, 3072\], got"),
    (
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
        "data_batch_2 must have a class below 10 for each image",
    ),
    (
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": []}),
        "data_batch_2 must have a class below 10 for each image",
    ),
]


@pytest.mark.parametrize(("data", "message"), DAMAGED)
def test_damaged_pickle(tmp_path, data, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pickles(tmp_path / "cifar-10-batches-py", "cifar10")
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        CIFARSource("cifar10", tmp_path, "train")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("size", [0, 3072, 3073 * 20 - 1])
def test_binary_file_cut_short(tmp_path, size):
    write_binary(tmp_path / "cifar-10-batches-bin", "cifar10")
    (tmp_path / "cifar-10-batches-bin/data_batch_2.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"data_batch_2.bin has {size} bytes, not records of 3073"):
        CIFARSource("cifar10", tmp_path, "train")


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar10: folder .*x does not exist"):
        CIFARSource("cifar10", tmp_path / "x", "train")
    with pytest.raises(FileNotFoundError, match="has none of cifar-100-python, cifar-100-binary"):
        CIFARSource("cifar100", tmp_path, "train")
    write_binary(tmp_path / "cifar-10-batches-bin", "cifar10")
    (tmp_path / "cifar-10-batches-bin/data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_2\.bin"):
        CIFARSource("cifar10", tmp_path, "train")
