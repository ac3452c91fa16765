"""Runs on every kind of images, with every renderer."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mast_ext.models import load_backbone

DALI = ["--data.backend=dali", "--data.photometric=fused"]


@pytest.fixture
def shards(tmp_path):
    """Small pictures with a number as label, 12 for training and 8 for tests."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for i in range(count):
                buffer = io.BytesIO()
                pixels = generator.integers(0, 256, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "jpeg")
                for name, data in ((f"{i}.jpg", buffer.getvalue()), (f"{i}.cls", b"%d" % (i % 2))):
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
    return tmp_path / "shards"


@pytest.fixture
def cifar10(tmp_path):
    """Six files of four images."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        contents = {"data": pixels, "labels": [0, 1, 0, 1]}
        (folder / file).write_bytes(pickle.dumps(contents))
    return tmp_path


@pytest.mark.parametrize("options", [[], DALI], ids=["default", "dali"])
@pytest.mark.parametrize("name", ["shards", "cifar10"])
def test_run(call, tiny, request, tmp_path, name, options):
    if options:
        pytest.importorskip("nvidia.dali", reason="needs DALI")
    path = request.getfixturevalue(name)
    data = [f"--data.name={name}", f"--data.path={path}", *options]
    status, out, err = call("pretrain", "--method=vicreg", *tiny, *data, "--out=run")
    assert status == 0, err
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["data"]["photometric"] == ("fused" if options else "exact")
    assert "linear" in out


@pytest.fixture
def arrays(tmp_path):
    """Images of 13 channels and 16 bits, with labels."""
    generator = np.random.default_rng(0)
    (tmp_path / "arrays").mkdir()
    for split, count in (("train", 16), ("test", 8)):
        images = generator.integers(0, 4096, (count, 20, 18, 13), dtype=np.uint16)
        np.save(tmp_path / "arrays" / f"{split}_images.npy", images)
        np.save(tmp_path / "arrays" / f"{split}_labels.npy", np.arange(count) % 2)
    return ["--data.name=numpy", f"--data.path={tmp_path / 'arrays'}"]


@pytest.fixture
def scans(tmp_path):
    """Gray images of 16 bits in files, which are too large to be kept in memory."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in "ab":
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 1 << 16, (70, 80), dtype=np.uint16)
                Image.fromarray(pixels).save(tmp_path / "scans" / split / name / f"{i}.png")
    return ["--data.name=folder", f"--data.path={tmp_path / 'scans'}"]


def means(channels, mean=0.03, std=0.02):
    """Options, as an error suggests them."""
    numbers = (f"[{','.join([str(value)] * channels)}]" for value in (mean, std))
    return [f"--augment.{name}={each}" for name, each in zip(("mean", "std"), numbers, strict=True)]


@pytest.mark.parametrize(("name", "channels"), [("arrays", 13), ("scans", 1)])
def test_whole_path_of_images_that_are_not_rgb(call, tiny, request, tmp_path, name, channels):
    """Training with pictures in the report, resuming, evaluation, export."""
    options = [*tiny, *request.getfixturevalue(name), "--method=simclr", "--hard-views=3"]
    status, _, err = call("pretrain", *options, "--out=run")
    assert status == 1 and f"and the images have {channels} channel" in err
    suggested = [word for word in err.split() if word.startswith("--augment")]
    suggested = [word.rstrip(",") for word in suggested]
    assert err.count("\n") == 1 and len(suggested) == 2 and not (tmp_path / "run").exists()
    options += suggested
    status, out, err = call("pretrain", *options, "--out=run", "--train.checkpoint_every=1")
    assert status == 0, err
    sentence = " ".join(err.split())
    assert f"not applied, since images of {channels} channel" in sentence
    assert "augment.saturation, augment.hue, augment.grayscale" in sentence
    assert "linear probe" in out
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert len(settings["augment"]["mean"]) == channels and settings["augment"]["hue"] == 0
    page = (tmp_path / "run/report/index.html").read_text()
    assert ("the first three are shown, as red, green and blue" in page) == (channels > 3)
    before = load_backbone(tmp_path / "run/backbone.safetensors")

    status, _, err = call("pretrain", "--resume", tmp_path / "run")
    assert status == 0 and "not applied" not in err, err
    after = load_backbone(tmp_path / "run/backbone.safetensors")
    assert before[1] == after[1] and before[1].channels == channels
    weights = (each[0].state_dict() for each in (before, after))
    assert all(torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True))

    images = request.getfixturevalue(name)
    for path, more in (("run", []), ("run/backbone.safetensors", [*images, *suggested])):
        status, out, err = call("evaluate", path, *more)
        assert status == 0 and "linear probe" in out, err
    status, out, err = call("export", "run", "--format=torchscript", "--out=b.pt")
    assert status == 0 and "of 16 bits, value / 65535" in " ".join(out.split()), err
    x = torch.randn(2, channels, 16, 16)
    torch.testing.assert_close(torch.jit.load("b.pt")(x), after[0].eval()(x))


