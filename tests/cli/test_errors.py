"""Whatever a user can get wrong: one sentence on standard error, a status, and no traces."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch import nn

import mast_ext
from mast_ext.methods import simclr
from mast_ext.train import pretrain
from mast_ext.train.loop import fit
from mast_ext.train.loop.callbacks import MetricsFile
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.run_directory import RunDirectory

SMALL = ["--data.max_images=24", "--train.batch_size=8"]
BESIDE = ["--baseline=vicreg", "--vicreg.projector=[16,16]", "--train.log_every=100"]

# arguments, status, part of the sentence
WRONG = [
    (["pretrian"], 2, "there is no command 'pretrian'"),
    (["pretrain", "--hardviews=4"], 2, "no option --hardviews; did you mean --hard_views.views?"),
    (["pretrain", "--equimod=1"], 2, "and 1 is none; did you mean --equimod.weight?"),
    (["pretrain", "--metod=mast"], 2, "there is no option --metod; did you mean --method?"),
    (["pretrain", "--data.nam=folder"], 2, "there is no option --data.nam; did you mean"),
    (["pretrain", "surplus"], 2, "there is one argument too many, surplus"),
    (
        ["pretrain", "--train.tensorboard=false"],
        2,
        "no option --train.tensorboard any more: write --train.logger with tensorboard for",
    ),
    (["pretrain", "--train.logger=csvs"], 2, "one or more of csv, tensorboard, wandb, mlflow, got"),
    (["pretrain", "--train.logger=[csv, odd]"], 2, "mlflow, got ('csv', 'odd')"),
    (["pretrain", "--train.logger=[]"], 2, "train.logger must be one or more of csv, tensorboard"),
    (["report"], 2, "the following arguments are required: RUN (options: mast-ext report --help)"),
    (["report", "none"], 1, "none is not a run directory: it has no config.yaml"),
    (["pretrain", "--method=simcrl"], 2, "simclr, simsiam, vicreg, got 'simcrl'"),
    (
        ["pretrain", "--method=simclr+equimod"],
        2,
        "method must be one of barlow_twins, byol, dino",
    ),
    (["pretrain", "--baseline=both"], 2, "baseline must be one of auto, none, barlow_twins, byol"),
    (["pretrain", "--equimod.weight=-1"], 2, "equimod.weight must be at least 0, got -1"),
    (["pretrain", "--equimod.parameters=0"], 2, "equimod.parameters must be at least 1, got 0"),
    (["pretrain", "--method=moco", "--moco.batch_norm=none"], 2, "--moco.batch_norm: expected one"),
    (["pretrain", "--seed=one"], 2, "--seed: expected int. Got value: one"),
    (["pretrain", "--optimizer.name=adam"], 2, "--optimizer.name: expected one of 'adamw'"),
    *(
        (["pretrain", *options], 2, f"--{name}: expected a list{message}")
        for options, name, message in (
            (["--augment.crop_scale=0.2,1.0"], "augment.crop_scale", ", written as [0.5,1.0]"),
            (["--augment.crop_scale", "0.2", "1"], "augment.crop_scale", ", written as [0.5,1.0]"),
            (["--augment.crop_scale=[0.2]"], "augment.crop_scale", " of 2, written as [0.5,1.0]"),
            (["--augment.mean=(0.5)"], "augment.mean", ", written as [0.485,0.456,0.406]"),
            (["--vicreg.projector=16,16"], "vicreg.projector", ", written as ["),
        )
    ),
    (["pretrain", "--train.accelerator=gpu"], 2, "Got value: gpu; did you mean cuda?"),
    (["evaluate", "none", "--accelerator=gpu"], 2, "Got value: gpu; did you mean cuda?"),
    (["bench", "ops", "--accelerator=GPU"], 2, "Got value: GPU; did you mean cuda?"),
    (["pretrain", "--data.device=cuda"], 2, "Got value: cuda; did you mean gpu?"),
    (["pretrain", "--device=cpu"], 2, "no option --device; did you mean --train.accelerator?"),
    (["evaluate", "none", "--device=cpu"], 2, "--device; did you mean --accelerator?"),
    *(
        (["pretrain", name, "3"], 2, f"no option {name}; did you mean {meant} (fractions allowed)?")
        for name, meant in (
            ("--steps", "--train.epochs"),
            ("--train.steps", "--train.epochs"),
            ("--max_steps", "--train.epochs"),
            ("--warmup_steps", "--optimizer.warmup"),
        )
    ),
    (["pretrain", "--config=steps.yaml"], 2, "setting train.steps; did you mean train.epochs (fr"),
    (["export", "none", "torchscript"], 2, "too many, torchscript; did you mean --format torchs"),
    (["export", "none", "now"], 2, "there is one argument too many, now (options: mast-ext export"),
    (["pretrain", "--config=none.yaml"], 2, "none.yaml"),
    (["pretrain", "--config=odd.yaml"], 2, "odd.yaml: there is no setting data.nme; did you mean"),
    (["evaluate", "full", "--config=odd.yaml"], 2, "odd.yaml: there is no setting data.nme; did"),
    (["pretrain", "--config=flat.yaml"], 2, "flat.yaml: data must be a mapping of settings, got 3"),
    (["pretrain", "--config=top.yaml"], 2, "top.yaml: there is no setting sed; did you mean seed?"),
    (
        ["pretrain", "--resume=odd"],
        2,
        "odd/config.yaml: there is no setting data.nme; did you mean",
    ),
    (["pretrain", "--config=torn.yaml"], 2, "torn.yaml is not a valid YAML file: "),
    (["pretrain", "--config=twice.yaml"], 2, "twice.yaml is not a valid YAML file: the key 'size'"),
    (["evaluate", "none", "--config=twice.yaml"], 2, "the key 'size' is repeated in line 4"),
    (["pretrain", "--config=latin.yaml"], 2, "latin.yaml is not text in UTF-8"),
    (["pretrain", "--config=list.yaml"], 2, "list.yaml does not hold settings"),
    (["pretrain", "--config=deep.yaml"], 2, "deep.yaml is not a valid YAML file: maximum"),
    (["pretrain", "--config=date.yaml"], 2, "date.yaml is not a valid YAML file: month must be"),
    (["pretrain", "--config=binary"], 2, "binary is not text in UTF-8"),
    (["pretrain", "--config=empty"], 2, "--config: Path is not a file: "),
    (["pretrain", "--config=file"], 2, "file does not hold settings"),
    (["pretrain", "--resume=twice"], 1, "twice/config.yaml is not a valid YAML file: the key"),
    (["evaluate", "latin"], 1, "latin/config.yaml is not text in UTF-8"),
    (["pretrain", "--augment.hue=2"], 2, "augment.hue must be a strength in [0, 0.5]"),
    (["pretrain", "--train.epochs=0"], 2, "train.epochs must be positive"),
    (["pretrain", "--train.devices=0"], 2, "train.devices must be at least 1, got 0"),
    (["pretrain", "--train.devices=3", *SMALL], 2, "8 does not divide into 3 equal parts"),
    (["pretrain", "--train.accumulate=0"], 2, "train.accumulate must be at least 1, got 0"),
    (["pretrain", "--train.accumulate=5", *SMALL], 2, "8 does not divide into 5 equal parts"),
    (["pretrain", "--train.accumulate=8", *SMALL], 2, "leaves one image for each of 8 parts"),
    (["pretrain", "--seed=4294967296"], 2, "seed must be from 0 to 4294967295, got 4294967296"),
    (["pretrain", "--config=null.yaml"], 2, "method must be a string, got None"),
    (["pretrain", "--config=nulls.yaml"], 2, "train.epochs must be a number, got None"),
    (["pretrain", "--config=inf.yaml"], 2, "optimizer.warmup must be at least 0 and finite"),
    (["pretrain", "--train.batch_size=1"], 2, "train.batch_size must be at least 2, got 1"),
    (["pretrain", "--evaluation.neighbors=[]"], 2, "evaluation.neighbors must be one or more"),
    (["pretrain", "--evaluation.neighbors=abc"], 2, "positive numbers, as 20,200, got 'abc'"),
    (["pretrain", "--evaluation.batch_size=0"], 2, "evaluation.batch_size must be at least 1"),
    (["pretrain", "--data.size=0"], 2, "data.size must be at least 1, got 0"),
    (["pretrain", "--optimizer.clip=-1"], 2, "optimizer.clip must be at least 0, got -1"),
    (["bench", "ops", "--report=none/x.md"], 1, "cannot write none/x.md: no such file"),
    (["bench", "data", "--name=shapes", "--report=empty"], 1, "cannot write empty: is a directory"),
    (["bench", "step", "--report=none/x.md"], 1, "cannot write none/x.md: no such file"),
    (["bench", "ops", "--report=x.json"], 2, "--report must not end in .json"),
    (["bench", "step", "--report=x.json"], 2, "--report must not end in .json"),
    (["pretrain", "--augment.size=0"], 2, "augment.size must be at least 1, got 0"),
    *(
        (["pretrain", *options, *SMALL], 2, message)
        for options, message in (
            (
                ("--method=simclr", "--vicreg.covariance=3"),
                "--vicreg.covariance changes nothing: simclr is trained (method, baseline)",
            ),
            (
                ("--config=settings.yaml", "--simclr.temperature", "0.1", "--method", "vicreg"),
                "--simclr.temperature changes nothing: vicreg is trained",
            ),
            (
                ("--byol.momentum=0.9",),
                "--byol.momentum changes nothing: mast is trained, and vicreg beside it",
            ),
            (
                ("--method=simclr", "--baseline=simclr"),
                "--baseline changes nothing: simclr is trained without EquiMod and hard views, as",
            ),
            (
                ("--vicreg.covariance=3", "--baseline=none"),
                "--vicreg.covariance changes nothing: mast is trained",
            ),
            (
                ("--recipe=cifar10-resnet18", "--method=byol", "--data.path=x", "--mast.price=3"),
                "--mast.price changes nothing: byol is trained",
            ),
            (
                ("--hard-views.size=16",),
                "--hard_views.size changes nothing: hard_views.views is 0, which leaves it out",
            ),
            (
                ("--hard-views", "4", "--hard-views.temperature", "2"),
                "--hard_views.temperature changes nothing: hard_views.strategy is argmax",
            ),
            (
                ("--equimod.projector=[8,8]", "--equimod.weight=0"),
                "--equimod.projector changes nothing: equimod.weight is 0, which leaves it out",
            ),
            (
                ("--data.name=folder", "--data.path=x", "--data.seed=1"),
                "--data.seed changes nothing: data.name is folder, and it is for shapes",
            ),
        )
    ),
    (
        ["bench", "step", "--method=mast", "--vicreg.covariance=3"],
        2,
        "--vicreg.covariance changes nothing: mast is trained",
    ),
    (
        ["pretrain", "--mast.shared={hue: {share: 2}}"],
        2,
        "share of hue must be from 0 to 1",
    ),
    (["pretrain", "--mast.shared={hue: {freed: 1}}"], 2, "freed of hue must be 0, or from"),
    (["pretrain", "--mast.shared={hue: {fred: 1}}"], 2, "takes share, freed, start, got 'fred'"),
    (["pretrain", "--mast.shared={hue: 0.5}"], 2, "--mast.shared: expected a mapping, {name"),
    (
        ["pretrain", "--mast.shared={hue:{freed:0.1}}"],
        2,
        "a space after the colon. Got value: {hue:",
    ),
    (["pretrain", "--mast.shared={}"], 2, "mast.shared must map at least one augmentation"),
    (["pretrain", "--mast.shared={tint: {}}", *SMALL], 2, "shared must name crop, flip, geometry"),
    (["pretrain", "--mast.shared={crop: {}, geometry: {}}", *SMALL], 2, "not both: geometry is"),
    (["pretrain", "--mast.policy=sampled"], 2, "there is no option --mast.policy"),
    (["pretrain", "--mast.masks=ones"], 2, "--mast.masks: expected one of 'learned', 'blocks'"),
    (
        ["pretrain", "--config=old.yaml"],
        2,
        "old.yaml: there is no setting mast.share; did you mean",
    ),
    (["pretrain", "--config=older.yaml"], 2, "older.yaml: there is no setting mast.policy"),
    (["pretrain", "--resume=old"], 2, "old/config.yaml: there is no setting mast.share"),
    *(
        (["pretrain", f"--method={name}", "--augment.views=1", *SMALL], 2, message)
        for name, message in (
            ("vicreg", "vicreg needs augment.views of at least 2, got 1"),
            ("simclr", "simclr needs augment.views of at least 2, got 1"),
            ("moco", "moco compares two views: augment.views must be 2, got 1"),
        )
    ),
    (
        ["pretrain", "--method=simclr", "--simclr.temperature=0", *SMALL],
        2,
        "simclr.temperature must",
    ),
    (["pretrain", "--method=moco", "--moco.queue=0", *SMALL], 2, "moco.queue must hold at least 1"),
    (
        ["pretrain", "--method=moco", "--moco.momentum=2", *SMALL],
        2,
        "moco.momentum must be from 0",
    ),
    (
        ["pretrain", "--equimod.weight=1", "--equimod.projector=[]", *SMALL],
        2,
        "equimod.projector w",
    ),
    (["pretrain", "--equimod.weight=1", "--equimod.temperature=0", *SMALL], 2, "equimod.temp"),
    (["pretrain", "--hard-views=1"], 2, "hard_views.views must be 0 (off) or at least 2, got 1"),
    (["pretrain", "--hard-views", "four"], 2, "hard_views"),
    (["pretrain", "--hard-views.view=4"], 2, "there is no option --hard_views.view; did you mean"),
    (["pretrain", "--hard-views.mode=eval"], 2, "--hard_views.mode: expected one of 'train'"),
    (["pretrain", "--hard-views.every=0"], 2, "hard_views.every must be at least 1, got 0"),
    (
        ["pretrain", "--hard-views=4", "--hard-views.fraction=2", *SMALL],
        2,
        "fraction must be from 0 to 1",
    ),
    (["pretrain", "--hard-views=4", "--hard-views.size=64", *SMALL], 2, "at most the views' 32"),
    (["pretrain", "--hard-views=4", "--hard-views.scorer=teacher"], 2, "mast has no teacher"),
    (["pretrain", "--method=simclr", "--hard-views=4", "--augment.views=3"], 2, "on two views"),
    (
        ["pretrain", "--method=byol", "--byol.momentum=2", *SMALL],
        2,
        "byol.momentum must be from 0",
    ),
    (["pretrain", "--model.name=resnt18", *SMALL], 2, "did you mean resnet18"),
    (["pretrain", "--model.weights=none.pt", *SMALL], 1, "there is no file of weights at none.pt"),
    (["pretrain", "--model.weights=file", *SMALL], 2, "file is damaged or holds more than weights"),
    (
        ["pretrain", "--model.weights=a", "--model.timm_args={checkpoint_path: b}"],
        2,
        "model.weights is a and checkpoint_path in model.timm_args is b: leave one of them out",
    ),
    *(
        (["pretrain", f"--model.timm_args={arguments}", *SMALL], 2, message)
        for arguments, message in (
            ("{in_chans: 1}", "model.timm_args: in_chans is 1, and augment.mean has 3 numbers"),
            (
                "{global_pool: ''}",
                "'resnet_small' with {'global_pool': ''} gives no pooled features",
            ),
            ("{features_only: true}", "with {'features_only': True} gives no pooled features"),
            ("{act_layer: nope}", "cannot build 'resnet_small' with {'act_layer': 'nope'}: KeyE"),
        )
    ),
    (
        ["pretrain", "--model.name=vit_tiny_patch16_224", "--model.timm_args={depth: 1}", *SMALL],
        2,
        "augment.size: vit_tiny_patch16_224 does not take images of 32 pixels",
    ),
    (["pretrain", "--data.max_images=24"], 2, "24 training images, fewer than one batch"),
    (
        ["pretrain", "--data.max_images=1"],
        2,
        "shapes has 1 training image, and two at least are needed: set data.max_images to 2 or",
    ),
    (["pretrain", "--data.name=folder"], 2, "folder needs data.path, the folder or file with"),
    (["pretrain", "--data.path=photos"], 2, "data.name is shapes, which are made up: say --data.n"),
    (["pretrain", "--data.name=folder", "--data.path=none"], 1, "image folder none does not exist"),
    (["pretrain", "--data.name=folder", "--data.path=empty"], 1, "no images"),
    (["pretrain", "--data.name=numpy"], 2, "data.name numpy needs data.path"),
    (["pretrain", "--data.name=numpy", "--data.path=none"], 1, "no folder or file of arrays at no"),
    (["pretrain", "--data.name=numpy", "--data.path=file"], 1, "cannot read file: "),
    (["pretrain", "--data.bits=12"], 2, "data.bits must be 8 or 16, got 12"),
    (["pretrain", "--data.channels=0"], 2, "data.channels must be at least 1, got 0"),
    (["pretrain", "--data.channels=2", *SMALL], 1, "images of shapes have 3 channels (or 1, made"),
    (["pretrain", "--data.channels=1", *SMALL], 1, "the images have 1 channel: set --augment.mean"),
    (["pretrain", "--data.image_column=x"], 2, "data.image_column is for data.name huggingface or"),
    (
        ["pretrain", "--augment.mean=[0.5]", "--augment.std=[0.2]", *SMALL],
        1,
        "augment.mean and augment.std have 1 number, and the images have 3 channels: set --aug",
    ),
    (["pretrain", "--augment.mean=[0.5]"], 2, "a number for each channel, got 1 and 3 numbers"),
    (["pretrain", "--data.name=folder", "--data.path=bad"], 1, "bad/1.png: the file is empty"),
    (["pretrain", "--out=file/run", *SMALL], 1, "cannot make the run directory file/run"),
    (["pretrain", "--out=full", *SMALL], 1, "full exists and is not empty"),
    (["pretrain", "--out=file", *SMALL], 1, "cannot make the run directory file: Not a directory"),
    (["pretrain", "--data.size=10000000"], 1, "Unable to allocate"),
    (["pretrain", "--resume=none"], 1, "there is no run or checkpoint at none"),
    (["pretrain", "--resume=empty"], 1, "empty is not a run directory"),
    (["pretrain", "--resume=file"], 1, "file is damaged or not a checkpoint"),
    (["pretrain", "--resume=foreign.ckpt"], 1, "another program wrote it"),
    (["pretrain", "--resume=older"], 2, "config.yaml: there is no setting model.checkpoint_path"),
    (["evaluate", "older"], 2, "config.yaml: there is no setting model.checkpoint_path"),
    (
        ["pretrain", "--resume=full", "--train.epochs=9"],
        2,
        "leave out --train.epochs; a new run with --model.weights full begins with its backbone,",
    ),
    (["pretrain", "--train.accelerator=cuda", *SMALL], 1, "accelerator cuda needs a GPU"),
    (["evaluate"], 2, "the following arguments are required: path"),
    (["evaluate", "none"], 1, "there is no run or checkpoint at none"),
    (["evaluate", "full"], 1, "full is not a run directory"),
    (["evaluate", "none.safetensors"], 1, "no backbone file at none.safetensors"),
    (["evaluate", "foreign.safetensors"], 1, "is not a safetensors file"),
    (["doctor", "--fix"], 2, "doctor takes --train and nothing else"),
]


@pytest.fixture
def surroundings(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("work of years")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "odd.yaml").write_text("data: {nme: shapes}")
    (tmp_path / "settings.yaml").write_text("vicreg: {covariance: 3}\nhard_views: {size: 8}")
    (tmp_path / "old.yaml").write_text("mast: {shared: [hue], share: 0.5}")
    (tmp_path / "null.yaml").write_text("method: null")
    (tmp_path / "nulls.yaml").write_text("train: {epochs: null}")
    (tmp_path / "inf.yaml").write_text("optimizer: {warmup: .inf}")
    (tmp_path / "flat.yaml").write_text("data: 3")
    (tmp_path / "top.yaml").write_text("sed: 3")
    (tmp_path / "older.yaml").write_text("mast: {policy: sampled}")
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "config.yaml").write_text("mast: {shared: [hue], share: 0.5}")
    (tmp_path / "steps.yaml").write_text("train: {steps: 10}")
    (tmp_path / "torn.yaml").write_text("data: [")
    (tmp_path / "twice.yaml").write_text("seed: 1\ndata:\n  size: 16\n  size: 32\n")
    (tmp_path / "latin.yaml").write_bytes(b"out: caf\xe9\n")
    (tmp_path / "list.yaml").write_text("[seed, 1]")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    (tmp_path / "date.yaml").write_text("seed: 2001-99-99")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for name, text in (
        ("twice", b"seed: 1\nseed: 2\n"),
        ("latin", b"out: caf\xe9\n"),
        ("odd", b"data: {nme: shapes}"),
        ("older", b"model: {checkpoint_path: x.pt}"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_bytes(text)
    (tmp_path / "bad").mkdir()
    for name in "123":
        (tmp_path / "bad" / f"{name}.png").write_bytes(b"")
    (tmp_path / "foreign.safetensors").write_bytes(b"zzzz")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")


def listing(root):
    return {
        path.relative_to(root): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.mark.parametrize(("arguments", "status", "message"), WRONG, ids=lambda v: str(v)[:50])
def test_one_sentence_and_no_traces(
    call, surroundings, tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = listing(tmp_path)
    found, out, err = call(*arguments)
    assert (found, out) == (status, "")
    assert err.startswith("mast-ext: ") and err.count("\n") == 1 and len(err) < 300
    assert message in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--model.weights=net.pt", *SMALL],
        ["pretrain", "--resume=net.pt"],
        ["evaluate", "net.pt"],
        ["evaluate", "net.pt", "--model.name=resnet18"],
    ],
    ids=" ".join,
)
def test_torchscript_files_are_not_read(call, tmp_path, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torch.export
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, _, err = call(*arguments)
    assert status > 0 and err == (
        "mast-ext: net.pt is a TorchScript file, which is not read: give the run that it was"
        " exported from, or weights saved by safetensors or torch.save\n"
    )


class Broken(nn.Module):
    """Stands for a loss of ours, or a model of timm's, that has a bug."""

    def __init__(self, *args, **options):
        raise ValueError("too many values to unpack")


