"""Tar shards: layouts, keys, labels, random access, and archives that are damaged."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mast_ext.data import BadImageError, FolderSource, ShardsSource, open_source


def encode(array, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    return buffer.getvalue()


def pixels(seed, height=70, width=80):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, members, **options):
    """A tar file of names and bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def samples(first, count, label="cls", suffix="png", **shape):
    """Members of `count` samples, the label of sample i is i % 3."""
    members = {}
    for i in range(first, first + count):
        members[f"{i:04}.{suffix}"] = encode(pixels(i, **shape), suffix)
        if label:
            members[f"{i:04}.{label}"] = str(i % 3).encode()
    return members


@pytest.fixture
def shards(tmp_path):
    for i in range(3):
        write(tmp_path / f"train/{i:03}.tar", samples(10 * i, 10))
    write(tmp_path / "val/000.tar", samples(30, 4))
    return tmp_path


def test_shards_are_one_source_with_random_access(shards):
    source = open_source("shards", "train", path=shards)
    assert source.name == "shards" and len(source) == 30
    assert source.sizes.tolist() == [[70, 80]] * 30 and source.stacked is None
    assert source.labels["class"].tolist() == [i % 3 for i in range(30)]
    assert source.labels["class"].dtype == np.int64
    assert source.classes == {"class": ["0", "1", "2"]}
    for i in (29, 0, 17):
        assert torch.equal(source.image(i), torch.from_numpy(pixels(i)).permute(2, 0, 1))
        assert source.encoded(i).tobytes() == encode(pixels(i))
    assert source.sample_name(17) == f"0017.png in {shards / 'train/001.tar'}"


LAYOUTS = [  # archives, path under the folder, images in train and test
    (["train/0.tar", "train/1.tar", "test/0.tar"], "", 20, 10),
    (["a-train-0.tar", "a-train-1.tar", "a-val-0.tar"], "", 20, 10),
    (["retrieval-train-0.tar", "retrieval-train-1.tar", "retrieval-test-0.tar"], "", 20, 10),
    (["strain-0.tar", "interval-1.tar"], "", 18, 2),
    (["Train000.tar", "train_1.tar", "valid-0.tar"], "", 20, 10),
    (["digitstrain-0.tar", "digitstrain-1.tar", "digitstest-0.tar"], "", 20, 10),
    (["digitsTrain-0.tar", "2TRAIN.tar", "digitsTest-0.tar"], "", 20, 10),
    (["0.tar", "1.tar"], "", 18, 2),
    (["x0.tar", "x1.tar", "y0.tar"], "x*.tar", 18, 2),
    (["x/0.tar", "y/0.tar"], "[xy]/*.tar", 18, 2),
    (["0.tar"], "0.tar", 9, 1),
    (["x[1]/0.tar"], "x[1]", 9, 1),
]


@pytest.mark.parametrize(("archives", "path", "train", "test"), LAYOUTS)
def test_layouts(tmp_path, archives, path, train, test):
    for i, name in enumerate(archives):
        write(tmp_path / name, samples(10 * i, 10))
    opened = [ShardsSource(tmp_path / path, split) for split in ("train", "test")]
    assert [len(source) for source in opened] == [train, test]
    assert not {*opened[0].files} & {*opened[1].files}


def test_max_images_is_spread_over_the_shards(shards):
    source = open_source("shards", "train", path=shards, max_images=6)
    names = [file.name for file in source.files]
    assert names == [f"{i:04}.png" for i in range(0, 30, 5)]
    assert source.labels["class"].tolist() == [i % 3 for i in range(0, 30, 5)]


def test_labels_are_optional(tmp_path):
    write(tmp_path / "0.tar", samples(0, 10, label=None))
    source = ShardsSource(tmp_path, "train")
    assert len(source) == 9 and source.labels == {} and source.classes == {}


LABELS = [  # extension, contents of two members, ids, names
    ("cls", (b"4\n", b"0"), [4, 0], ["0", "1", "2", "3", "4"]),
    ("cls", (b"dog", b"cat"), [1, 0], ["cat", "dog"]),
    ("json", (b"2", b"1"), [2, 1], ["0", "1", "2"]),
    ("json", (b'{"label": 1, "x": 7}', b'{"label": "0"}'), [1, 0], ["0", "1"]),
    ("json", (b'{"class": "b"}', b'{"cls": "a"}'), [1, 0], ["a", "b"]),
    ("json", (b'{"caption": "b"}', b'{"caption": "a"}'), None, None),
]


@pytest.mark.parametrize(("extension", "contents", "ids", "names"), LABELS)
def test_labels(tmp_path, extension, contents, ids, names):
    members = {}
    for i, data in enumerate(contents):
        members |= {f"{i}.png": encode(pixels(i)), f"{i}.{extension}": data}
    write(tmp_path / "train/0.tar", members)
    source = ShardsSource(tmp_path, "train")
    assert source.classes == ({} if names is None else {"class": names})
    assert ids is None or source.labels["class"].tolist() == ids


