"""Damaged files of all kinds never end the process, and both renderers see the same in them.

Files are read in processes of their own, so that a crash is a failure of a test. `--fuzz 10`
damages ten times as many, and others.
"""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mast_ext.augment.containers import well_formed

ROOT = Path(__file__).parents[2]

PICTURES = {  # by name of the file: mode, options
    "rgb.png": ("RGB", {}),
    "palette.png": ("P", {}),
    "alpha.png": ("RGBA", {}),
    "turned.png": ("RGB", {"exif": True}),
    "plain.jpg": ("RGB", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "inks.jpg": ("CMYK", {}),
    "restarts.jpg": ("L", {"restart_marker_rows": 1}),
    "turned.jpg": ("RGB", {"exif": True}),
    "lossy.webp": ("RGB", {}),
    "lossless.webp": ("RGBA", {"lossless": True}),
    "turned.webp": ("RGB", {"exif": True}),
    "rgb.bmp": ("RGB", {}),
    "gray.bmp": ("L", {}),
    "plain.tiff": ("RGB", {}),
    "lzw.tiff": ("RGB", {"compression": "tiff_lzw"}),
    "jpeg.tiff": ("RGB", {"compression": "jpeg"}),
    "rgb.ppm": ("RGB", {}),
}


def picture(mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC).convert(mode)


def exif_of(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker of cameras"  # stored behind the directory
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00"}
    return exif


def encode(name):
    mode, options = PICTURES[name]
    if "exif" in options:
        options = {**options, "exif": exif_of()}
    suffix = name.rpartition(".")[2]
    buffer = io.BytesIO()
    picture(mode).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    return buffer.getvalue()


def with_exif(exif):
    """A sound PNG and a sound JPEG file but for their EXIF data."""
    data, jpeg = encode("rgb.png"), encode("plain.jpg")
    segment = b"Exif\0\0" + exif
    return {
        "png": data[:33] + chunk(b"eXIf", exif) + data[33:],
        "jpg": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:],
    }


def chunk(kind, body):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def directory(count, *entries, start=8):
    """EXIF data that says how many entries there are, and has others."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", start, count) + packed


ORIENTATION = (0x0112, 3, 1, 6)
EXIF = {
    "one entry too many": directory(2, ORIENTATION),
    "many entries too many": directory(65535, ORIENTATION),
    "no directory": directory(1)[:8],
    "directory behind the end": directory(1, ORIENTATION, start=1 << 31),
    "directory in its own head": directory(1, ORIENTATION, start=0),
    "text behind the end": directory(1, (0x010F, 2, 1000, 20)) + bytes(4),
    "text at the end of memory": directory(1, (0x010F, 2, 1 << 30, 0xFFFFFFF0)) + bytes(4),
    "numbers behind the end": directory(1, (0x011A, 5, 1 << 29, 26)) + bytes(4),
    "unknown type": directory(1, (0x0112, 99, 1, 6)) + bytes(4),
    "orientation of many values": directory(1, (0x0112, 3, 1 << 20, 6)) + bytes(4),
    "orientation that is text": directory(1, (0x0112, 2, 200, 8)) + bytes(4),
    "orientation out of range": directory(1, (0x0112, 3, 1, 77)) + bytes(4),
    "two orientations": directory(2, ORIENTATION, (0x0112, 3, 1, 3)) + bytes(4),
    "nothing": b"",
    "three bytes": b"II*",
}

EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1")


def mutate(data, chance):
    """Changes bytes, most of them near the start or in EXIF data."""
    changed = bytearray(data)
    kind = chance.choice(("byte", "byte", "word", "exif", "cut", "insert", "remove"))
    exif = max(data.find(b"II*\0"), data.find(b"MM\0*"), 0)
    for _ in range(chance.choice((1, 1, 2, 4))):
        near = min(len(changed) - 1, chance.choice((64, 200, len(data))))
        at = chance.randrange(near)
        if kind == "cut":
            del changed[max(at, 2) :]
            break
        if kind == "exif":
            at = min(exif + at % 80, len(changed) - 1)
        if kind in ("byte", "exif"):
            changed[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif kind == "word":
            changed[at : at + 4] = chance.choice(EXTREMES)
        elif kind == "insert":
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
        else:
            del changed[at : at + chance.choice((1, 2, 4, 16))]
    result = bytes(changed)
    return with_checksums(result) if chance.random() < 0.7 else result


def with_checksums(data):
    """The file, if a PNG, with the checksums that its chunks ought to have."""
    if not data.startswith(b"\x89PNG"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[at:end], struct.pack(">I", zlib.crc32(data[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) + data[at:]


def mutations(name, fuzz=1, count=20):
    chance, count = random.Random(name if fuzz == 1 else f"{name} {fuzz}"), count * fuzz
    return {f"{i:02}-{name}": mutate(encode(name), chance) for i in range(count)}


def crafted_exif(fuzz):
    files = {}
    for title, exif in EXIF.items():
        files |= {f"{title}.{suffix}": data for suffix, data in with_exif(exif).items()}
    return files


def mutated_pictures(fuzz):
    files = {}
    for name in PICTURES:
        files |= mutations(name, fuzz)
    return files


def read_all(folder):
    """Reads a folder of files in every way there is, and prints what it is at.

    Every file has to be a picture, the same by both renderers, or an error that names it; by which
    files are bad goes what Pillow says.
    """
    import warnings

    from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
    from mast_ext.data import BadImageError, open_source
    from mast_ext.data.encoded import EncodedSource

    warnings.simplefilter("ignore")  # of Pillow, of odd files
    # Views are larger than the pictures, so that they show the decoders' pixels. When shrinking the
    # renderers differ at borders (see test_dali.py), of a damaged picture that is all noise by more
    # than a level on average.
    levels = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}
    recipe = AugmentationRecipe(size=96, jitter=0, grayscale=0, **levels)

    def render(source, backend):
        policy = ComposedPolicy(recipe, views=1)
        loader = build_loader(source, policy, batch_size=8, drop_last=False, backend=backend)
        batches = list(loader)
        order = torch.cat([batch.index for batch in batches]).argsort()
        return torch.cat([batch.images[0] for batch in batches])[order]

    bad = []
    for path in sorted((folder / "train").iterdir()):
        print("file", path.name, flush=True)
        try:
            options = {"where": "here", "on_bad_image": "error", "max_images": None}
            options |= {"channels": 3, "bits": 8}
            source = EncodedSource([path], {}, {}, **options)
        except BadImageError as error:
            assert path.name in str(error)
            bad.append(path.name)
            continue
        try:
            source.image(0)
        except BadImageError as error:
            assert path.name in str(error)
            bad.append(path.name)
            # Of damaged pixels of WebP its decoder may make something where Pillow's gives up.
            may_be_read = path.suffix == ".webp"
            try:
                render(source, "dali")
                assert may_be_read, path.name
            except ValueError as error:
                assert path.name in str(error)
    print("all that are no error", flush=True)
    source = open_source("folder", "train", path=folder, on_bad_image="skip", channels=3, bits=8)
    assert sorted(Path(name).name for name in source.skipped) == bad
    ours, theirs = (render(source, backend) for backend in ("dali", "torchvision"))
    for index, difference in enumerate((ours - theirs).abs().mean((1, 2, 3)).tolist()):
        assert difference < 1, f"{source.sample_name(index)} differs by {difference}"
    print(f"{len(source)} pictures")


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
    sys.exit()


@pytest.mark.parametrize(
    ("corpus", "least"),
    [(crafted_exif, 30), (mutated_pictures, 100)],
    ids=["crafted EXIF", "mutated pictures"],
)
def test_no_file_ends_the_process(tmp_path, corpus, least, fuzz):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    (tmp_path / "train").mkdir()
    for name, data in corpus(fuzz).items():
        (tmp_path / "train" / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"ended by {done.returncode} at {last}: {done.stderr[-2000:]}"
    assert int(last.split()[0]) >= least  # it has not refused everything


def check(data, size=(70, 90)):
    found = well_formed(np.frombuffer(data, np.uint8), size)
    return None if found is None else found.tobytes()


DIRECT = [name for name in PICTURES if not name.endswith(("tiff", "ppm"))]


@pytest.mark.parametrize("name", DIRECT)
def test_plain_file_goes_to_the_decoder_as_it_is(name):
    data, turned = encode(name), name.startswith("turned")
    size = (90, 70) if turned else (70, 90)
    assert check(data, size) == data
    assert check(data, size[::-1]) is None and check(data, (70, 91)) is None
    if name.endswith(("jpg", "webp", "bmp")):  # cameras write more behind the picture
        assert check(data + b"more", size) == data


@pytest.mark.parametrize("name", DIRECT)
def test_no_beginning_of_a_file_goes_to_the_decoder(name):
    data = encode(name)
    sizes = [(70, 90), (90, 70)]
    for length in [*range(min(800, len(data))), *range(800, len(data), 37)]:
        assert [check(data[:length], size) for size in sizes] == [None, None], length


@pytest.mark.parametrize("title", EXIF)
def test_odd_exif_does_not_go_to_the_decoder(title):
    for data in with_exif(EXIF[title]).values():
        assert [check(data, size) for size in ((70, 90), (90, 70))] == [None, None]


def test_checking_a_file_never_fails(fuzz):
    for name in PICTURES:
        for data in mutations(name, fuzz, count=60).values():
            check(data)


def jpeg_with(*segments):
    """A JPEG file with more segments in front."""
    data = encode("plain.jpg")
    packed = (b"\xff%c" % kind + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return data[:2] + b"".join(packed) + data[2:]


def changed(name, old, new):
    data = encode(name)
    assert old in data
    return data.replace(old, new, 1)


ODD = {
    "JPEG with a second frame": jpeg_with((0xC0, b"\x08\0\x46\0\x5a\1\1\x11\0")),
    "JPEG of 12 bits": changed("plain.jpg", b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "JPEG of arithmetic codes": changed("plain.jpg", b"\xff\xc0", b"\xff\xc9"),
    "JPEG with a table that is too long": jpeg_with((0xC4, b"\0" + b"\xff" * 16 + bytes(300))),
    "JPEG with a table that is cut": jpeg_with((0xDB, bytes(40))),
    "JPEG of a number of a table that there is not": jpeg_with((0xDB, b"\x07" + bytes(64))),
    "JPEG with colors of its own": jpeg_with((0xEE, b"Adobe\0\x64\0\0\0\0\0")),
    "JPEG of inks without a word on them": changed("inks.jpg", b"Adobe", b"adobe"),
    "JPEG whose scan has parts that there are not": changed(
        "plain.jpg", b"\xff\xda\0\x0c\3\1", b"\xff\xda\0\x0c\3\x09"
    ),
    "PNG with an animation": encode("rgb.png").replace(
        b"\0\0\0\0IEND", chunk(b"fdAT", bytes(9)) + b"\0\0\0\0IEND"
    ),
    "PNG with a wrong checksum": encode("rgb.png")[:-1] + b"\0",
    "PNG with a second head": encode("rgb.png")[:33] + encode("rgb.png")[8:],
    "PNG without a palette": encode("palette.png").replace(b"PLTE", b"tEXt"),
    "WebP with more than its head says": changed("lossy.webp", b"VP8 ", b"VP8?"),
    "WebP whose canvas is not its picture": changed(
        "turned.webp", struct.pack("<HB", 89, 0), struct.pack("<HB", 99, 0)
    ),
    "BMP with a short palette": changed("gray.bmp", struct.pack("<II", 256, 256), b"\3\0\0\0" * 2),
    "BMP from the top down": changed(
        "rgb.bmp", struct.pack("<ii", 90, 70), struct.pack("<ii", 90, -70)
    ),
    "TIFF": encode("plain.tiff"),
    "text": b"<html>404</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("title", ODD)
def test_odd_file_does_not_go_to_the_decoder(title):
    data = ODD[title]
    data = data if "checksum" in title else with_checksums(data)
    for size in ((70, 90), (90, 70), (70, 100)):
        assert check(data, size) is None


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_decoders_get_what_has_been_checked(tmp_path, monkeypatch, device):
    """nvJPEG on a GPU, too: sound files as they are, and bitmaps of what Pillow has decoded."""
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    from mast_ext.augment import AugmentationRecipe, ComposedPolicy
    from mast_ext.augment.dali import DaliRenderer
    from mast_ext.data import open_source

    (tmp_path / "train").mkdir()
    for title, data in {**ODD, **{name: encode(name) for name in PICTURES}}.items():
        ending = title.rpartition(".")[2] if title in PICTURES else title.split()[0].lower()
        ending = {"jpeg": "jpg", "text": "png", "nothing": "png"}.get(ending, ending)
        (tmp_path / "train" / f"{title}.{ending}").write_bytes(data)
    source = open_source("folder", "train", path=tmp_path, on_bad_image="skip")
    policy = ComposedPolicy(AugmentationRecipe(size=16), views=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    renderer = DaliRenderer(source, policy, batch_size=len(source), device=device)
    indices = np.arange(len(source))
    batch = renderer._prepare(indices, policy.plan(0, 0, indices, source.sizes))
    for index, data in enumerate(batch.images):
        sound = well_formed(data, tuple(source.sizes[index].tolist()))
        assert sound is not None and sound.tobytes() == data.tobytes()
    bitmaps = sum(data[:2].tobytes() == b"BM" for data in batch.images)
    assert len(DIRECT) <= len(source) - bitmaps + 2 and bitmaps > 6  # two are bitmaps themselves
