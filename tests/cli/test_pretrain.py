import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mast_ext.cli.parser import build
from mast_ext.cli.pretrain import load_config, make_parser, parse_settings
from mast_ext.models import load_backbone
from mast_ext.train.config import PretrainConfig
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks
from mast_ext.train.pretrain import baseline_of, run_of_checkpoint
from mast_ext.train.state.checkpoint import read_checkpoint

FACTORS = ["shape", "hue", "size", "position", "rotation", "texture"]


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_default_run(call, tiny, shapes, tmp_path):
    """MAST on shapes, VICReg beside it with as many forwards, the table, the pictures."""
    status, out, err = call("pretrain", *tiny, *shapes)
    assert status == 0
    run = tmp_path / "runs" / "mast-shapes-1"
    assert "mast: 3 steps, 48 image forwards" in out
    assert "vicreg: 3 steps, 48 image forwards" in out
    assert out.splitlines()[-1] == "run directory: runs/mast-shapes-1"
    header = next(line for line in out.splitlines() if "representation" in line)
    assert all(factor in header for factor in FACTORS)
    for row in (
        "subspace invariant to hue",
        "subspace freed by hue",
        "embedding",
        "untrained",
        "chance",
    ):
        assert row in out
    assert err.splitlines()[0] == "training mast: 3 steps, 48 image forwards"
    assert "\x1b" not in err  # no progress bar outside of a terminal

    for each in (run, run / "baseline"):
        names = {path.name for path in each.iterdir()}
        assert {"config.yaml", "metrics.csv", "checkpoints", "backbone.safetensors"} <= names
    page = (run / "report" / "index.html").read_text()
    assert all(f">{title}</h2>" in page for title in ("Accuracy", "Dimensions in use", "Masks"))
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert last["step"] == "3" and {"loss", "lr", "gradient_norm"} <= last.keys()

    backbone, _ = load_backbone(run / "backbone.safetensors")
    trained = weights(run)
    assert_same_bits(
        dict(backbone.state_dict()),
        {n.removeprefix("backbone."): v for n, v in trained.items() if n.startswith("backbone.")},
    )


def test_equal_forwards_with_a_teacher(call, tiny, shapes):
    many = ["--method=moco", "--moco.symmetric=true", "--baseline=vicreg"]
    out = call("pretrain", *tiny, *shapes, *many)[1]
    assert "moco: 3 steps, 96 image forwards" in out
    assert "vicreg: 6 steps, 96 image forwards" in out


def test_equimod_is_named_and_its_plain_view_counts(call, tiny, shapes, tmp_path):
    """What a run is called, what its table and curves say, and that it evaluates to the same."""
    equimod = ["--method=simclr", "--equimod.weight=1"]
    status, out, _ = call("pretrain", *tiny, *shapes, *equimod, "--train.epochs=2")
    assert status == 0
    run = tmp_path / "runs" / "simclr+equimod-shapes-1"
    assert "simclr+equimod: 6 steps, 144 image forwards" in out
    assert "simclr: 9 steps, 144 image forwards" in out
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    gains = {f"equivariance_gain/{name}" for name in ("crop", "flip", "color", "grayscale")}
    assert {"loss", "simclr", "equivariance", "equivariance_gain", *gains} <= last.keys()
    assert "simclr+equimod on shapes" in (run / "report" / "index.html").read_text()

    assert call("evaluate", run, "--json=found.json")[0] == 0
    assert call("evaluate", run / "baseline", "--json=plain.json")[0] == 0
    found, plain = (
        json.loads((tmp_path / name).read_text())["rows"] for name in ("found.json", "plain.json")
    )
    trained = json.loads((run / "report" / "results.json").read_text())["rows"]
    rows = [(row["model"], row["part"]) for row in found[:2]]
    assert rows == [("simclr+equimod", "backbone"), ("simclr+equimod", "embedding")]
    assert found[:2] == trained[:2] and plain[:2] == trained[2:4]


