"""Folders of images: layouts, splits, classes. What their files hold: test_encoded.py."""

import errno
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from mast_ext.data import BadImageError, FolderSource, open_source


def pixels(height=8, width=8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels(seed=zlib.crc32(path.name.encode())) if array is None else array
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def split_folder(tmp_path):
    """train/ with classes of 3 and 2 images, test/ with one of each."""
    for name in ("train/cat/0.png", "train/cat/1.png", "train/cat/2.JPG", "train/dog/0.png"):
        save(tmp_path / name)
    save(tmp_path / "train/dog/deeper/1.png")
    for name in ("test/cat/0.png", "test/dog/0.png"):
        save(tmp_path / name)
    for name in ("train/.cache/0.png", "train/.0.png", "train/cat/.thumbnails/0.png"):
        save(tmp_path / name)
    (tmp_path / "train/cat/._0.png").write_text("left by a file manager")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    return tmp_path


def test_split_folder_with_classes(split_folder):
    train = open_source("folder", "train", path=split_folder)
    assert train.name == "folder" and len(train) == 5
    assert train.classes == {"class": ["cat", "dog"]}
    assert train.labels["class"].tolist() == [0, 0, 0, 1, 1]
    assert train.labels["class"].dtype == np.int64
    assert train.sizes.tolist() == [[8, 8]] * 5 and train.sizes.dtype == np.int32
    assert [path.name for path in train.files] == ["0.png", "1.png", "2.JPG", "0.png", "1.png"]
    test = open_source("folder", "test", path=split_folder)
    assert test.labels["class"].tolist() == [0, 1]


def test_val_stands_in_for_test(split_folder):
    (split_folder / "test").rename(split_folder / "val")
    assert len(FolderSource(split_folder, "test")) == 2


@pytest.mark.parametrize("test", ["validation", "Val", "VALID", "Test", "testing"])
@pytest.mark.parametrize("train", ["Train", "training"])
def test_names_of_splits_in_any_case(split_folder, train, test):
    for name, other in (("train", train), ("test", test)):
        (split_folder / name).rename(split_folder / "moved")
        (split_folder / "moved").rename(split_folder / other)
    sources = [FolderSource(split_folder, split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [5, 2]
    assert sources[0].classes == {"class": ["cat", "dog"]} and sources[0].beside == []


def test_lower_case_counts_of_two_names(split_folder):
    save(split_folder / "Train" / "cat" / "0.png")
    for split in ("Test", "TEST"):
        save(split_folder / split / "cat" / "0.png")
    sources = [FolderSource(split_folder, split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [5, 2]


@pytest.mark.parametrize("images", [["0.png"], ["images/0.png"], []])
def test_val_stands_in_for_a_test_split_that_does_not_fit(split_folder, images):
    """Of images without classes, as ImageNet's, or of none."""
    (split_folder / "test").rename(split_folder / "val")
    (split_folder / "test").mkdir()
    for name in images:
        save(split_folder / "test" / name)
    assert FolderSource(split_folder, "test").labels["class"].tolist() == [0, 1]


def test_val_does_not_stand_in_for_a_test_split_with_an_unknown_class(split_folder):
    (split_folder / "test").rename(split_folder / "val")
    for name in ("cat", "emu"):
        save(split_folder / "test" / name / "0.png")
    with pytest.raises(ValueError, match="test has classes that train/ has not: emu"):
        FolderSource(split_folder, "test")


def test_folders_beside_the_training_split_are_named(split_folder):
    save(split_folder / "unlabeled/deeper/0.png")
    (split_folder / "logs").mkdir()
    assert FolderSource(split_folder, "train").beside == ["unlabeled"]
    assert FolderSource(split_folder, "test").beside == []


def test_split_folder_without_classes(tmp_path):
    save(tmp_path / "train/0.png")
    save(tmp_path / "test/0.png")
    source = FolderSource(tmp_path, "train")
    assert len(source) == 1 and source.labels == {} and source.classes == {}


@pytest.mark.parametrize("classes", [("",), ("cat", "dog")])
def test_folder_without_splits_is_split_by_name(tmp_path, classes):
    for name in classes:
        for i in range(20):
            save(tmp_path / name / f"{i:02}.png")
    train, test = (FolderSource(tmp_path, split) for split in ("train", "test"))
    assert len(train) == 18 * len(classes) and len(test) == 2 * len(classes)
    assert not {*train.files} & {*test.files}
    assert FolderSource(tmp_path, "test").files == test.files
    if classes == ("",):
        assert train.labels == {} and train.classes == {}
    else:
        assert np.bincount(train.labels["class"]).tolist() == [18, 18]
        assert np.bincount(test.labels["class"]).tolist() == [2, 2]


def test_dangling_link_is_named_or_skipped(split_folder):
    path = split_folder / "train/cat/1.png"
    path.unlink()
    path.symlink_to("nowhere.png")
    with pytest.raises(BadImageError, match=r"cat/1\.png: .*the file does not exist"):
        FolderSource(split_folder, "train")
    source = FolderSource(split_folder, "train", on_bad_image="skip")
    assert source.skipped == [str(path)] and len(source) == 4


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_named_or_skipped(split_folder, make):
    """A pipe is not waited for; a folder of such a name among the files of a class is a folder."""
    path = split_folder / "train/cat/a.png"
    path.unlink(missing_ok=True)
    make(path)
    if make is os.mkfifo:
        with pytest.raises(BadImageError, match=f"image {path}: it is not a regular file"):
            FolderSource(split_folder, "train")
    source = FolderSource(split_folder, "train", on_bad_image="skip")
    assert source.skipped == ([str(path)] if make is os.mkfifo else [])


def test_links_to_folders_are_followed(split_folder):
    elsewhere = save(split_folder / "elsewhere/7.png").parent
    (split_folder / "train/cat/more").symlink_to(elsewhere)
    (split_folder / "train/emu").symlink_to(elsewhere)
    source = FolderSource(split_folder, "train")
    assert source.classes == {"class": ["cat", "dog", "emu"]}
    assert source.labels["class"].tolist() == [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog/deeper"])
def test_links_in_a_circle_are_not_followed(split_folder, target):
    """Of two folders with links to each other each has the other's images once."""
    (split_folder / "train/cat/circle").symlink_to(target)
    (split_folder / "train/dog/deeper/back").symlink_to("../../cat")
    cats, dogs = np.bincount(FolderSource(split_folder, "train").labels["class"])
    assert (cats, dogs) == (4 if "deeper" in target else 3, 5)


def test_a_link_to_itself_is_a_file_that_cannot_be_read(split_folder):
    for name in ("loop", "loop.png"):
        (split_folder / "train/cat" / name).symlink_to(name)
    with pytest.raises(BadImageError, match=r"loop\.png"):
        FolderSource(split_folder, "train")
    source = FolderSource(split_folder, "train", on_bad_image="skip")
    assert source.skipped == [str(split_folder / "train/cat/loop.png")]


def test_a_folder_that_cannot_be_read_is_no_empty_one(split_folder, monkeypatch):
    """Its images would be missing without a word."""
    scandir = os.scandir

    def denied(path="."):
        if os.path.basename(path) == "deeper":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="Permission denied: .*dog/deeper"):
        FolderSource(split_folder, "train")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photos does not exist"):
        open_source("folder", "train", path=tmp_path / "photos")


def test_file_instead_of_a_folder(tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"a\.png is not a folder"):
        FolderSource(path, "train")


@pytest.mark.parametrize("layout", [(), ("train",), ("train/cat",), ("cat",)])
def test_empty_folder(tmp_path, layout):
    for name in layout:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images \(\.bmp, .*\) in .*"):
        FolderSource(tmp_path, "train")


def test_missing_split(tmp_path):
    save(tmp_path / "train/a.png")
    with pytest.raises(FileNotFoundError, match="has train/ but none of test/, testing/, val/"):
        FolderSource(tmp_path, "test")


def test_class_unknown_to_train(split_folder):
    save(split_folder / "test/emu/0.png")
    with pytest.raises(ValueError, match="test has classes that train/ has not: emu"):
        FolderSource(split_folder, "test")


def test_loose_images_beside_classes(split_folder):
    save(split_folder / "train/stray.png")
    with pytest.raises(ValueError, match=r"images beside class folders \(stray\.png beside cat/\)"):
        FolderSource(split_folder, "train")
