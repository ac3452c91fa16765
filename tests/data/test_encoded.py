"""What folders and shards have in common: images of all kinds, sizes, labels, and damaged files."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.EpsImagePlugin import EpsImageFile

from mast_ext.data import BadImageError, FolderSource, ShardsSource, open_source

SOURCES = {"folder": FolderSource, "shards": ShardsSource}


def pixels(height=8, width=8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, suffix="png", **options):
    """The bytes of a file; `image` is one of Pillow's, or pixels."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    return buffer.getvalue()


@pytest.fixture(params=SOURCES)
def kind(request):
    return request.param


@pytest.fixture
def write(kind, tmp_path):
    """Writes a split's files, by name; of names with a folder this is the class."""

    def write(files, split="train"):
        if kind == "folder":
            for name, data in files.items():
                (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / split / name).write_bytes(data)
            return
        (tmp_path / split).mkdir()
        with tarfile.open(tmp_path / split / "0.tar", "w") as tar:
            for name, data in files.items():
                label = name.rpartition("/")[0]
                members = {name: data}
                if label:
                    members[name.rpartition(".")[0] + ".cls"] = label.encode()
                for member, contents in members.items():
                    header = tarfile.TarInfo(member)
                    header.size = len(contents)
                    tar.addfile(header, io.BytesIO(contents))

    return write


@pytest.fixture
def opened(kind, tmp_path):
    """Opens a split of what was written."""

    def opened(split="train", **options):
        return open_source(kind, split, path=tmp_path, **options)

    return opened


def to_tensor(array):
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def test_small_images_of_one_size_are_in_memory(write, opened):
    arrays = [pixels(20, 30, seed=i) for i in range(10)]
    write({f"{i}.png": encode(array) for i, array in enumerate(arrays)})
    source = opened()
    assert source.stacked.shape == (10, 3, 20, 30) and source.stacked.dtype == torch.uint8
    for i, array in enumerate(arrays):
        assert torch.equal(source.image(i), to_tensor(array))


@pytest.mark.parametrize("shapes", [[(8, 8), (8, 9)], [(65, 8), (65, 8)]])
def test_other_images_are_decoded_when_used(write, opened, shapes):
    arrays = [pixels(*shape) for shape in shapes]
    write({f"{i}.png": encode(array) for i, array in enumerate(arrays)})
    source = opened()
    assert source.stacked is None
    assert source.sizes.tolist() == [list(shape) for shape in shapes]
    for i, array in enumerate(arrays):
        image = source.image(i)
        assert image.dtype == torch.uint8 and image.movedim(0, -1).is_contiguous()
        assert torch.equal(image, to_tensor(array))


def test_max_images_is_spread_over_the_classes(write, opened):
    write({f"{name}/{name}{i}.png": encode(pixels()) for name in "abc" for i in range(10)})
    source = opened(max_images=6)
    assert source.labels["class"].tolist() == [0, 0, 1, 1, 2, 2]
    assert source.classes["class"] == ["a", "b", "c"]
    assert len(opened(max_images=100)) == 30