@pytest.mark.parametrize(
    ("options", "name", "counts"),
    [
        (["--method=simsiam"], "simsiam", (144, 9, 144)),
        (["--method=simclr", "--equimod.weight=1"], "simclr+equimod", (168, 10, 160)),
        (["--method=mast"], "mast", (144, 9, 144)),
        (["--method=byol", "--hard-views.scorer=teacher"], "byol", (192, 6, 192)),
    ],
)
def test_hard_views(call, tiny, shapes, tmp_path, options, name, counts):
    """A run and its baseline, the method alone with as many forwards; curves and the picture."""
    status, out, err = call("pretrain", *tiny, *shapes, *options, "--hard-views", "4")
    assert status == 0, err
    forwards, steps, plain = counts
    assert f"{name}+hard: 3 steps, {forwards} image forwards" in out
    assert f"{name.split('+')[0]}: {steps} steps, {plain} image forwards" in out
    run = tmp_path / "runs" / f"{name}+hard-shapes-1"
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert {"hard_views/margin", "hard_views/iou", "hard_views/iou_random"} <= last.keys()
    page = (run / "report" / "index.html").read_text()
    assert "8 rows of 4 augmented views" in page and "Chosen pairs beside random ones" in page
    assert yaml.safe_load((run / "config.yaml").read_text())["hard_views"]["views"] == 4

    assert call("evaluate", run, "--json=found.json")[0] == 0
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    trained = json.loads((run / "report" / "results.json").read_text())["rows"]
    assert found[0] == trained[0] and found[0]["model"] == f"{name}+hard"


@pytest.mark.parametrize(
    "options",
    [
        ["--hard-views", "3", "--hard-views.every", "2"],
        ["--hard_views=3", "--hard_views.every=2"],
        ["--hard-views.views=3", "--hard-views.every=2"],
        ["--hard_views.views", "3", "--hard_views.every", "2"],
        ['--hard-views={"views": 3, "every": 2}'],
    ],
)
def test_hard_views_can_be_spelled(call, options):
    status, out, err = call("pretrain", "--print_config", *options)
    assert status == 0, err
    found = yaml.safe_load(out)["hard_views"]
    assert (found["views"], found["every"]) == (3, 2)


def test_a_temperature_in_a_file_does_nothing_without_softmax():
    """As in files of runs from before it was refused on the command line."""
    settings = {"method": "simclr", "hard_views": {"views": 4, "temperature": 0.5}}
    config = parse_settings(settings, Path("config.yaml"))
    assert build_networks(config).policy(config.augment).num_views() == 4


@pytest.mark.parametrize("data", [{}, {"data": {"max_images": 64}}])
def test_settings_in_a_file_have_the_augmentation_of_their_images(data):
    found = parse_settings({"method": "simclr", **data}, Path("config.yaml"))
    assert found.augment == PretrainConfig().augment


@pytest.mark.parametrize("data", ["shapes", "folder"])
@pytest.mark.parametrize(
    ("options", "on_shapes"),
    [
        (["--method=mast"], "vicreg"),
        (["--method=vicreg"], None),
        (["--method=simclr"], None),
        (["--method=simclr", "--equimod.weight=0.5"], "simclr"),
        (["--method=mast", "--equimod.weight=0.5"], "mast"),
        (["--method=mast", "--hard_views.views=4"], "mast"),
        (["--method=simclr", "--hard_views.views=4", "--equimod.weight=0.5"], "simclr"),
    ],
)
def test_automatic_baseline(options, on_shapes, data):
    parser = make_parser()
    path = [] if data == "shapes" else ["--data.path=x"]
    values = parser.parse_args([*options, f"--data.name={data}", *path])
    found = baseline_of(build(parser, values, PretrainConfig, "resume", "recipe"))
    expected = on_shapes if data == "shapes" else None
    plain = [(each.method, each.equimod.weight, each.hard_views.views) for each in found]
    assert plain == ([] if expected is None else [(expected, 0.0, 0)])


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (["--method=vicreg"], {"vicreg"}),
        (["--baseline=none"], {"mast"}),
        (["--mast.uncertainty=true", "--optimizer.name=lars"], {"mast", "vicreg"}),
        (["--method=simclr"], {"simclr"}),
        (["--method=moco", "--baseline=simclr"], {"moco", "simclr"}),
        (["--method=barlow_twins"], {"barlow_twins"}),
        (["--method=byol", "--baseline=simsiam"], {"byol", "simsiam"}),
        (["--method=moco", "--hard-views=3", "--baseline=vicreg"], {"moco+hard", "vicreg"}),
        (["--method=simclr", "--equimod.weight=1"], {"simclr+equimod", "simclr"}),
        (["--method=vicreg", "--equimod.weight=1", "--baseline=none"], {"vicreg+equimod"}),
        (["--method=moco", "--equimod.weight=1", "--baseline=moco"], {"moco+equimod", "moco"}),
    ],
)
def test_what_is_trained(call, tiny, shapes, tmp_path, options, trained):
    status, _, _ = call("pretrain", *tiny, *shapes, "--out=run", *options)
    assert status == 0
    found = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    models = {row["model"] for row in found["rows"]}
    assert models == {*trained, "untrained", "chance"}
    assert (tmp_path / "run" / "baseline").exists() == (len(trained) > 1)


