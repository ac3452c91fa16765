"""Recipes: each is a whole run, and what the command line does with them."""

import gc
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from mast_ext.cli.parser import build
from mast_ext.cli.pretrain import make_parser
from mast_ext.train.config import PretrainConfig
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.loop.fit import fit
from mast_ext.train.pretrain import plan
from mast_ext.train.recipes import RECIPES, methods_of, recipe_file
from mast_ext.train.state.run_directory import RunDirectory

EVERY = [(name, method) for name in RECIPES for method in methods_of(name)]
"""All pairs of a recipe and a method."""


def config_of(name, method, *options):
    parser = make_parser()
    values = parser.parse_args([f"--config={recipe_file(name, method)}", *options])
    return build(parser, values, PretrainConfig, "resume", "recipe")


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_is_a_file_of_settings_with_its_sources(name, method):
    text = recipe_file(name, method).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "# Source: " in text or "# Not from a paper" in text
    config = config_of(name, method, "--data.path=somewhere")
    assert config.method == method and config.data.name == yaml.safe_load(text)["data"]["name"]
    # What the paper says, not what this program's defaults are.
    assert {"augment", "model", "optimizer", "train", method} <= yaml.safe_load(text).keys()
    assert {"epochs", "batch_size"} <= yaml.safe_load(text)["train"].keys()
    assert {"name", "lr", "weight_decay", "warmup"} <= yaml.safe_load(text)["optimizer"].keys()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten made-up images of 40 pixels, which recipes enlarge or cut; one is kept for tests."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def nothing_left():
    """Collects what a run leaves, gigabytes in cycles, before the next one needs as much."""
    yield
    gc.collect()


LARGE = pytest.mark.slow  # 134 million weights in some projectors: seconds and gigabytes each


@pytest.mark.parametrize(
    ("name", "method"),
    [pytest.param(*each, marks=LARGE if "imagenet" in each[0] else ()) for each in EVERY],
)
@pytest.mark.usefixtures("nothing_left")
def test_trains_two_steps(name, method, images, tmp_path):
    """With its own networks, views, optimizer and loss, but of few images and in float32, since
    many CPUs take minutes for a network in bfloat16."""
    few = ["--train.batch_size=4", "--train.epochs=1", "--train.accelerator=cpu"]
    few += ["--train.precision=32-true"]
    quiet = ["--train.logger=csv", "--train.rank_every=0", "--data.workers=0"]
    data = ["--data.name=folder", f"--data.path={images}", "--baseline=none"]
    config = config_of(name, method, *few, *quiet, *data)
    (training,) = plan(config, open_images(config.data).train)
    assert training.steps == 2
    run = RunDirectory.create(str(tmp_path / "run"), "unused")
    before = [weight.detach().clone() for weight in training.networks.backbone.parameters()]
    module = fit(training, run, console=Console(quiet=True))
    shutil.rmtree(run.path)  # checkpoints of gigabytes
    assert module.method.name == method
    moved = [not a.equal(b) for a, b in zip(before, module.backbone.parameters(), strict=True)]
    assert any(moved) and all(weight.isfinite().all() for weight in module.backbone.parameters())


PRINTED = ["pretrain", "--print_config", "--recipe=cifar10-resnet18", "--method=byol"]


def test_settings_of_a_recipe_and_what_overrides_them(call, tmp_path):
    """In this order: defaults, recipe, files and options as they come."""
    (tmp_path / "mine.yaml").write_text(
        "train: {epochs: 5, batch_size: 64}\nbyol: {momentum: 0.5}\n"
    )
    status, out, err = call(*PRINTED, "--config=mine.yaml", "--train.epochs=7", "--data.path=x")
    assert status == 0, err
    found = yaml.safe_load(out)
    recipe = yaml.safe_load(recipe_file("cifar10-resnet18", "byol").read_text())
    assert found["train"]["epochs"] == 7 and found["train"]["batch_size"] == 64
    assert found["byol"] == {**recipe["byol"], "momentum": 0.5, "batch_norm": "own"}
    assert found["optimizer"]["lr"] == recipe["optimizer"]["lr"]
    assert found["augment"]["crop_scale"] == recipe["augment"]["crop_scale"]
    assert found["train"]["log_every"] == 10  # a default


def test_a_file_may_name_recipe_and_method(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: cifar10-resnet18\nmethod: simsiam\n")
    status, out, err = call("pretrain", "--print_config", "--config=mine.yaml")
    assert status == 0, err
    found = yaml.safe_load(out)
    assert found["simsiam"]["projector"] == [2048, 2048] and found["train"]["epochs"] == 800


def test_a_run_keeps_its_settings_and_resumes_without_the_recipe(call, images, tmp_path, tiny):
    small = [option for option in tiny if "timm_args" not in option and "config" not in option]
    recipe = ["--recipe=cifar10-resnet18", "--method=simclr", "--simclr.projector=[16,16]"]
    network = ["--model.name=resnet_small", "--model.timm_args={channels: [8,8,8,16]}"]
    data = ["--data.name=folder", f"--data.path={images}", "--train.batch_size=4"]
    status, _, err = call("pretrain", *recipe, *small, *network, *data, "--out=run")
    assert status == 0, err
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert "recipe" not in settings
    assert settings["optimizer"]["name"] == "lars" and settings["simclr"]["temperature"] == 0.5
    status, _, err = call("pretrain", "--resume=run")
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe=cifar10"], "recipe must be one of cifar10-resnet18, imagenet-resnet50"),
        (["--recipe=cifar10_resnet_18"], "; did you mean cifar10-resnet18?"),
        (
            ["--recipe=imagenet-vits16"],
            "recipe imagenet-vits16 has no settings for mast: method must be one of dino, ibot,",
        ),
        (["--recipe=imagenet-vits16", "--method=DINO"], "; did you mean --method dino?"),
        (["--recipe=cifar10-resnet18"], "data.name cifar10 needs data.path"),
    ],
)
def test_wrong_recipes(call, tmp_path, arguments, message):
    status, out, err = call("pretrain", *arguments)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_listed(call):
    status, out, err = call("recipes")
    assert (status, err) == (0, "")
    for name, what in RECIPES.items():
        assert f"{name}: {what}\n    {', '.join(methods_of(name))}\n" in out


def test_a_recipe_is_printed_as_a_file_of_settings(call, tmp_path):
    status, out, _ = call("recipes", "imagenet-vits16", "--method", "dino")
    assert status == 0 and out == recipe_file("imagenet-vits16", "dino").read_text()
    (tmp_path / "mine.yaml").write_text(out)
    assert call("pretrain", "--print_config", "--config=mine.yaml")[0] == 0
    status, out, _ = call("recipes", "imagenet-vits16")
    methods = [settings["method"] for settings in yaml.safe_load_all(out)]
    assert status == 0 and methods == ["dino", "ibot", "lejepa"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["cifar-resnet18"], 2, "; did you mean cifar10-resnet18?"),
        (["imagenet-vits16", "--method=moco"], 2, "has no settings for moco: method must be one"),
        (["imagenet-vits16", "dino"], 2, "there is one argument too many, dino"),
        (["--method=byool"], 2, "no recipe has settings of byool; did you mean byol?"),
        (["--method=what"], 2, "no recipe has settings of what: those of "),
    ],
)
def test_wrong_requests(call, arguments, status, message):
    found, out, err = call("recipes", *arguments)
    assert (found, out) == (status, "") and message in err


def test_help(call):
    status, out, _ = call("recipes", "--help")
    assert status == 0 and out.startswith("usage: mast-ext recipes [--method METHOD] [name]")