def test_keys_with_several_extensions(tmp_path):
    """The plain extension is the image; others, folders and files of systems are ignored."""
    picture, mask = encode(pixels(0)), encode(pixels(1))
    members = {
        **{"a/1.seg.png": mask, "a/1.png": picture, "a/1.json": b"3", "a/1.txt": b"a caption"},
        **{"b/1.jpg": encode(pixels(2), "jpg"), "b/1.cls": b"1", "a/._1.png": b"no image"},
        **{"c/1.2.JPEG": encode(pixels(3), "jpg"), "c/1.cls": b"1", "README": b"words"},
        **{"d/1.webp": encode(pixels(4), "webp"), "d/1.cls": b"0", "d/1.json": b"7"},
    }
    write(tmp_path / "train/0.tar", members)
    source = ShardsSource(tmp_path, "train")
    assert [file.name for file in source.files] == ["a/1.png", "b/1.jpg", "c/1.2.JPEG", "d/1.webp"]
    assert source.labels["class"].tolist() == [3, 1, 1, 0]
    assert torch.equal(source.image(0), torch.from_numpy(pixels(0)).permute(2, 0, 1))


def test_a_mask_is_no_image_where_the_image_is_missing(tmp_path):
    members = {}
    for i in range(3):
        members |= {f"{i}.png": encode(pixels(i)), f"{i}.mask.png": encode(pixels(9))}
    del members["1.png"]
    write(tmp_path / "train/0.tar", members)
    with pytest.raises(BadImageError, match=r"sample 1 in .*has no image, .*: 1\.mask\.png"):
        ShardsSource(tmp_path, "train")
    source = ShardsSource(tmp_path, "train", on_bad_image="skip")
    assert [file.name for file in source.files] == ["0.png", "2.png"]


@pytest.mark.parametrize("order", [("json", "cls"), ("cls", "json")])
def test_a_label_in_cls_goes_before_any_in_json(tmp_path, order):
    labels = {"json": b'{"label": [1, 2]}', "cls": b"3"}
    members = {"0.png": encode(pixels(0))} | {f"0.{each}": labels[each] for each in order}
    write(tmp_path / "train/0.tar", members)
    assert ShardsSource(tmp_path, "train").labels["class"].tolist() == [3]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(tmp_path, format):
    name = "/".join(["folder" * 8, "another" * 7, "x"])
    write(tmp_path / "train/0.tar", {f"{name}.png": encode(pixels(0))}, format=format)
    source = ShardsSource(tmp_path, "train")
    assert source.files[0].name == f"{name}.png"
    assert source.image(0).shape == (3, 70, 80)


def test_photographs_equal_those_unpacked(tmp_path, photographs):
    with tarfile.open(photographs) as tar:
        tar.extractall(tmp_path / "train", filter="data")
    unpacked = FolderSource(tmp_path, "train")
    train, test = (ShardsSource(photographs, split) for split in ("train", "test"))
    assert len(train) + len(test) == len(unpacked) == 24
    for source in (train, test):
        for i in range(len(source)):
            path = tmp_path / "train" / source.files[i].name
            other = unpacked.files.index(path)
            assert torch.equal(source.image(i), unpacked.image(other))
            assert source.sizes[i].tolist() == unpacked.sizes[other].tolist()