def test_same_seed_same_bits_and_another_seed_others(call, tiny, shapes, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call("pretrain", *tiny, *shapes, "--baseline=none", f"--out={name}", f"--seed={seed}")
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    a, c = (weights(tmp_path / name)["backbone.conv1.0.weight"] for name in "ac")
    assert not torch.equal(a, c)


def test_config_file_and_options(call, tiny, shapes, tmp_path):
    call("pretrain", *tiny, *shapes, "--baseline=none", "--out=a", "--seed=3")
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    config["out"] = "b"
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(config))
    status, _, _ = call("pretrain", "--config=settings.yaml", "--mast.shared={hue: {freed: 0.5}}")
    assert status == 0
    again = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    config["mast"]["shared"] = {"hue": {"share": 0.5, "freed": 0.5, "start": 0.0}}
    assert again == config


def test_print_config_is_a_config(call, tmp_path):
    status, out, _ = call("pretrain", "--print_config", "--seed=7")
    assert status == 0 and yaml.safe_load(out)["seed"] == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "crop_scale"),
    [
        (["--data.name=shapes"], [0.5, 1.0]),
        (["--data.name=folder", "--data.path=x"], [0.2, 1.0]),
        (["--data.name=folder", "--data.path=x", "--augment.crop_scale=[0.3,1]"], [0.3, 1.0]),
        (["--config=settings.yaml"], [0.2, 1.0]),
    ],
)
def test_augmentations_follow_the_data(call, tmp_path, options, crop_scale):
    (tmp_path / "settings.yaml").write_text("data: {name: folder, path: x}\n")
    status, out, _ = call("pretrain", "--print_config", *options)
    assert status == 0 and yaml.safe_load(out)["augment"]["crop_scale"] == crop_scale


def test_files_of_older_runs_are_read(call, tmp_path):
    """Under the names that settings have today."""
    (tmp_path / "old.yaml").write_text(
        "train: {tensorboard: false, epochs: 1e-1}\nevaluation: {neighbours: [3]}\n"
    )
    status, out, err = call("pretrain", "--config=old.yaml", "--print_config")
    assert status == 0, err
    values = yaml.safe_load(out)
    assert values["train"]["logger"] == "csv" and values["train"]["epochs"] == 0.1
    assert values["evaluation"]["neighbors"] == [3]


def test_print_config_of_an_evaluation_shows_the_run(call, trained):
    status, out, _ = call("evaluate", trained, "--print_config", "--evaluation.temperature=1")
    found = yaml.safe_load(out)
    assert status == 0
    assert found["data"]["max_images"] == 24 and found["augment"]["size"] == 16
    assert found["evaluation"] == {"neighbors": [5], "temperature": 1.0, "batch_size": 512}