def test_test_split_uses_the_class_ids_of_train(write, opened):
    for split, names in (("train", "abc"), ("test", "bc")):
        write({f"{name}/{name}.png": encode(pixels()) for name in names}, split)
    test = opened("test")
    assert test.labels["class"].tolist() == [1, 2]
    assert test.classes["class"] == ["a", "b", "c"]


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("size", [(8, 12), (70, 80)], ids=["in memory", "decoded when used"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(write, opened, orientation, suffix, size):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    turned = encode(pixels(*size), suffix, exif=exif_of(orientation), **options)
    write({f"a.{suffix}": turned})
    source = opened()
    upright = UPRIGHT[orientation](pixels(*size))
    assert source.sizes[0].tolist() == list(upright.shape[:2])
    assert torch.equal(source.image(0), to_tensor(upright))


def with_late_exif(data, exif):
    """A PNG file with its EXIF chunk moved behind the pixels."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + len(exif.tobytes()) - len(b"Exif\0\0")
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


@pytest.mark.parametrize("size", [(8, 12), (70, 80)], ids=["in memory", "decoded when used"])
def test_exif_behind_the_pixels_of_a_png(write, opened, size):
    exif = exif_of(6)
    write({"a.png": with_late_exif(encode(pixels(*size), exif=exif), exif)})
    source, upright = opened(), to_tensor(np.rot90(pixels(*size), -1))
    assert source.sizes.tolist() == [list(upright.shape[1:])]
    assert torch.equal(source.image(0), upright)


XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize("options", [{"xmp": XMP}, {"exif": b"Exif\0\0damaged"}], ids=str)
def test_picture_without_orientation_in_exif_stays_as_it_is(write, opened, options):
    image = pixels(8, 12)
    write({"a.jpg": encode(image, "jpg", **options), "b.png": encode(image, exif=b"damaged")})
    source = opened()
    assert source.sizes.tolist() == [[8, 12]] * 2
    assert torch.equal(source.image(1), to_tensor(image))


def ramp(dtype):
    """All levels of 16 bits."""
    return np.arange(1 << 16, dtype=dtype).reshape(256, 256)


DEEP = {
    "png": ("a.png", encode(ramp(np.uint16))),
    "tiff": ("a.tiff", encode(ramp(np.uint16), "tiff")),
    "tiff of 32 bits": ("a.tiff", encode(ramp(np.int32), "tiff")),
    "ppm": ("a.ppm", b"P5 256 256 65535\n" + ramp(">u2").tobytes()),
}


@pytest.mark.parametrize("kind_of_file", DEEP)
def test_gray_of_16_bits_keeps_them(write, opened, kind_of_file):
    write(dict([DEEP[kind_of_file]]))
    source = opened()
    assert (source.channels, source.bits, source.reduced) == (1, 16, 0)
    assert np.array_equal(source.image(0).numpy(), ramp(np.uint16)[None])
    upper = opened(channels=3, bits=8)
    expected = torch.arange(256, dtype=torch.uint8)[:, None].expand(3, 256, 256)
    assert torch.equal(upper.image(0), expected)


@pytest.mark.parametrize("size", [(8, 8), (80, 80)], ids=["in memory", "decoded when used"])
def test_mixed_depths_have_8_bits_unless_16_are_asked_for(write, opened, size):
    deep = np.random.default_rng(0).integers(0, 1 << 16, size, dtype=np.uint16)
    plain = pixels(*size)[..., 0]
    write({"a.png": encode(deep), "b.png": encode(plain)})
    source = opened()
    assert (source.bits, source.reduced) == (8, 1)
    assert np.array_equal(source.image(0)[0].numpy(), deep >> 8)
    source = opened(bits=16)
    assert (source.bits, source.reduced) == (16, 0)
    assert np.array_equal(source.image(0)[0].numpy(), deep)
    assert np.array_equal(source.image(1)[0].numpy(), plain.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "array",
    [ramp(np.float32), ramp(np.int32) - 1, ramp(np.int32) + 1],
    ids=["floats", "negative", "more than 16 bits"],
)
def test_pixels_of_no_known_range_are_refused(write, opened, array):
    write({"a.tiff": encode(array, "tiff"), "b.png": encode(pixels(80, 80))})
    with pytest.raises(BadImageError, match="a.tiff.*: its pixels are numbers of no known range"):
        opened().image(0)
    (skipped,) = opened(on_bad_image="skip").skipped
    assert "a.tiff" in skipped


MODES = {"L": 1, "LA": 1, "1": 1, "I;16": 1, "RGB": 3, "RGBA": 3, "P": 3, "CMYK": 3}
"""Channels of the modes of Pillow's. Transparency is none."""


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_gray_or_rgb(write, opened, mode):
    image = Image.fromarray(pixels())
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    write({f"a.{suffix}": encode(image, suffix)})
    source = opened()
    assert source.channels == MODES[mode] and source.image(0).shape == (MODES[mode], 8, 8)
    if mode == "P":
        assert torch.equal(source.image(0), to_tensor(np.asarray(image.convert("RGB"))))
    elif MODES[mode] == 1 and mode != "I;16":
        assert np.array_equal(source.image(0)[0].numpy(), np.asarray(image.convert("L")))
    assert opened(channels=3).image(0).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(8, 8), (80, 80)], ids=["in memory", "decoded when used"])
