"""Loaders with DALI: the batches of any other, resumable, and errors that name the file."""

import io
import itertools
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mast_ext.augment import AugmentationRecipe, Sharing, build_loader, make_policy
from mast_ext.data import BadImageError, open_source

pytest.importorskip("nvidia.dali", reason="needs DALI")

RECIPE = AugmentationRecipe(size=16, blur=0.5)
COUNT = 22


def photo(seed, height=72, width=80):
    """A smooth picture, which JPEG keeps."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(path, count=COUNT):
    (path / "train").mkdir(parents=True)
    for i in range(count):
        photo(i, height=70 + i % 3).save(path / f"train/{i:02}.jpg", quality=92)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def sources(folder, tmp_path_factory):
    """The same images as a folder, shards, and small ones in memory."""
    shards = tmp_path_factory.mktemp("shards")
    for start in range(0, COUNT, 8):
        (shards / "train").mkdir(exist_ok=True)
        with tarfile.open(shards / f"train/{start:02}.tar", "w") as tar:
            for i in range(start, min(start + 8, COUNT)):
                tar.add(folder / f"train/{i:02}.jpg", f"{i:02}.jpg")
                tar.addfile(*label(f"{i:02}.cls", b"%d" % (i % 3)))
    return {
        "folder": open_source("folder", "train", path=folder),
        "shards": open_source("shards", "train", path=shards),
        "shapes": open_source("shapes", "train", max_images=COUNT),
    }


def label(name, data):
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header, io.BytesIO(data)


def build(source, policy="composed", batch_size=4, recipe=RECIPE, options=None, **loader):
    chosen = make_policy(policy, recipe, **(options or {}))
    loader = {"backend": "dali", "drop_last": False, **loader}
    return build_loader(source, chosen, batch_size=batch_size, **loader)


TENSORS = ("images", "parameters", "changed", "index", "local_images")


def assert_same(batch, other):
    for name in TENSORS:
        ours, theirs = getattr(batch, name), getattr(other, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert batch.labels.keys() == other.labels.keys()
    assert all(torch.equal(batch.labels[name], other.labels[name]) for name in batch.labels)


def visited(loader):
    return torch.cat([batch.index for batch in loader]).tolist()


POLICIES = [
    ("composed", {"views": 1}),
    ("shared", {"shared": {"hue": Sharing()}, "with_center": True}),
    ("multi_crop", {"views": 2, "local_views": 2, "local_size": 8, "with_center": True}),
]


@pytest.mark.parametrize("name", ["folder", "shards", "shapes"])
@pytest.mark.parametrize(("policy", "options"), POLICIES, ids=str)
def test_same_batches_as_torchvision(sources, name, policy, options):
    ours, theirs = (
        list(build(sources[name], policy, options=options, backend=backend, workers=1))
        for backend in ("dali", "torchvision")
    )
    assert len(ours) == len(theirs) == 6
    for batch, other in zip(ours, theirs, strict=True):
        for tensor in ("parameters", "changed", "index"):
            mine, their = getattr(batch, tensor), getattr(other, tensor)
            assert (mine is None and their is None) or torch.equal(mine, their)
        assert all(torch.equal(batch.labels[name], other.labels[name]) for name in other.labels)
        scale = 255 * torch.tensor(RECIPE.std).view(3, 1, 1)
        for tensor in ("images", "local_images"):
            mine, their = getattr(batch, tensor), getattr(other, tensor)
            if their is None:
                assert mine is None
                continue
            assert mine.shape == their.shape and mine.dtype == torch.float32
            assert ((mine - their).abs() * scale).mean() <= 1.5


def test_photographs_are_within_the_bounds_of_exact_rendering(photographs):
    source = open_source("shards", "train", path=photographs, max_images=12)
    recipe = AugmentationRecipe(size=96, blur=0.5, solarize=0.2)
    ours, theirs = (
        next(iter(build(source, recipe=recipe, batch_size=12, backend=backend)))
        for backend in ("dali", "torchvision")
    )
    levels = 255 * torch.tensor(recipe.std).view(3, 1, 1)
    for view, other in zip(ours.images, theirs.images, strict=True):
        found = ((view - other).abs() * levels).flatten()
        assert found.mean() <= 1.5
        assert found.kthvalue(round(0.99 * len(found))).values <= 4.01


@pytest.mark.parametrize(
    ("name", "step", "workers"),
    [("folder", 0, 1), ("shards", 1, 2), ("shapes", 3, 1), ("folder", 4, 0)],
)
def test_resume_gives_the_same_bits(sources, name, step, workers):
    loader = build(sources[name], workers=workers)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(step):
        next(batches)
    state = loader.state_dict()
    assert state == {"seed": 0, "epoch": 2, "step": step}
    rest = list(batches)

    resumed = build(sources[name], workers=workers)
    resumed.load_state_dict(state)
    for batch, other in zip(rest, resumed, strict=True):
        assert_same(batch, other)
    for batch, other in zip(loader, resumed, strict=True):  # and the next epoch
        assert_same(batch, other)


def test_killed_process_resumes_with_the_same_bits(folder, tmp_path):
    """The first process ends without notice in the middle of an epoch."""
    program = (
        "import os, sys, torch\n"
        "from mast_ext.augment import AugmentationRecipe, build_loader, make_policy\n"
        "from mast_ext.data import open_source\n"
        f"source = open_source('folder', 'train', path={str(folder)!r})\n"
        "policy = make_policy('composed', AugmentationRecipe(size=16, blur=0.5))\n"
        "loader = build_loader(source, policy, batch_size=4, workers=2, backend='dali')\n"
        "if sys.argv[1] == 'resume':\n"
        "    loader.load_state_dict(torch.load(sys.argv[2]))\n"
        "    torch.save([batch.images for batch in loader], sys.argv[3])\n"
        "    left_in_the_middle = next(iter(loader))\n"
        "    sys.exit()\n"
        "for step, batch in enumerate(loader):\n"
        "    if step == 2:\n"
        "        torch.save(loader.state_dict(), sys.argv[2])\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    state, images = tmp_path / "state.pt", tmp_path / "images.pt"
    codes = []
    for mode in ("start", "resume"):
        done = subprocess.run(
            [sys.executable, "-c", program, mode, state, images],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        codes.append(done.returncode)
    assert codes == [-9, 0] and done.stderr == ""
    source = open_source("folder", "train", path=folder)
    whole = list(build(source, workers=1, drop_last=True))
    resumed = torch.load(images)
    assert len(resumed) == len(whole) - 3
    for batch, other in zip(whole[3:], resumed, strict=True):
        assert torch.equal(batch.images, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["folder", "shapes"])
def test_gpu_decodes_and_renders_and_resumes(sources, name):
    loader = build(sources[name], workers=2, device="gpu")
    batches = list(loader)
    for batch, other in zip(batches, build(sources[name]), strict=True):
        assert batch.images.is_cuda
        assert torch.equal(batch.parameters, other.parameters)
        assert (batch.images.cpu() - other.images).abs().mean() * 255 * 0.23 <= 1.5
    loader.load_state_dict({"seed": 0, "epoch": 0, "step": 2})
    for batch, other in zip(batches[2:], loader, strict=True):
        assert torch.equal(batch.images, other.images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["folder", "shapes"])
def test_gpu_batches_are_whole_when_the_stream_is_busy(sources, name):
    """What is rendered ahead must not be written where an earlier batch is yet to be copied."""
    expected = []
    for batch in build(sources[name], workers=2, device="gpu"):
        expected.append(batch.images.clone())
        torch.cuda.synchronize()
    batches = []
    for batch in build(sources[name], workers=2, device="gpu"):
        batches.append(batch.images)
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    assert all(map(torch.equal, batches, expected))


def test_leaving_an_epoch_early_drops_what_was_rendered_ahead(sources):
    loader = build(sources["folder"], workers=2)
    first = [next(iter(loader)) for _ in range(3)]
    assert_same(first[0], first[2])
    assert_same(first[0], next(iter(build(sources["folder"]))))
    batches = iter(loader)
    next(batches)
    batches.close()
    loader.set_epoch(1)
    fresh = build(sources["folder"])
    fresh.set_epoch(1)
    for batch, other in zip(loader, fresh, strict=True):
        assert_same(batch, other)


def test_two_iterations_at_once_have_their_own_batches(sources):
    expected = list(build(sources["folder"]))
    loader = build(sources["folder"], workers=1)
    first, second = iter(loader), iter(loader)
    for step, batch in enumerate(expected):
        assert_same(next(first), batch)
        if step % 2:
            assert_same(next(second), expected[step // 2])


@pytest.mark.parametrize("step", ["feed_input", "schedule_run", "outputs"])
def test_interrupt_leaves_no_pixels_to_other_parameters(sources, monkeypatch, step):
    """As by Ctrl-C in a notebook, where the same loader is then used again."""
    from nvidia.dali import Pipeline

    loader = build(sources["folder"], workers=1)
    expected = list(loader)
    loader.set_epoch(0)
    call, calls = getattr(Pipeline, step), []

    def interrupted(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *args, **options)

    monkeypatch.setattr(Pipeline, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    for batch, other in zip(expected, loader, strict=True):
        assert_same(batch, other)


def test_batches_stay_as_they_are_when_later_ones_come(sources):
    loader = build(sources["shards"], workers=2)
    batches, copies = [], []
    for batch in loader:
        batches.append(batch.images)
        copies.append(batch.images.clone())
    assert all(map(torch.equal, batches, copies))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 22}, {"batch_size": 7, "workers": 3}, {"world_size": 2, "rank": 1}],
    ids=str,
)
def test_views_do_not_depend_on_batches_ranks_or_threads(sources, options):
    def views(**options):
        return {
            int(index): (batch.images[:, i], batch.parameters[:, i])
            for batch in build(sources["shards"], **options)
            for i, index in enumerate(batch.index)
        }

    whole = views()
    for index, (images, parameters) in views(**options).items():
        assert torch.equal(parameters, whole[index][1])
        assert torch.equal(images, whole[index][0])


@pytest.mark.parametrize("name", ["folder", "shards"])
def test_two_ranks_see_every_sample_once(sources, name):
    """Shards are shared as single images are: by index, whatever archive they lie in."""
    shares = [visited(build(sources[name], world_size=2, rank=rank, workers=1)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [11, 11]
    assert sorted(shares[0] + shares[1]) == list(range(COUNT))


def break_file(path, how):
    if how == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "words": b"words"}[how])


@pytest.mark.parametrize(
    ("how", "workers", "reason"),
    [
        ("missing", 2, "the file does not exist"),
        ("empty", 0, "the file is empty"),
        ("cut", 0, "truncated"),
        ("cut", 2, "truncated"),
        ("words", 2, "not an image file"),
    ],
)
def test_error_names_the_file(tmp_path, how, workers, reason):
    """Of a file that was sound when the source was opened; batches before it are not lost."""
    source = open_source("folder", "train", path=write_folder(tmp_path, 10))
    path = tmp_path / "train/06.jpg"
    break_file(path, how)
    seen = []
    with pytest.raises(BadImageError, match=f"cannot decode image {path}: .*{reason}"):
        for batch in build(source, shuffle=False, batch_size=2, workers=workers):
            seen += batch.index.tolist()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_error_names_the_member_of_a_shard(tmp_path):
    data = io.BytesIO()
    photo(0).save(data, "jpeg")
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            bytes_ = data.getvalue()[: -200 if i == 2 else None]
            tar.addfile(*label(f"{i}.jpg", bytes_))
    source = open_source("shards", "train", path=tmp_path)
    with pytest.raises(BadImageError, match=f"cannot decode image 2.jpg in {path}: .*truncated"):
        visited(build(source, shuffle=False))
    kept = open_source("shards", "train", path=tmp_path, on_bad_image="skip")
    assert kept.skipped == [f"2.jpg in {path}"]
    assert visited(build(kept, shuffle=False, batch_size=3)) == [0, 1, 2]


def test_rendering_goes_on_after_an_error(tmp_path):
    source = open_source("folder", "train", path=write_folder(tmp_path, 6))
    path = tmp_path / "train/04.jpg"
    good = path.read_bytes()
    break_file(path, "cut")
    loader = build(source, batch_size=2, workers=1)
    with pytest.raises(BadImageError):
        list(loader)
    path.write_bytes(good)
    for batch, other in zip(loader, build(source, batch_size=2), strict=True):
        assert_same(batch, other)


def png_of_noise(height, width):
    """A file that is sound but for the compressed pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "png")
    data = buffer.getvalue()
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = b"IDAT" + bytes(range(length))
    end = at + 8 + length
    return data[:at] + body + struct.pack(">I", zlib.crc32(body)) + data[end:]