@pytest.mark.parametrize(
    "option",
    ["--model.weights=first.safetensors", "--model.timm_args.checkpoint_path=first.safetensors"],
)
def test_starts_from_weights_and_keeps_them(call, tiny, shapes, trained, tmp_path, option):
    """The run, its export and its evaluation need the first file no more."""
    first = tmp_path / "first.safetensors"
    first.write_bytes((trained / "backbone.safetensors").read_bytes())
    options = ["--method=simclr", "--baseline=simsiam", option, "--out=run"]
    status, out, err = call("pretrain", *tiny, *shapes, *options)
    assert status == 0, err
    assert "starting weights" in out and "untrained" not in out
    before, _ = load_backbone(first)
    for run in (tmp_path / "run", tmp_path / "run/baseline"):
        start, _ = load_backbone(run / "start.safetensors")
        assert_same_bits(before.state_dict(), start.state_dict())
        settings = yaml.safe_load((run / "config.yaml").read_text())["model"]
        assert settings["weights"] == str(first)
        assert "checkpoint_path" not in settings["timm_args"]

    first.unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    status, out, err = call("evaluate", "moved", "--json=found.json")
    assert status == 0 and "starting weights" in out, err
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    expected = json.loads((tmp_path / "moved/report/results.json").read_text())["rows"]
    assert [row for row in found if row["model"] == "starting weights"] == [
        row for row in expected if row["model"] == "starting weights"
    ]
    assert call("evaluate", "moved/backbone.safetensors", *shapes, "--augment.size=16")[0] == 0
    status, out, err = call("pretrain", "--resume=moved")
    assert status == 0 and "starting weights" in out, err


def test_settings_of_an_older_run_may_name_weights_for_timm(trained, tmp_path):
    """They become those to start from; the run's own copy goes before them."""
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    settings["model"]["timm_args"]["checkpoint_path"] = "first.safetensors"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    model = load_config(tmp_path).model
    assert model.weights == "first.safetensors" and "checkpoint_path" not in model.timm_args
    (tmp_path / "start.safetensors").touch()
    assert load_config(tmp_path).model.weights == str(tmp_path / "start.safetensors")


def test_starts_from_a_checkpoint(call, tiny, shapes, trained, tmp_path):
    path = trained / "checkpoints/last.ckpt"
    options = ["--method=vicreg", "--baseline=none", f"--model.weights={path}", "--out=run"]
    status, _, err = call("pretrain", *tiny, *shapes, *options)
    assert status == 0, err
    before, start = (
        load_backbone(p)[0]
        for p in (trained / "backbone.safetensors", tmp_path / "run/start.safetensors")
    )
    assert_same_bits(before.state_dict(), start.state_dict())


def test_folder(call, tiny, folder, tmp_path):
    """A labeled folder: k-NN and linear rows; names from data are escaped in the report."""
    data = ["--data.name=folder", f"--data.path={folder}"]
    status, out, _ = call("pretrain", *tiny, *data, "--method=mast", "--out=run")
    assert status == 0
    header = next(line for line in out.splitlines() if "representation" in line)
    assert "linear probe" in header and "k-NN 5" in header
    assert not (tmp_path / "run" / "baseline").exists()
    found = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    untrained = next(row for row in found["rows"] if row["model"] == "untrained")
    assert untrained["accuracy"]["linear probe"]["class"] == 1.0

    status, out, _ = call("evaluate", "run")
    assert status == 0 and "untrained" in out and "subspace freed by hue" in out


