"""Folders of images: layouts, splits, pixels, and files that are no images."""

import zlib

import numpy as np
import pytest
import torch
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


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


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


def test_test_split_uses_the_class_ids_of_train(split_folder):
    (split_folder / "test/cat/0.png").unlink()
    test = FolderSource(split_folder, "test")
    assert test.labels["class"].tolist() == [1]
    assert test.classes["class"] == ["cat", "dog"]


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


def test_max_images_is_spread_over_the_classes(tmp_path):
    for name in ("a", "b", "c"):
        for i in range(10):
            save(tmp_path / "train" / name / f"{i}.png")
    source = open_source("folder", "train", path=tmp_path, max_images=6)
    assert source.labels["class"].tolist() == [0, 0, 1, 1, 2, 2]
    assert source.classes["class"] == ["a", "b", "c"]
    assert len(open_source("folder", "train", path=tmp_path, max_images=100)) == 30


def test_small_images_of_one_size_are_in_memory(tmp_path):
    arrays = [pixels(20, 30, seed=i) for i in range(10)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"train/{i}.png", array)
    source = FolderSource(tmp_path, "train")
    assert source.stacked.shape == (10, 3, 20, 30) and source.stacked.dtype == torch.uint8
    for i, array in enumerate(arrays):
        assert torch.equal(source.image(i), torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize("shapes", [[(8, 8), (8, 9)], [(65, 8), (65, 8)]])
def test_other_images_are_decoded_when_used(tmp_path, shapes):
    arrays = [pixels(*shape) for shape in shapes]
    for i, array in enumerate(arrays):
        save(tmp_path / f"train/{i}.png", array)
    source = FolderSource(tmp_path, "train")
    assert source.stacked is None
    assert source.sizes.tolist() == [list(shape) for shape in shapes]
    for i, array in enumerate(arrays):
        image = source.image(i)
        assert image.is_contiguous() and image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder in ("train", "test"):
        save(tmp_path / folder / f"a.{suffix}", pixels(8, 12), exif=exif)
    save(tmp_path / "test/b.png", pixels(9, 9))  # another size: decoded when used
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, 1),
    }[orientation](pixels(8, 12))
    for split in ("train", "test"):
        source = FolderSource(tmp_path, split)
        assert source.sizes[0].tolist() == list(upright.shape[:2])
        expected = torch.from_numpy(upright.copy()).permute(2, 0, 1)
        assert torch.equal(source.image(0), expected)


def late_exif(path, exif):
    """Moves the EXIF chunk of a PNG file behind the pixels."""
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + len(exif.tobytes()) - len(b"Exif\0\0")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])


@pytest.mark.parametrize("size", [(8, 12), (70, 80)], ids=["in memory", "decoded when used"])
def test_exif_behind_the_pixels_of_a_png(tmp_path, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    late_exif(save(tmp_path / "train/a.png", pixels(*size), exif=exif), exif)
    source = FolderSource(tmp_path, "train")
    upright = torch.from_numpy(np.rot90(pixels(*size), -1).copy()).permute(2, 0, 1)
    assert source.sizes.tolist() == [list(upright.shape[1:])]
    assert torch.equal(source.image(0), upright)


XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize("options", [{"xmp": XMP}, {"exif": b"Exif\0\0damaged"}], ids=str)
def test_picture_without_orientation_in_exif_stays_as_it_is(tmp_path, options):
    save(tmp_path / "train/a.jpg", pixels(8, 12), **options)
    save(tmp_path / "train/b.png", pixels(8, 12), exif=b"damaged")
    source = FolderSource(tmp_path, "train")
    assert source.sizes.tolist() == [[8, 12]] * 2
    assert torch.equal(source.image(1), torch.from_numpy(pixels(8, 12)).permute(2, 0, 1))


def ramp(dtype):
    """All levels of 16 bits."""
    return np.arange(1 << 16, dtype=dtype).reshape(256, 256)


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.png", np.uint16), ("a.tiff", np.uint16), ("a.tiff", np.int32), ("a.ppm", ">u2")],
)
def test_grey_of_16_bits_keeps_the_upper_eight(tmp_path, name, data):
    path = tmp_path / "train" / name
    path.parent.mkdir()
    if name == "a.ppm":
        path.write_bytes(b"P5 256 256 65535\n" + ramp(data).tobytes())
    else:
        save(path, ramp(data))
    image = FolderSource(tmp_path, "train").image(0)
    assert torch.equal(image, torch.arange(256, dtype=torch.uint8)[:, None].expand(3, 256, 256))


