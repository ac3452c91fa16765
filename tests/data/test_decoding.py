"""Files with other channels and depths than pictures have: TIFF, PNG of 16 bits, arrays."""

import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mast_ext.data import BadImageError, FolderSource, SplitError


def levels(*shape, dtype=np.uint16, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=dtype)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array):
    """A PNG file of 16 bits with 1 to 4 channels, which Pillow does not write."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def check(source, *arrays):
    """That a source has just these images ``[H, W, C]``, and has found out in time."""
    assert len(source) == len(arrays)
    assert source.channels == arrays[0].shape[-1]
    assert source.bits == 8 * arrays[0].dtype.itemsize
    for i, array in enumerate(arrays):
        image = source.image(i)
        assert tuple(source.sizes[i]) == image.shape[1:] == array.shape[:2]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), array)


SIZES = [(8, 12), (70, 80)]


@pytest.fixture
def tmp_path(tmp_path):
    """The training split of a folder."""
    (tmp_path / "train").mkdir()
    return tmp_path / "train"


@pytest.fixture(params=SIZES, ids=["in memory", "decoded when used"])
def size(request):
    return request.param


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_in_color_of_16_bits(tmp_path, size, channels):
    pytest.importorskip("imagecodecs", reason="needs imagecodecs")
    array = levels(*size, channels)
    (tmp_path / "a.png").write_bytes(png(array))
    check(FolderSource(tmp_path.parent, "train"), array[..., : 1 if channels == 2 else 3])


def test_damaged_png_in_color_of_16_bits_is_named(tmp_path):
    pytest.importorskip("imagecodecs", reason="needs imagecodecs")
    data = png(levels(70, 80, 3))
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImageError, match=r"a\.png"):
        FolderSource(tmp_path.parent, "train").image(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 5, 13])
def test_tiff_of_many_channels(tmp_path, size, dtype, planar, channels):
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    arrays = [levels(*size, channels, dtype=dtype, seed=seed) for seed in range(2)]
    for i, array in enumerate(arrays):
        stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
        kinds = {"photometric": "minisblack", "planarconfig": planar}
        extra = {"extrasamples": ["unspecified"] * (channels - 1)}
        tifffile.imwrite(tmp_path / f"{i}.tif", stored, **kinds, **extra)
    check(FolderSource(tmp_path.parent, "train"), *arrays)
    check(FolderSource(tmp_path.parent, "train", on_bad_image="skip"), *arrays)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_tiff_in_which_0_is_white(tmp_path, dtype, channels):
    """Of gray alone. Pillow turns 8 bits around, of one sample, and nothing else."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    array = levels(8, 9, channels, dtype=dtype)
    stored = array.copy()
    stored[..., 0] = np.iinfo(dtype).max - array[..., 0]
    extra = {"extrasamples": ["unspecified"] * (channels - 1)} if channels > 1 else {}
    stored = stored if channels > 1 else stored[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", **extra)
    check(FolderSource(tmp_path.parent, "train"), array)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_tiff_in_color_of_16_bits(tmp_path, size, compression):
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    pytest.importorskip("imagecodecs", reason="needs imagecodecs")
    array = levels(*size, 3)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", compression=compression)
    check(FolderSource(tmp_path.parent, "train"), array)


@pytest.mark.parametrize(("extra", "channels"), [("unspecified", 4), ("unassalpha", 3)])
def test_a_fourth_sample_is_a_channel_unless_it_is_transparency(tmp_path, extra, channels):
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    array = levels(8, 9, 4, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=[extra])
    check(FolderSource(tmp_path.parent, "train"), array[..., :channels])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_pages_of_one_size_are_channels(tmp_path, size, dtype):
    array = levels(*size, 3, dtype=dtype)
    first, *others = (Image.fromarray(np.ascontiguousarray(array[..., c])) for c in range(3))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    check(FolderSource(tmp_path.parent, "train"), array)


def test_a_smaller_page_is_no_channel(tmp_path):
    array = levels(70, 80, 1, dtype=np.uint8)
    small = Image.fromarray(array[::2, ::2, 0].copy())
    Image.fromarray(array[..., 0]).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    check(FolderSource(tmp_path.parent, "train"), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("channels", [None, 1, 3, 13])
def test_arrays_of_one_image_each(tmp_path, size, dtype, channels):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        array = levels(*size, channels or 1, dtype=np.dtype(dtype).newbyteorder("="))
        stored = array.astype(dtype) if channels else array[..., 0].astype(dtype)
        np.save(tmp_path / name / "0.npy", stored)
    source = FolderSource(tmp_path.parent, "train")
    assert source.classes == {"class": ["a", "b"]}
    check(source, array, array)


def test_arrays_beside_images_are_none(tmp_path):
    """Masks, say."""
    Image.fromarray(levels(8, 8, 3, dtype=np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert len(FolderSource(tmp_path.parent, "train")) == 1


ARRAYS = {
    r"\[H, W\] or \[H, W, C\], channels last, got float32 \[8, 8\]": np.zeros((8, 8), np.float32),
    r"got uint8 \[8\]": np.zeros(8, np.uint8),
    r"got uint8 \[0, 8\], which has no pixels": np.zeros((0, 8), np.uint8),
    r"got uint8 \[3, 8, 9\], whose .* numpy.moveaxis\(array, 0, -1\)": np.zeros(
        (3, 8, 9), np.uint8
    ),
}


@pytest.mark.parametrize("message", ARRAYS)
def test_arrays_that_are_no_images(tmp_path, message):
    np.save(tmp_path / "a.npy", ARRAYS[message])
    with pytest.raises(
        BadImageError, match=rf"a\.npy: its array must be uint8 or uint16 .*{message}"
    ):
        FolderSource(tmp_path.parent, "train")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-9], lambda d: d[:20], lambda d: b"", lambda d: b"x"]
)
def test_damaged_array_is_named(tmp_path, damage):
    np.save(tmp_path / "a.npy", levels(70, 80))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(damage(data))
    with pytest.raises(BadImageError, match=r"a\.npy"):
        FolderSource(tmp_path.parent, "train").image(0)


def test_arrays_with_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(BadImageError, match=r"a\.npy: .*uint16.*got object"):
        FolderSource(tmp_path.parent, "train")


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_images_of_different_channels_are_named(tmp_path, on_bad_image):
    for name, channels in (("a", 13), ("b", 13), ("c", 3)):
        np.save(tmp_path / f"{name}.npy", levels(20, 21, channels))
    with pytest.raises(ValueError, match=r"one number of channels: .*\.npy has 13 and .*c\.npy 3"):
        FolderSource(tmp_path.parent, "train", on_bad_image=on_bad_image)


def test_channels_that_images_cannot_have(tmp_path):
    np.save(tmp_path / "a.npy", levels(70, 80, 13))
    with pytest.raises(ValueError, match=r"a\.npy has 13 channels, which cannot become 3"):
        FolderSource(tmp_path.parent, "train", channels=3)
    assert FolderSource(tmp_path.parent, "train", channels=13).channels == 13


@pytest.fixture
def without_packages(monkeypatch):
    for name in ("imagecodecs", "tifffile"):
        monkeypatch.setitem(sys.modules, name, None)


def test_package_that_is_missing_is_named(tmp_path, without_packages):
    (tmp_path / "a.png").write_bytes(png(levels(8, 8, 3)))
    message = r"a\.png: PNG in .* needs imagecodecs, .*: pip install 'mast-ext\[images\]'"
    with pytest.raises(BadImageError, match=message):
        FolderSource(tmp_path.parent, "train")
    with pytest.raises(SplitError, match=f"none of the 1 image files .*; the first: .*{message}"):
        FolderSource(tmp_path.parent, "train", on_bad_image="skip")


def tiff(samples, bits):
    """The head of a TIFF file, to be read without a package that writes it."""
    entries = [(256, 4, 8), (257, 4, 8), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 200)]
    entries += [(277, 3, samples), (278, 4, 8), (279, 4, 8 * 8 * samples * bits // 8)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    return head.ljust(200, b"\0") + bytes(8 * 8 * samples * bits // 8)


@pytest.mark.parametrize("samples", [2, 13])
def test_tiff_without_its_package(tmp_path, without_packages, samples):
    (tmp_path / "a.tif").write_bytes(tiff(samples, 8))
    with pytest.raises(BadImageError, match=r"a\.tif: .*tifffile.*'mast-ext\[images\]'"):
        FolderSource(tmp_path.parent, "train")