def test_gray_images_become_rgb_if_asked(call, tiny, scans, tmp_path):
    status, _, err = call("pretrain", *tiny, *scans, "--method=simclr", "--data.channels=3")
    assert status == 0 and "not applied" not in err, err


def test_run_on_rgb_is_evaluated_on_gray_images(call, tiny, folder, scans, tmp_path):
    data = ["--data.name=folder", f"--data.path={folder}"]
    status, _, err = call("pretrain", *tiny, *data, "--method=simclr", "--out=run")
    assert status == 0, err
    status, out, err = call("evaluate", "run", *scans)
    assert status == 0 and "linear probe" in out, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.backend=dali"], "backend dali renders 8 bits, and the images have 16"),
        (
            ["--data.backend=dali", "--data.bits=8", "--data.photometric=fused"],
            "fused turns colors",
        ),
        (["--method=mast"], "shared names 'hue', and images that are not RGB have none"),
        (["--model.timm_args={in_chans: 3}"], "in_chans is 3, and augment.mean has 1 number"),
    ],
)
def test_what_gray_images_cannot_have_is_refused_before_the_run_is_made(
    call, tiny, scans, tmp_path, options, message
):
    if "dali" in options[0]:
        pytest.importorskip("nvidia.dali", reason="needs DALI")
    arguments = [*tiny, *scans, *means(1), "--method=simclr", "--out=run", *options]
    status, out, err = call("pretrain", *arguments)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_gray_images_are_rendered_by_dali(call, tiny, scans):
    pytest.importorskip("nvidia.dali", reason="needs DALI")
    options = ["--data.backend=dali", "--data.bits=8", *means(1), "--method=simclr"]
    status, _, err = call("pretrain", *tiny, *scans, *options)
    assert status == 0, err


def test_backbone_file_of_other_channels_is_refused_by_name(call, trained, scans):
    status, _, err = call("evaluate", trained / "backbone.safetensors", *scans, *means(1))
    assert (
        status == 1 and "takes images of 3 channels, and augment.mean and augment.std have 1" in err
    )


def test_run_on_a_table_of_hugging_face(call, tiny, tmp_path, capsys):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    generator = np.random.default_rng(0)
    kinds = {"photo": datasets.Image(), "animal": datasets.ClassLabel(names=["cat", "dog"])}
    splits = {}
    for split, count in (("train", 16), ("validation", 8)):
        cells = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, "png")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        values = {"photo": cells, "animal": [i % 2 for i in range(count)]}
        splits[split] = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "pets"))
    capsys.readouterr()  # the bar of the package's that saved it
    data = ["--data.name=huggingface", "--data.path=pets", "--method=simclr", "--out=run"]
    status, out, err = call("pretrain", *tiny, *data, "--data.label_column=animal")
    assert status == 0 and "linear probe" in out, err
    assert err.splitlines()[0].startswith("training simclr")  # and no bar of the package's
    status, _, err = call("pretrain", "--resume", "run")
    assert status == 0, err
    status, _, err = call("pretrain", *tiny, *data[:3], "--data.image_column=animal")
    assert status == 1 and err.count("\n") == 1 and "column animal of pets holds no encoded" in err


@pytest.mark.parametrize("what", ["folder", "pattern"])
def test_run_is_used_from_another_directory(call, tiny, request, tmp_path, monkeypatch, what):
    """Whose data's path was typed as seen from the first one."""
    name, path = ("folder", "images") if what == "folder" else ("shards", "shards/*/?.tar")
    request.getfixturevalue(name)
    (tmp_path / "[elsewhere]").mkdir()
    if what == "pattern":  # the directory's own name is none
        (tmp_path / "shards").rename(tmp_path / "[elsewhere]" / "shards")
        monkeypatch.chdir("[elsewhere]")
    data = [f"--data.name={name}", f"--data.path={path}"]
    status, _, err = call("pretrain", "--method=simclr", *tiny, *data, f"--out={tmp_path / 'run'}")
    assert status == 0, err
    monkeypatch.chdir("/")
    for command in (["evaluate"], ["pretrain", "--resume"]):
        status, _, err = call(*command, tmp_path / "run")
        assert status == 0, err


def test_dali_is_asked_for_before_the_run_is_made(call, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mast_ext.augment.dali.is_installed", lambda: False)
    data = ["--data.name=folder", f"--data.path={folder}", "--data.backend=dali"]
    status, _, err = call("pretrain", *tiny, *data, "--out=run")
    assert status == 1 and "pip install 'mast-ext[dali-cu13]'" in err
    assert not (tmp_path / "run").exists()


def test_archive_without_images(call, tiny, tmp_path):
    (tmp_path / "train.tar").write_bytes(b"")
    data = ["--data.name=shards", f"--data.path={tmp_path}"]
    status, _, err = call("pretrain", *tiny, *data, "--out=run")
    assert status == 1 and f"cannot read shard {tmp_path / 'train.tar'}: empty file" in err