@pytest.mark.parametrize("array", [ramp(np.float32), ramp(np.int32) - 1, ramp(np.int32) + 1])
def test_pixels_of_no_known_range_are_refused(tmp_path, array):
    save(tmp_path / "train/a.tiff", array)
    with pytest.raises(BadImageError, match="a.tiff: its pixels are numbers of no known range"):
        FolderSource(tmp_path, "train").image(0)
    save(tmp_path / "train/b.png", pixels(80, 80))
    source = FolderSource(tmp_path, "train", on_bad_image="skip")
    assert source.skipped == [str(tmp_path / "train/a.tiff")]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(pixels())
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / ("a.jpg" if mode == "CMYK" else "a.png"))
    assert FolderSource(tmp_path, "train").image(0).shape == (3, 8, 8)


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("<html>404</html>")


def make_noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def make_dangling(path):
    path.unlink()
    path.symlink_to("nowhere.jpg")


BAD_FILES = [
    (make_empty, "the file is empty"),
    (make_text, "not an image file"),
    (make_noise, "not an image file"),
    (truncate, "truncated"),
    (make_dangling, "the file does not exist"),
]


@pytest.fixture(params=[(40, 40), (80, 80)], ids=["in memory", "decoded when used"])
def jpegs(request, tmp_path):
    for i in range(5):
        save(tmp_path / f"train/cat/{i}.jpg", pixels(*request.param, seed=i))
    return tmp_path


@pytest.mark.parametrize(("damage", "reason"), BAD_FILES)
def test_bad_file_is_an_error_that_names_it(jpegs, damage, reason):
    damage(jpegs / "train/cat/3.jpg")
    with pytest.raises(BadImageError, match=rf"cat/3\.jpg: .*{reason}"):
        source = FolderSource(jpegs, "train")
        source.image(3)


@pytest.mark.parametrize(("damage", "reason"), BAD_FILES)
def test_bad_files_are_skipped_and_listed(jpegs, damage, reason):
    damage(jpegs / "train/cat/3.jpg")
    source = open_source("folder", "train", path=jpegs, on_bad_image="skip")
    assert source.skipped == [str(jpegs / "train/cat/3.jpg")]
    assert [path.name for path in source.files] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert len(source) == len(source.sizes) == len(source.labels["class"]) == 4
    assert all(source.image(i).shape[0] == 3 for i in range(4))


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_nothing_is_skipped_among_good_files(jpegs, on_bad_image):
    source = FolderSource(jpegs, "train", on_bad_image=on_bad_image)
    assert source.skipped == [] and len(source) == 5


def test_png_damaged_after_its_header(tmp_path):
    for i in range(3):
        save(tmp_path / f"train/{i}.png", pixels(80, 80, seed=i))
    truncate(tmp_path / "train/1.png")
    source = FolderSource(tmp_path, "train")  # which reads the header alone
    with pytest.raises(BadImageError, match=r"train/1\.png"):
        source.image(1)
    assert len(FolderSource(tmp_path, "train", on_bad_image="skip").skipped) == 1


def test_all_files_bad(tmp_path):
    for i in range(3):
        make_empty(save(tmp_path / f"train/{i}.png"))
    with pytest.raises(ValueError, match="none of the 3 image files under .* can be decoded"):
        FolderSource(tmp_path, "train", on_bad_image="skip")


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
    with pytest.raises(FileNotFoundError, match=r"has train/ but no test/ or val/"):
        FolderSource(tmp_path, "test")


def test_class_unknown_to_train(split_folder):
    save(split_folder / "test/emu/0.png")
    with pytest.raises(ValueError, match="test has classes that train/ has not: emu"):
        FolderSource(split_folder, "test")


def test_loose_images_beside_classes(split_folder):
    save(split_folder / "train/stray.png")
    with pytest.raises(ValueError, match=r"images beside class folders \(stray\.png beside cat/\)"):
        FolderSource(split_folder, "train")