BROKEN = {"odd": b"\xff\xd8 of a kind that is not known", "sound": png_of_noise(70, 80)}


@pytest.mark.parametrize("kind", BROKEN)
def test_image_that_only_pillow_decodes_goes_in_as_pixels(tmp_path, monkeypatch, kind):
    source = open_source("folder", "train", path=write_folder(tmp_path, 6))
    encoded = type(source).encoded
    asked = []

    def undecodable(self, index):
        asked.append(index)
        broken = np.frombuffer(BROKEN[kind], np.uint8)
        return broken if index == 3 else encoded(self, index)

    whole = list(build(source, batch_size=3, shuffle=False))
    monkeypatch.setattr(type(source), "encoded", undecodable)
    loader = build(source, batch_size=3, shuffle=False, workers=1)
    for batch, other in zip(whole, loader, strict=True):
        assert_same(batch, other)
    assert asked == list(range(6))
    list(loader)  # known by now: it is not tried again
    assert asked == [*range(6), 0, 1, 2, 4, 5]


def test_orientations_and_modes_of_images_are_those_of_the_source(tmp_path):
    (tmp_path / "train").mkdir()
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "png", "webp", "tiff"):
            photo(0).save(tmp_path / f"train/{orientation}.{suffix}", exif=exif)
        xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
        photo(0).save(tmp_path / f"train/xmp{orientation}.jpg", xmp=xmp)
    photo(0).save(tmp_path / "train/damaged.png", exif=b"not EXIF")
    # Orientation 6 as a number of 32 bits, which DALI does not take for one.
    tag = struct.pack(">HHHII", 1, 0x0112, 4, 1, 6)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + tag + bytes(4)
    photo(0).save(tmp_path / "train/long.jpg", exif=exif)
    for mode, suffix in itertools.product(("L", "RGBA", "P", "LA", "1"), ("png", "tiff")):
        photo(0).convert(mode).save(tmp_path / f"train/{mode}.{suffix}")
    photo(0).convert("CMYK").save(tmp_path / "train/CMYK.jpg")
    photo(0).convert("L").convert("I;16").save(tmp_path / "train/16.png")
    source = open_source("folder", "train", path=tmp_path)
    ours, theirs = (
        next(iter(build(source, batch_size=len(source), backend=backend, shuffle=False)))
        for backend in ("dali", "torchvision")
    )
    found = (ours.images - theirs.images).abs().mean((0, 2, 3, 4)) * 255 * 0.23
    for file, difference in zip(source.files, found, strict=True):
        assert difference <= 1.5, file


