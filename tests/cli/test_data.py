"""Runs on every kind of images, with every renderer."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

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