def test_a_bug_is_no_wrong_command_line(call, tiny, shapes, monkeypatch):
    """Status 2 is for settings that somebody chose."""
    options = ["pretrain", *tiny, *shapes, "--method=simclr"]
    with monkeypatch.context() as patched:
        patched.setattr(simclr, "NTXentLoss", Broken)
        status, _, err = call(*options)
        assert status == 1 and "too many values to unpack" in err
    monkeypatch.setattr(timm, "create_model", Broken)
    status, _, err = call(*options, "--model.timm_args={}")
    assert status == 1 and "too many values to unpack" in err
    status, _, err = call(*options, "--model.timm_args={layers: 7}")
    assert status == 2 and "timm cannot build 'resnet_small' with {'layers': 7}" in err


def test_truncated_jpeg_is_named_and_leaves_no_run(call, tiny, tmp_path):
    """Large images are decoded when they are first used: training has begun by then."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        Image.effect_noise((100, 90 + i), 80).convert("RGB").save(folder / f"{i}.jpg")
    damaged = folder / "5.jpg"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    data = ["--data.name=folder", f"--data.path={folder}"]
    status, _, err = call("pretrain", *tiny, *data, "--out=run")
    assert status == 1
    assert err.splitlines()[-1].startswith(f"mast-ext: cannot decode image {damaged}: ")
    assert "(a run with --data.on_bad_image skip leaves such files out)" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_nan_before_the_first_checkpoint_leaves_the_listing_it_names(call, tiny, shapes, tmp_path):
    """And nothing else: the run may be tried again in the same directory."""
    big = ["--optimizer.name=sgd", "--optimizer.lr=1e30", "--optimizer.warmup=0"]
    options = [*tiny, *shapes, "--method=simclr", "--baseline=none", "--out=run"]
    status, _, err = call("pretrain", *options, *big)
    assert status == 1 and "no checkpoint yet" in err
    listing = re.search(r"all in (\S+)\)", err)[1]
    assert len(json.loads((tmp_path / listing).read_text())["indices"]) == 8
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["nonfinite_batch.json"]
    assert call("pretrain", *options)[0] == 0
    assert not (tmp_path / listing).exists()


def no_space(kind):
    """As `torch.save` fails on a full disk, of which its writer need not tell."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "OSError":
        raise full
    failed = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    raise failed from (full if kind == "RuntimeError" else None)