def test_dali_is_asked_for_where_it_is_missing(sources, monkeypatch):
    monkeypatch.setattr("mast_ext.augment.dali.is_installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mast-ext\[dali-cu13\]'"):
        build(sources["folder"])
    assert len(build(sources["folder"], backend="auto")) == 6
    with pytest.raises(ModuleNotFoundError):
        build(sources["folder"], backend="auto", photometric="fused")


CHANGES = {
    "smaller": (
        lambda path: photo(0, 20, 20).save(path),
        "has changed its size since it was opened",
    ),
    "larger": (
        lambda path: photo(0, 200, 200).save(path),
        "has changed its size since it was opened",
    ),
    "gone": (Path.unlink, ": the file does not exist"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:500]), ": Truncated File Read"),
    "empty": (lambda path: path.write_bytes(b""), ": the file is empty"),
    "text": (lambda path: path.write_text("<html>" * 99), ": not an image file"),
}


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changes_while_it_is_used_is_named(tmp_path, change, backend):
    source = open_source("folder", "train", path=write_folder(tmp_path, 4))
    path = tmp_path / "train/02.jpg"
    alter, message = CHANGES[change]
    alter(path)
    with pytest.raises(ValueError, match=f"image {path} ?{message}"):
        list(build(source, batch_size=2, backend=backend))