def test_folder_without_labels(call, tiny, folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        path.rename(flat / f"{i}.png")
    data = ["--data.name=folder", f"--data.path={flat}"]
    status, out, _ = call("pretrain", *tiny, *data, "--out=run")
    assert status == 0 and "nothing was probed: the images have no labels" in out
    status, _, err = call("evaluate", "run")
    assert status == 1 and "the images have no labels (--measure augmentations needs" in err


def test_folder_of_one_image_per_class(call, tiny, folder, tmp_path):
    for i, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        (tmp_path / "cases" / str(i)).mkdir(parents=True)
        path.rename(tmp_path / "cases" / str(i) / "0.png")
    data = ["--data.name=folder", f"--data.path={tmp_path / 'cases'}"]
    status, out, err = call("pretrain", *tiny, *data, "--out=run")
    assert status == 0, err
    assert "nothing was probed: no images" in out and "in the test split of" in out
    status, _, err = call("evaluate", "run")
    assert status == 1 and err.startswith("mast-ext: nothing to evaluate by: no images")


def test_bad_image_skipped_and_counted(call, tiny, folder):
    (folder / "train" / "blue" / "0.png").write_bytes(b"")
    data = ["--data.name=folder", f"--data.path={folder}", "--data.on_bad_image=skip"]
    status, out, _ = call("pretrain", *tiny, *data)
    assert status == 0 and "1 unreadable images skipped in train" in out


def test_names_that_are_not_utf_8(call, tiny, folder, tmp_path):
    """Of the images, of one that is left out, and of the run: trained, reported, resumed."""
    images, run = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9", b"r\xfcn"))
    folder.rename(images)
    (images / "train" / "blue").rename(images / "train" / os.fsdecode(b"bl\xe4u"))
    (images / "test" / "blue").rename(images / "test" / os.fsdecode(b"bl\xe4u"))
    (images / "train" / os.fsdecode(b"bl\xe4u/\xe9.png")).write_bytes(b"")
    data = ["--data.name=folder", f"--data.path={images}", "--data.on_bad_image=skip"]
    options = [*tiny, *data, "--method=simclr", f"--out={run}"]
    for command in (["pretrain", *options], ["pretrain", f"--resume={run}"]):
        status, out, err = call(*command)
        assert status == 0, err
        note = f"{tmp_path}/caf\\xe9/train/bl\\xe4u/\\xe9.png"
        assert note in out and f"run directory: {tmp_path}/r\\xfcn\n" in out
        assert note in (run / "report" / "index.html").read_text(encoding="utf-8")
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert settings["data"]["path"] == str(images)
    for what in (run, run / "backbone.safetensors"):
        status, _, err = call("evaluate", what, *data, "--augment.size=16", "--json=found.json")
        assert status == 0, err
    none = tmp_path / os.fsdecode(b"n\xf6n")
    status, _, err = call("evaluate", none)
    assert status == 1 and err == f"mast-ext: there is no run or checkpoint at {tmp_path}/n\\xf6n\n"
    status, _, err = call("pretrain", *options, f"--out={none}", "--train.logger=tensorboard")
    assert status == 1 and "train.logger must be csv" in err and not none.exists()


@pytest.mark.parametrize(
    ("number", "done"), [(signal.SIGKILL, 4), (signal.SIGTERM, 5)], ids=["killed", "stopped"]
)
def test_ended_processes_resume_to_the_same_bits(call, stop_at, six_steps, tmp_path, number, done):
    """A signal in the fifth step: the run has a checkpoint of four steps, and writes one of five
    if the signal lets it."""
    options, whole = six_steps
    status, _, err = stop_at(4, number, "pretrain", *options)
    run = tmp_path / "run"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == done
    if number == signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
        expected = "stopped by signal 15 after step 5: go on with mast-ext pretrain"
        assert err.splitlines()[-1] == f"mast-ext: {expected} --resume {run}"
    else:
        assert status == -signal.SIGKILL
    status, _, err = call("pretrain", "--resume=run")
    assert status == 0 and err.startswith("resuming mast: 6 steps")
    for part in (".", "baseline"):
        assert_same_bits(weights(run / part), weights(whole / part))
    tables = [each / "report" / "results.json" for each in (run, whole)]
    assert tables[0].read_text() == tables[1].read_text()


def test_evaluate_leaves_the_teacher_aside(call, tiny, shapes, tmp_path):
    call("pretrain", *tiny, *shapes, "--method=moco", "--out=run")
    assert any(name.startswith("teacher.") for name in weights(tmp_path / "run"))
    assert call("evaluate", "run", "--json=found.json")[0] == 0
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    trained = json.loads((tmp_path / "run" / "report" / "results.json").read_text())["rows"]
    assert found == trained


def test_evaluate_refuses_the_checkpoint_of_another_method(call, tiny, shapes, tmp_path):
    for name, options in (("with", ["--equimod.weight=1"]), ("without", [])):
        settings = [*tiny, *shapes, "--method=simclr", "--baseline=none", f"--out={name}"]
        call("pretrain", *settings, *options)
    checkpoint = tmp_path / "without" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes((tmp_path / "with" / "checkpoints" / "last.ckpt").read_bytes())
    for command in (["evaluate", "without"], ["pretrain", "--resume=without"]):
        status, _, err = call(*command)
        assert status == 1
        assert "its method is simclr+equimod, this run's is simclr" in err


def test_resume_from_a_checkpoint_file_and_of_a_baseline(call, tiny, shapes, tmp_path):
    call("pretrain", *tiny, *shapes, "--train.epochs=2", "--out=run")
    before = weights(tmp_path / "run"), weights(tmp_path / "run" / "baseline")
    for path in ("run/checkpoints/best.ckpt", "run/baseline"):
        assert call("pretrain", f"--resume={path}")[0] == 0
    assert_same_bits(before[0], weights(tmp_path / "run"))
    assert_same_bits(before[1], weights(tmp_path / "run" / "baseline"))


@pytest.mark.parametrize("link", ["run/checkpoints", "run/checkpoints/last.ckpt", "mine.ckpt"])
def test_checkpoints_may_be_links(trained, tmp_path, link):
    """A folder of them on another disk, and a checkpoint by another name."""
    shutil.copytree(trained, tmp_path / "run")
    place = tmp_path / link
    if place.exists():
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.symlink_to(tmp_path / "run/checkpoints/last.ckpt")
    path = place / "last.ckpt" if place.is_dir() else place
    assert run_of_checkpoint(path).resolve() == tmp_path / "run"


def test_a_baseline_is_not_trained_by_two(call, tiny, shapes, tmp_path, monkeypatch):
    """One goes on with the run, the other with its baseline, as with a run of its own."""
    told = []

    def another(module, batch, batch_idx):
        if module.method.name == "vicreg" and not told:
            command = [sys.executable, "-m", "mast_ext", "pretrain", "--resume=run/baseline"]
            done = subprocess.run(command, capture_output=True, text=True)
            told.append(done.stderr.splitlines()[-1])

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", another)
    options = [*tiny, *shapes, "--method=simclr", "--baseline=vicreg", "--out=run"]
    assert call("pretrain", *options)[0] == 0
    assert told == ["mast-ext: another process trains in run/baseline"]


@pytest.mark.parametrize("what", [".", "checkpoints/last.ckpt", "backbone.safetensors"])
def test_evaluate(call, trained, shapes, tmp_path, what):
    options = ["--augment.size=16", *shapes, "--evaluation.neighbors=[5]"]
    extra = options if what.endswith("safetensors") else []
    status, out, err = call("evaluate", trained / what, "--json=found.json", *extra)
    assert status == 0, err
    assert "k-NN 5: accuracy (%) of every factor" in out
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    expected = json.loads((trained / "report" / "results.json").read_text())["rows"]
    assert found[0]["accuracy"] == expected[0]["accuracy"]
    # Nothing in an evaluation is by chance, the weights of the untrained network included.
    torch.rand(7)
    assert call("evaluate", trained / what, "--json=again.json", *extra)[0] == 0
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == found
    untrained = next(row for row in found if row["model"] == "untrained")
    assert untrained in expected


def test_replays_a_step_that_was_not_finite(call, tiny, shapes, tmp_path):
    """Before there is a checkpoint, and with only what such a run leaves."""
    wild = ["--optimizer.name=sgd", "--optimizer.lr=1e25", "--optimizer.warmup=0"]
    options = [*tiny, *shapes, "--method=simclr", "--baseline=none", "--out=run", *wild]
    status, _, err = call("pretrain", *options)
    assert status == 1 and err.splitlines()[-1].endswith("says mast-ext replay run")
    status, out, err = call("replay", "run")
    assert status == 0, err
    first, *terms, last = out.splitlines()
    assert first == "step 2 again, the same samples and views"
    assert "  loss  nan" in terms and last.startswith("first not finite: the output of backbone.")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["nonfinite_batch.json"]
    status, _, err = call("replay", "none")
    assert status == 1 and "nothing to replay: none has no nonfinite_batch.json" in err