@pytest.mark.parametrize("kind", ["OSError", "RuntimeError", "RuntimeError alone"])
def test_full_disk_keeps_the_checkpoints_before(call, tiny, shapes, tmp_path, monkeypatch, kind):
    save, saved = torch.save, []

    def until_full(value, file):
        saved.append(value["global_step"])
        if value["global_step"] < 3:
            return save(value, file)
        file.write(b"the beginning")
        return no_space(kind)

    monkeypatch.setattr(torch, "save", until_full)
    options = [*tiny, *shapes, "--method=simclr", "--baseline=none", "--out=run"]
    status, _, err = call("pretrain", *options, "--train.checkpoint_every=2")
    message = err.splitlines()[-1]
    assert status == 1 and "Traceback" not in err and saved == [2, 3]
    assert message.startswith("mast-ext: cannot write run/checkpoints/best.ckpt: ")
    assert "no space left on" in message
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last.ckpt"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call("pretrain", "--resume=run")[0] == 0


def test_full_disk_before_the_first_checkpoint_leaves_no_run(
    call, tiny, shapes, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch, "save", lambda value, file: no_space("OSError"))
    status, _, err = call("pretrain", *tiny, *shapes, "--out=run")
    assert status == 1 and "no space left on" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def vanish(run, moment, monkeypatch):
    """Lets a run directory vanish just before the program comes to a function of its own."""
    owner, name = moment
    function = getattr(owner, name)

    def gone(*arguments, **options):
        shutil.rmtree(run)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, gone)


