"""What `--help` shows, and what is suggested for names of options that there are not."""

import re
from pathlib import Path

import pytest

from mast_ext.cli.pretrain import make_parser
from mast_ext.methods import METHODS
from mast_ext.train.suggestions import OTHER_NAMES, settings_like

KNOWN = make_parser()._names()[0]


@pytest.mark.parametrize("command", ["pretrain", "evaluate"])
def test_fits_a_screen(call, command):
    status, out, err = call(command, "--help")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) <= 49  # with the prompt below it
    assert max(len(line) for line in out.splitlines()) <= 80
    assert re.match(rf"usage: mast-ext {command} (PATH )?\[options\]\n", out)
    assert f"\n  mast-ext {command} " in out
    options = re.findall(r"^  (--[\w.]+) +\S", out, re.MULTILINE)
    assert len(options) > (20 if command == "pretrain" else 10)
    assert "`" not in out


def test_shows_defaults_and_choices(call):
    out = call("pretrain", "-h")[1]
    assert re.search(r"--train.epochs +Passes over the images .*\[16\]\n", out)
    assert re.search(r"--optimizer.name +Optimizer: adamw, sgd, lars \[adamw\]\n", out)
    methods = re.search(r"--method +What to train: ([\w,\s]+)\[mast\]", out)[1]
    assert re.split(r",\s+", methods.strip()) == sorted(METHODS)


@pytest.mark.parametrize(("data", "hue"), [([], "0.5"), (["--data.name", "folder"], "0.1")])
def test_defaults_are_those_of_the_images(call, data, hue):
    out = call("pretrain", *data, "--data.path=photos", "--help")[1]
    assert re.search(rf"--augment.hue .*\[{hue}\]\n", out)
    out = " ".join(call("pretrain", *data, "--help=augment")[1].split())
    assert re.search(rf"--augment.hue HUE [^-]*default: {hue}\)", out)


def default_in(text, name):
    """What an option's entry ends with in brackets; None without any."""
    entry = re.search(rf"--{name} .*(?:\n {{9,}}.*)*", text)[0]
    found = re.search(r"\[([^\[\]]+)\]$", entry)
    return found and found[1]


def test_an_evaluation_shows_no_defaults_that_the_run_gives(call):
    out = call("evaluate", "--help")[1]
    assert default_in(out, "finetune.labels") == "0.01,0.1,1"
    for name in ("data.name", "augment.size", "evaluation.neighbors"):
        assert default_in(out, name) is None
    assert default_in(call("pretrain", "--help")[1], "augment.size") == "32"
    assert ", default:" not in call("evaluate", "--help", "augment")[1]


def groups_in(text):
    return {name.partition(".")[0] for name in re.findall(r"^  --(\w+\.\w+)", text, re.MULTILINE)}


COMMON = {"data", "augment", "model", "optimizer", "train", "evaluation"}


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (["--method", "simclr", "--help"], {*COMMON, "simclr"}),
        (["--help", "--method=barlow_twins"], {*COMMON, "barlow_twins"}),
        (["--help", "optimizer"], {"optimizer"}),
        (["--help=hard-views"], {"hard_views"}),
        (["--help", "all"], {*COMMON, *METHODS, "equimod", "hard_views"}),
    ],
)
def test_by_method_by_group_and_everything(call, arguments, groups):
    status, out, err = call("pretrain", *arguments)
    assert (status, err) == (0, "")
    assert groups_in(out) == groups


def test_options_of_the_method_come_first(call):
    out = call("pretrain", "--method=vicreg", "--help")[1]
    assert out.index("--vicreg.projector") < out.index("--train.epochs") < out.index("more: ")


def test_everything_names_every_option(call):
    out = call("pretrain", "--help", "all")[1]
    assert [name for name in KNOWN if f"--{name} " not in out] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help", "optimiser"], "did you mean --help optimizer? (all options: --help all)"),
        (["--method=SimClear", "--help"], "no method 'SimClear'; did you mean simclr?"),
    ],
)
def test_help_on_what_there_is_not(call, arguments, message):
    status, out, err = call("pretrain", *arguments)
    assert (status, out) == (2, "") and message in err