GOOD = encode(pixels(0))
BAD_SAMPLES = [  # members of sample "bad", beside a good one; message
    ({"bad.png": GOOD[: len(GOOD) // 2]}, "bad.png in {}: "),
    ({"bad.png": b""}, "bad.png in {}: the file is empty"),
    ({"bad.jpg": b"no picture at all"}, "bad.jpg in {}: not an image file"),
    ({"bad.cls": b"0"}, "sample bad in {}: it has no image"),
    ({"bad.png": GOOD, "bad.jpg": GOOD}, "sample bad in {}: it has more than one image: bad.png"),
    ({"bad.png": GOOD, "bad.cls": None}, "sample bad in {}: it has no label, as others have"),
    ({"bad.png": GOOD, "bad.cls": b""}, "sample bad in {}: bad.cls has no number or name"),
    ({"bad.png": GOOD, "bad.cls": b"\xff"}, "sample bad in {}: bad.cls cannot be read"),
    ({"bad.png": GOOD, "bad.json": b"-1"}, "sample bad in {}: its label -1 is out of range"),
    ({"bad.png": GOOD, "bad.cls": b"-1"}, "sample bad in {}: its label -1 is out of range"),
    ({"bad.png": GOOD, "bad.cls": b"99999999"}, "sample bad in {}: its label 99999999 is out of"),
    ({"bad.png": GOOD, "bad.json": b"{"}, "sample bad in {}: bad.json cannot be read"),
    ({"bad.png": GOOD, "bad.cls": b"9" * 5000}, "sample bad in {}: bad.cls cannot be read"),
    ({"bad.png": GOOD, "bad.json": b"[" * 100_000}, "sample bad in {}: bad.json cannot be read"),
    ({"bad.png": GOOD, "bad.json": b"[1]"}, "sample bad in {}: bad.json has no number or name"),
]


@pytest.mark.parametrize(("members", "message"), BAD_SAMPLES)
def test_bad_sample_is_named_or_skipped(tmp_path, members, message):
    labeled = {"bad.cls": b"0", "good.png": encode(pixels(1)), "good.cls": b"0"} | members
    if "bad.json" in members:
        del labeled["bad.cls"]
    members = {name: data for name, data in labeled.items() if data is not None}
    archive = write(tmp_path / "train/0.tar", members)
    with pytest.raises(BadImageError, match=message.format(archive)):
        source = ShardsSource(tmp_path, "train")
        source.image(source.files.index(next(f for f in source.files if f.name.startswith("bad"))))
    source = ShardsSource(tmp_path, "train", on_bad_image="skip")
    assert [file.name for file in source.files] == ["good.png"]
    assert len(source.skipped) == 1 and str(archive) in source.skipped[0]
    assert "bad" in source.skipped[0]


def damaged(path, kind):
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no members":
        write(path, {})
    elif kind == "no samples":
        write(path, {"README": b"words"})
    elif kind == "not an archive":
        path.write_bytes(b"words" * 1000)
    elif kind == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("0.png"))
    elif kind == "size beyond numbers":
        header = bytearray(path.read_bytes()[:512])
        header[124:136] = b"\x80" + b"\xff" * 11
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(header + path.read_bytes()[512:])


@pytest.mark.parametrize(
    "kind",
    [
        *("empty file", "no members", "no samples", "not an archive", "compressed"),
        "size beyond numbers",
    ],
)
def test_bad_archive_is_named_or_skipped(shards, kind):
    path = shards / "train/001.tar"
    damaged(path, kind)
    with pytest.raises(ValueError, match=f"cannot read shard {path}: "):
        ShardsSource(shards, "train")
    source = ShardsSource(shards, "train", on_bad_image="skip")
    assert len(source) == 20
    assert source.skipped[0].startswith(f"{path} (")
    assert all(str(path) in skipped for skipped in source.skipped)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
@pytest.mark.parametrize("start", ["", "./"])
def test_a_link_is_the_file_that_it_is_to(tmp_path, kind, start):
    """As tar stores a file with two names, whose second image would be missing without a word."""
    path = write(tmp_path / "a.tar", samples(0, 2))
    with tarfile.open(path, "a") as tar:
        for extension in ("png", "cls"):
            link = tarfile.TarInfo(f"{start}more/7.{extension}")
            link.type, link.linkname = kind, f"0001.{extension}"
            if kind == tarfile.SYMTYPE:
                link.linkname = f"../{link.linkname}"
            tar.addfile(link)
    sources = [ShardsSource(path, split) for split in ("train", "test")]
    found = {
        file.name: (source.image(i), int(source.labels["class"][i]))
        for source in sources
        for i, file in enumerate(source.files)
    }
    assert len(found) == 3
    (image, label), (original, its_label) = found[f"{start}more/7.png"], found["0001.png"]
    assert image.equal(original) and label == its_label == 1


def test_a_link_out_of_the_archive_is_no_image(tmp_path):
    path = write(tmp_path / "a.tar", samples(0, 4, label=None))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("7.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(BadImageError, match=f"sample 7 in {path}: it has no image"):
        ShardsSource(path, "train")


def test_archive_cut_short_keeps_what_is_whole(shards):
    path = shards / "train/001.tar"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=f"cannot read shard {path}: "):
        ShardsSource(shards, "train")
    source = ShardsSource(shards, "train", on_bad_image="skip")
    kept = [file.name for file in source.files if file.archive == path]
    assert kept and kept == [f"{i:04}.png" for i in range(10, 10 + len(kept))]
    assert str(path) in source.skipped[0] and f"{10 + len(kept):04}" in source.skipped[1]


MISSING = [
    ("nowhere", "there is no .*nowhere"),
    ("*.tar", "no archives match"),
    ("", r"no shards \(.tar\) of the train split in"),
]


@pytest.mark.parametrize(("path", "message"), MISSING)
def test_nothing_there(tmp_path, path, message):
    with pytest.raises(FileNotFoundError, match=message):
        ShardsSource(tmp_path / path, "train")


def test_split_is_missing(tmp_path):
    write(tmp_path / "train/0.tar", samples(0, 2))
    with pytest.raises(FileNotFoundError, match=r"no shards \(.tar\) of the test split"):
        ShardsSource(tmp_path, "test")


def test_label_of_json_object_is_optional(tmp_path):
    members = {"0.png": GOOD, "0.json": json.dumps({"width": 3}).encode()}
    write(tmp_path / "train/0.tar", members)
    assert ShardsSource(tmp_path, "train").labels == {}