MOMENTS = {
    "metrics": (MetricsFile, "append"),
    "checkpoint": (Trainer, "save_checkpoint"),
    "weights": (fit, "save_backbone"),
    "measurements": (pretrain, "save_measurements"),
    "report": (pretrain, "write_report"),
}


@pytest.mark.parametrize("moment", [*MOMENTS, "baseline"])
def test_run_directory_that_vanishes_stays_away(call, tiny, shapes, tmp_path, monkeypatch, moment):
    """Nothing of a run is written where the rest of it is not."""
    run = tmp_path / "run"
    if moment == "baseline":  # whose folders are made after those of the run
        made = RunDirectory.make_missing
        monkeypatch.setattr(
            RunDirectory,
            "make_missing",
            lambda self: (self.path.name == "baseline" and shutil.rmtree(run), made(self)),
        )
    else:
        vanish(run, MOMENTS[moment], monkeypatch)
    status, _, err = call("pretrain", *tiny, *shapes, "--method=simclr", f"--out={run}", *BESIDE)
    message = err.splitlines()[-1]
    assert status == 1 and "Traceback" not in err
    if moment == "report":  # which is made of what is there
        assert message == f"mast-ext: {run} is not a run directory: it has no config.yaml"
    else:
        assert message.startswith(f"mast-ext: cannot write {run}/")
        assert message.endswith(": no such file or directory")
    assert not run.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anyway")