def test_gray_among_colors_becomes_rgb_and_all_become_gray_if_asked(write, opened, size):
    """Whichever comes first."""
    color, gray = pixels(*size), pixels(*size)[..., 1]
    write({"a.png": encode(gray), "b.png": encode(color), "c.png": encode(gray)})
    source = opened()
    assert source.channels == 3
    for i, expected in enumerate((np.stack([gray] * 3, -1), color)):
        assert torch.equal(source.image(i), to_tensor(expected))
    source = opened(channels=1)
    assert np.array_equal(source.image(0)[0].numpy(), gray)
    luma = np.asarray(Image.fromarray(color).convert("L"))
    assert np.array_equal(source.image(1)[0].numpy(), luma)


def test_every_file_is_opened_once(write, opened, monkeypatch):
    """Small ones for their header and their pixels together."""
    from mast_ext.data import encoded

    write({f"{i}.png": encode(pixels(seed=i)) for i in range(9)})
    count, original = [0], encoded.opened

    def counted(file):
        count[0] += 1
        return original(file)

    monkeypatch.setattr(encoded, "opened", counted)
    source = opened()
    assert source.stacked is not None and count == [9]


def test_progress_is_told(write, opened):
    write({f"{i:03}.png": encode(pixels(seed=i)) for i in range(130)})
    told = []
    opened(progress=lambda done, count: told.append((done, count)))
    assert told == [(64, 130), (128, 130)]


BAD_FILES = {
    "the file is empty": lambda data: b"",
    "not an image file": lambda data: b"<html>404</html>",
    "not an image file, but noise": lambda data: np.random.default_rng(0).bytes(2000),
    "truncated": lambda data: data[: len(data) // 2],
}


@pytest.fixture(params=[(40, 40), (80, 80)], ids=["in memory", "decoded when used"])
def jpegs(request):
    """Five files of one class."""
    arrays = [pixels(*request.param, seed=i) for i in range(5)]
    return {f"cat/{i}.jpg": encode(array, "jpg") for i, array in enumerate(arrays)}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_bad_file_is_named_or_skipped(write, opened, jpegs, reason):
    write(jpegs | {"cat/3.jpg": BAD_FILES[reason](jpegs["cat/3.jpg"])})
    with pytest.raises(BadImageError, match=rf"cat/3\.jpg.*: .*{reason.split(',')[0]}"):
        opened().image(3)
    source = opened(on_bad_image="skip")
    (skipped,) = source.skipped
    assert "cat/3.jpg" in skipped
    assert [str(file).split("cat/")[1][:5] for file in source.files] == [
        *("0.jpg", "1.jpg", "2.jpg", "4.jpg")
    ]
    assert len(source) == len(source.sizes) == len(source.labels["class"]) == 4
    assert all(source.image(i).shape[0] == 3 for i in range(4))


def test_postscript_is_not_run(write, opened, jpegs, monkeypatch):
    """Pillow would call Ghostscript to draw it."""
    script = encode(pixels(), "eps")
    monkeypatch.setattr(EpsImageFile, "load", lambda *args, **kwargs: pytest.fail("it is run"))
    write(jpegs | {"cat/3.jpg": script})
    with pytest.raises(BadImageError, match=r"cat/3\.jpg.*: it is PostScript"):
        opened()
    assert len(opened(on_bad_image="skip")) == 4


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_nothing_is_skipped_among_good_files(write, opened, jpegs, on_bad_image):
    write(jpegs)
    source = opened(on_bad_image=on_bad_image)
    assert source.skipped == [] and len(source) == 5


def test_png_damaged_after_its_header(write, opened):
    files = {f"{i}.png": encode(pixels(80, 80, seed=i)) for i in range(3)}
    write(files | {"1.png": files["1.png"][: len(files["1.png"]) // 2]})
    source = opened()  # which reads the header alone
    with pytest.raises(BadImageError, match=r"1\.png"):
        source.image(1)
    assert len(opened(on_bad_image="skip").skipped) == 1


def test_all_files_bad(write, opened):
    write({f"{i}.png": b"" for i in range(3)})
    message = r"none of the 3 image files .* can be decoded; the first: .*0\.png.*is empty"
    with pytest.raises(ValueError, match=message):
        opened(on_bad_image="skip")