# What was written, what is suggested
GUESSES = [
    ("--lr", ["optimizer.lr"]),
    ("--learning-rate", ["optimizer.lr"]),
    ("--epochs", ["train.epochs"]),
    ("--batch-size", ["train.batch_size"]),
    ("--batch_size", ["train.batch_size"]),
    ("--bacth_size", ["train.batch_size"]),
    ("--arch", ["model.name"]),
    ("--backbone", ["model.name"]),
    ("--data-path", ["data.path"]),
    ("--dataset", ["data.name"]),
    ("--workers", ["data.workers"]),
    ("--wd", ["optimizer.weight_decay"]),
    ("--weight-decay", ["optimizer.weight_decay"]),
    ("--output", ["out"]),
    ("--gpus", ["train.devices"]),
    ("--devices", ["train.devices"]),
    ("--metod", ["method"]),
    ("sed", ["seed"]),
    ("train.epoch", ["train.epochs"]),
    ("train.lr", ["optimizer.lr"]),
    ("model.arch", ["model.name"]),
    ("TRAIN.EPOCHS", ["train.epochs"]),
    ("--bakcbone", ["model.name"]),
    ("trian.lr", ["optimizer.lr"]),
    ("--moco-k", ["moco.queue"]),
    ("--symetric", ["moco.symmetric"]),
    ("--momentun", ["byol.momentum", "dino.momentum", "ibot.momentum"]),
    ("--local_crops_number", ["dino.local_views", "hard_views.local_views", "ibot.local_views"]),
    ("--steps", ["train.epochs"]),
    ("train.num_steps", ["train.epochs"]),
    ("--device", ["train.accelerator"]),
    ("train.device", ["train.accelerator"]),
    ("data.devise", ["data.device"]),
    ("data.arch", ["model.name"]),
    ("--stpes", ["train.epochs"]),
    ("--wdd", []),  # two or three letters are like too much
    ("--xyzzy", []),
]


@pytest.mark.parametrize(("written", "settings"), GUESSES)
def test_settings_like(written, settings):
    assert settings_like(written, KNOWN) == settings


def test_the_methods_own_settings_come_first():
    assert settings_like("temperature", KNOWN, "moco") == ["moco.temperature"]
    assert settings_like("local_crops_number", KNOWN, "ibot") == ["ibot.local_views"]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_lead_to_settings(name):
    assert name in KNOWN or name in {each.rpartition(".")[2] for each in KNOWN}
    assert not set(OTHER_NAMES[name]) & KNOWN


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lr=1", "there is no option --lr; did you mean --optimizer.lr?"),
        (
            "--momentum=1",
            "did you mean --byol.momentum, --dino.momentum or --ibot.momentum? (options",
        ),
        ("data=DIR", "there is no option data; did you mean --data.path?"),
        (
            "--model=resnet18",
            "--model takes a file of settings, and resnet18 is none; did you mean",
        ),
        ("--optimizer.name=adam", "Got value: adam; did you mean adamw?"),
        ("--data.name=CIFAR-10", "Got value: CIFAR-10; did you mean cifar10?"),
        ("--method=barlow", "got 'barlow'; did you mean barlow_twins?"),
        ("--baseline=SimCLR", "got 'SimCLR'; did you mean simclr?"),
    ],
)
def test_command_lines_suggest(call, option, message):
    status, out, err = call("pretrain", option)
    assert (status, out) == (2, "") and message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1", "there is no setting lr; did you mean optimizer.lr?"),
        ("train: {epoch: 3}", "there is no setting train.epoch; did you mean train.epochs?"),
        ("train: {bs: 3}", "there is no setting train.bs; did you mean train.batch_size?"),
        ("data: DIR", "data must be a mapping of settings, got 'DIR'; did you mean data.path?"),
    ],
)
def test_files_suggest(call, text, message):
    Path("settings.yaml").write_text(text)
    status, out, err = call("pretrain", "--config=settings.yaml")
    assert (status, out) == (2, "") and f"settings.yaml: {message}" in err


def test_commands_suggest(call):
    assert "; did you mean pretrain?" in call("pretrian")[2]