def test_unwritable_directory(call, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    status, _, err = call("pretrain", "--out=locked/run", *SMALL)
    assert status == 1 and "cannot make the run directory locked/run: Permission denied" in err


@pytest.mark.parametrize("module", ["mast_ext", "mast_ext.cli.main"])
def test_as_a_module(tmp_path, module):
    found = subprocess.run(
        [sys.executable, "-m", module, "pretrain", "--what"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(mast_ext.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("mast-ext: there is no option --what")
    assert found.stderr.count("\n") == 1


def test_help(call):
    for arguments in ([], ["--help"], ["pretrain", "--help"], ["evaluate", "-h"], ["doctor", "-h"]):
        status, out, err = call(*arguments)
        assert (status, err) == (0 if arguments else 2, "")
        assert out.startswith("usage: mast-ext")


def test_bugs_keep_their_traceback(call, monkeypatch):
    def broken(arguments):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("mast_ext.cli.doctor.main", broken)
    with pytest.raises(KeyError):
        call("doctor")


def test_ctrl_c_outside_of_training(call, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mast_ext.cli.doctor.main", interrupted)
    assert call("doctor") == (130, "", "mast-ext: interrupted\n")


def test_a_second_ctrl_c_says_how_to_go_on(call, tiny, shapes, monkeypatch, tmp_path):
    def twice(module, batch, batch_idx):
        if module.trainer.global_step == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", twice)
    run = tmp_path / "run"
    options = [*tiny, *shapes, "--method=simclr", "--train.checkpoint_every=1", f"--out={run}"]
    status, _, err = call("pretrain", *options)
    assert status == 130
    assert err.endswith(f"mast-ext: interrupted: go on with mast-ext pretrain --resume {run}\n")
    monkeypatch.undo()
    assert call("pretrain", f"--resume={run}")[0] == 0


def test_ctrl_c_while_probing_says_how_to_go_on(call, tiny, shapes, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mast_ext.train.pretrain.evaluate", interrupted)
    status, _, err = call("pretrain", *tiny, *shapes, "--method=simclr", "--out=run")
    assert status == 130
    assert err.endswith("mast-ext: interrupted: go on with mast-ext pretrain --resume run\n")
    monkeypatch.undo()


def test_version(call):
    assert call("--version") == (0, f"mast-ext {mast_ext.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["pretrain", "--help"], ["evaluate", "-h"]])
def test_help_without_training_packages(call, monkeypatch, arguments):
    """Usage, and in one sentence what to install: the options themselves need the packages."""
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    status, out, err = call(*arguments)
    assert status == 1 and out.startswith("usage: mast-ext <command> [options]\n")
    assert err.startswith("mast-ext: training needs jsonargparse, not installed here: pip install")
    assert err.count("\n") == 1


def test_training_packages_are_asked_for(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    status, out, err = call("pretrain")
    assert (status, out) == (1, "")
    assert (
        err == "mast-ext: training needs timm, not installed here: pip install 'mast-ext[train]'\n"
    )
