"""`mast-ext bench`: tables on the screen and in files."""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mast_ext
from mast_ext.benchmarks.rates import Rates
from mast_ext.cli.bench import ops
from mast_ext.cli.bench.data import _Pictures
from mast_ext.data import open_source

QUICK = ["--images=8", "--batch-size=4", "--rounds=1", "--workers=1", "--augment.size=16"]


def test_table_of_all_renderers(folder, tmp_path):
    """As a process of its own, because the peers fork."""
    out = tmp_path / "table.md"
    command = [sys.executable, "-m", "mast_ext.cli.main", "bench", "data", folder, *QUICK]
    done = subprocess.run(
        [*command, f"--out={out}"],
        env={**os.environ, "PYTHONPATH": str(Path(mast_ext.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 images (folder, 16×16, in memory for ours" in done.stdout
    names = ["torchvision v2 (PIL), DataLoader", "mast-ext, torchvision"]
    if importlib.util.find_spec("lightly"):
        names.append("lightly SimCLRTransform, DataLoader")
    if importlib.util.find_spec("nvidia.dali"):
        names += ["mast-ext, dali, exact, cpu", "mast-ext, dali, fused, cpu"]
    text = out.read_text()
    for name in names:
        assert name in done.stdout
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        rate, _, cpu, ratio = cells.strip("| ").split(" | ")[1:]
        assert float(rate) > 0 and float(cpu) > 0
        assert ratio == "1.0" or name != names[0]
    assert f"command: `mast-ext bench data {folder}" in text


def test_where_a_step_spends_its_time(call, tiny, shapes, tmp_path):
    options = ["--method=simclr", "--hard-views=4", "--steps=3", "--warmup=1", *tiny, *shapes]
    status, out, err = call("bench", "step", *options, "--report=step.md")
    assert (status, err) == (0, "")
    assert "A training step of simclr+hard: resnet_small, 16 px" in out
    assert list(tmp_path.iterdir()) and not (tmp_path / "runs").exists()
    text = (tmp_path / "step.md").read_text()
    found = json.loads((tmp_path / "step.json").read_text())
    names = [part["name"] for part in found["parts"]]
    assert names[:3] == ["views", "selection, networks", "selection, choice"]
    for part in found["parts"]:
        assert part["name"] in out and f"| {part['name']} | " in text
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert found["images_per_second"] == pytest.approx(8e3 / found["sum_ms"])
    assert [step["step"] for step in found["steps"]] == [2, 3, 4]
    assert "command: `mast-ext bench step --method=simclr --hard_views.views=4" in text


def test_a_step_as_json(call, tiny, shapes):
    options = ["--recipe=cifar10-resnet18", "--data.name=shapes", *tiny, *shapes, "--steps=2"]
    small = ["--model.timm_args={}", "--model.name=resnet_small"]
    status, out, err = call("bench", "step", "--method=byol", *options, *small, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["settings"]["method"] == "byol"
    assert found["settings"]["optimizer"]["name"] != "adamw"  # the recipe's
    assert {"teacher", "teacher's update"} <= {part["name"] for part in found["parts"]}


def test_a_step_on_gray_images(call, tiny, tmp_path):
    """As pretrain fits the settings to them."""
    np.save(tmp_path / "gray.npy", np.arange(24 * 256, dtype=np.uint8).reshape(24, 16, 16))
    options = ["--method=simclr", "--data.name=numpy", "--data.path=gray.npy", *tiny, "--steps=2"]
    status, out, err = call("bench", "step", *options)
    assert (status, out) == (1, "") and "set --augment.mean=[" in err
    options += ["--augment.mean=[0.5]", "--augment.std=[0.2]", "--json"]
    status, out, err = call("bench", "step", *options)
    assert status == 0
    left_out = "augment.saturation, augment.hue, augment.grayscale"
    assert err == f"not applied, since images of 1 channel have no colors: {left_out}\n"
    assert json.loads(out)["settings"]["augment"]["hue"] == 0


@pytest.mark.parametrize(
    ("logger", "kept"),
    [("wandb", "csv"), ("csv", ["csv"]), ("tensorboard,mlflow", ["tensorboard"])],
)
def test_a_step_begins_no_run_on_a_server(call, tiny, shapes, logger, kept):
    options = [*tiny, *shapes, "--method=simclr", "--steps=2", "--warmup=0", "--json"]
    status, out, err = call("bench", "step", *options, f"--train.logger={logger}")
    assert (status, err) == (0, "")
    assert json.loads(out)["settings"]["train"]["logger"] == kept


def test_files_that_pillow_cannot_read(tmp_path):
    """Are decoded as ours are for the rivals, too."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)
    (tmp_path / "train").mkdir()
    for i in range(2):
        np.save(tmp_path / f"train/{i}.npy", pixels[i])
    source = open_source("folder", "train", path=tmp_path, channels=3, bits=8)
    assert np.array_equal([_Pictures(source, np.asarray)[i] for i in range(2)], pixels)


@pytest.mark.parametrize("kind", ["huggingface", "numpy"])
def test_every_kind_of_images_can_be_named(call, kind):
    status, _, err = call("bench", "data", "nowhere", f"--name={kind}")
    assert status == 1 and "nowhere" in err and "expected one of" not in err


@pytest.mark.distributed
def test_a_step_of_two_processes(tiny, shapes):
    options = ["--method=simclr", "--steps=2", *tiny, *shapes, "--train.devices=2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mast_ext.cli.main", "bench", "step", *options],
        env={**os.environ, "PYTHONPATH": str(Path(mast_ext.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] == 2


@pytest.fixture
def quick(monkeypatch):
    """The machine's rates without measuring them."""
    found = Rates(copy=10e9, cached_copy=50e9, products={torch.float32: 100e9})
    monkeypatch.setattr(ops, "measure_rates", lambda device, dtypes: found)
    return ["--accelerator=cpu", "--rounds=3"]


def test_operators_beside_their_rivals(call, quick, tmp_path):
    names = ["ntxent", "negative_cosine_similarity"]
    files = ["--report=ops.md", "--plot=roof.svg"]
    status, out, _ = call("bench", "ops", *names, "--batch=32", "--dim=16", *quick, *files)
    assert status == 0
    text = (tmp_path / "ops.md").read_text()
    found = json.loads((tmp_path / "ops.json").read_text())
    assert [race["case"] for race in found["races"]] == [{"batch": 32, "dim": 16}] * 2
    for name, race in zip(names, found["races"], strict=True):
        title = f"{name} batch=32 dim=16, forward + backward"
        assert title in out and f"## {title}" in text
        assert [race["operator"], race["results"][0]["name"]] == [name, "mast_ext"]
        for result in race["results"]:
            assert result["name"] in out and len(result["milliseconds"]) == 3
            assert not result["name"].startswith("torch.compile")
    ours = next(line for line in text.splitlines() if line.startswith("| mast_ext |"))
    ms, ratio, moved, products, share = ours.strip("| ").split(" | ")[1:]
    seconds = statistics.median(found["races"][0]["results"][0]["milliseconds"]) / 1e3
    elements, operations = 6 * 32 * 16, 5 * 64**2 * 16
    assert ratio == "1" and float(ms) == pytest.approx(1e3 * seconds, rel=0.01)
    assert float(moved) == pytest.approx(4 * elements / seconds / 1e9, rel=0.01)
    assert float(products) == pytest.approx(operations / seconds / 1e9, rel=0.01)
    least = max(4 * elements / 50e9, operations / 100e9)
    assert float(share.removesuffix(" %")) == pytest.approx(100 * least / seconds, rel=0.01)
    assert "<svg" in (tmp_path / "roof.svg").read_text()


def test_all_operators_with_a_size(call, quick):
    """Without names those that have the size; of each the first of its own for all others."""
    status, out, _ = call("bench", "ops", "--tokens=32", "--images=2", *quick, "--json")
    assert status == 0
    (race,) = json.loads(out)["races"]
    assert (race["operator"], race["case"]["tokens"]) == ("gram_difference", 32)


def test_list_of_operators(call):
    status, out, err = call("bench", "ops", "--list")
    assert (status, err) == (0, "")
    assert re.search(r"^ntxent +batch, dim$", out, re.MULTILINE)


WRONG = [
    ([], "bench takes what to measure: mast-ext bench data"),
    (["loss"], "bench takes what to measure: mast-ext bench data, step or ops, got 'loss'"),
    (["stepp"], "got 'stepp'; did you mean step?"),
    (["data"], r"needs PATH, the folder or file with the images \(or --name shapes\)"),
    (["data", "--views=0", "--name=shapes"], "views must be at least 1, got 0"),
    (["data", "x", "--speed=1"], "there is no option --speed"),
    (["ops", "nt_xent"], r"there is no operator 'nt_xent'; did you mean ntxent\?"),
    (["ops", "ntxent", "--tokens=2"], "ntxent has no size tokens: it has batch, dim"),
    (["ops", "--tokens=2", "--batch=2"], "no operator has all of the sizes batch, tokens"),
    (["ops", "--batch=0"], "batch must be at least 1, got 0"),
    (["ops", "--rounds=1"], "rounds must be at least 3, got 1"),
    (["ops", "--plot=a.doc"], "--plot must end in .svg, .png, .pdf, got a.doc"),
    (["step", "--steps=1"], "--steps must be at least 2 and --warmup at least 0, got 1 and 5"),
    (["step", "--clock=sun"], "--clock: expected one of 'wall', 'cpu'"),
    (["step", "--lr=1"], "there is no option --lr; did you mean --optimizer.lr?"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_command_line(call, arguments, message):
    status, out, err = call("bench", *arguments)
    assert (status, out) == (2, "")
    assert re.search(message, err)


def test_missing_folder(call):
    status, _, err = call("bench", "data", "nowhere")
    assert (status, err) == (1, "mast-ext: image folder nowhere does not exist\n")


@pytest.mark.parametrize("subject", ["data", "step", "ops"])
def test_help(call, subject):
    status, out, err = call("bench", subject, "--help")
    assert (status, err) == (0, "") and out.startswith(f"usage: mast-ext bench {subject}")


def test_help_on_what_there_is(call):
    status, out, err = call("bench", "-h")
    assert (status, err) == (0, "")
    for subject in ("data", "step", "ops"):
        assert f"mast-ext bench {subject}" in out
