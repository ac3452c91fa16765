"""The step that was not finite, once more."""

import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from mast_ext.augment import ViewLoader
from mast_ext.augment.parameters import COLUMNS
from mast_ext.data import open_source
from mast_ext.methods import EquiModOptions
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import RunError
from mast_ext.train.loop import loggers
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks
from mast_ext.train.replay import read_nonfinite, replay
from mast_ext.train.state.run_directory import RunDirectory


def spoil_at(monkeypatch, step, change):
    """Changes the module or batch of a step (from 1), and gives the weights that it had."""
    weights = []

    def hook(module, batch, batch_idx):
        if module.trainer.global_step == step - 1:
            weights.append({name: w.detach().clone() for name, w in module.state_dict().items()})
            change(module, batch)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", hook)
    return weights


def nan_images(module, batch):
    batch.images[0, 0] = float("nan")


def nan_weight(module, batch):
    with torch.no_grad():
        module.method.projector[3].weight[0] = float("nan")


def infinite_gradient(module, batch):
    weight = module.method.projector[0].weight
    weight.register_hook(lambda grad: torch.full_like(grad, float("inf")))


def again(config, path):
    run, stored = read_nonfinite(path)
    return replay(config, run, stored, Console(quiet=True))


@pytest.mark.parametrize(
    ("change", "origin"),
    [
        (nan_images, "the output of backbone.conv1.0 (Conv2d)"),
        (nan_weight, "the output of method.projector.3 (Linear)"),
        (infinite_gradient, "the gradient of method.projector.0.weight, in the backward pass"),
    ],
)
def test_weights_batch_and_views_are_those_of_that_step(
    train_tiny, tiny, tmp_path, monkeypatch, change, origin
):
    """At step 4 of 8, from the checkpoint of step 3; the run stays as it was."""
    weights = spoil_at(monkeypatch, 4, change)
    with pytest.raises(RunError, match="at step 4: .* mast-ext replay"):
        train_tiny()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    found = again(tiny, tmp_path / "run")
    assert (found.step, found.origin, found.same_batch) == (4, origin, True)
    assert found.terms.keys() >= {"loss", "variance"}
    first, second = weights
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_terms_for_the_log_are_no_origin(train_tiny, tiny, tmp_path, monkeypatch):
    """The gain of a flip is NaN where no view is flipped."""
    config = replace(tiny, augment=replace(tiny.augment, flip=1e-9))
    spoil_at(monkeypatch, 2, infinite_gradient)
    with pytest.raises(RunError, match="at step 2"):
        train_tiny(config=config, method="simclr+equimod")
    equimod = EquiModOptions(1.0, (16, 16), 8)
    found = again(replace(config, method="simclr", equimod=equimod), tmp_path / "run")
    assert math.isnan(found.terms["equivariance_gain/flip"])
    assert found.origin == "the gradient of method.projector.0.weight, in the backward pass"


def test_no_logger_begins_a_run(train_tiny, tiny, tmp_path, monkeypatch):
    spoil_at(monkeypatch, 2, nan_images)
    with pytest.raises(RunError):
        train_tiny(method="simsiam")
    monkeypatch.setattr(loggers, "_make", lambda *_: pytest.fail("a logger was started"))
    train = replace(tiny.train, logger="wandb")
    assert again(replace(tiny, method="simsiam", train=train), tmp_path / "run").step == 2


def test_starts_from_the_weights_that_the_run_keeps(train_tiny, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    spoil_at(monkeypatch, 1, nan_images)
    with pytest.raises(RunError):
        train_tiny(method="simsiam")
    run.start.touch()
    assert read_nonfinite(run.path)[1]["settings"]["model"]["weights"] == str(run.start)


def test_a_step_that_training_got_past_is_no_longer_told(train_tiny, tiny, tmp_path, monkeypatch):
    """It would hide what the baseline, which trains next, has to say."""
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoil_at(patch, 4, nan_images)
        with pytest.raises(RunError):
            train_tiny(method="simsiam")
    assert run.nonfinite_batch.exists()
    train_tiny(method="simsiam", resume=run.last)
    assert not run.nonfinite_batch.exists()


def test_images_that_come_so(train_tiny, tiny, tmp_path, monkeypatch):
    original = ViewLoader.on

    def spoiled(loader, *arguments):
        for batch in original(loader, *arguments):
            batch.images[0, 0] = float("inf")
            yield batch

    monkeypatch.setattr(ViewLoader, "on", spoiled)
    with pytest.raises(RunError, match="at step 1"):
        train_tiny()
    assert again(tiny, tmp_path / "run").origin == "the images of the batch"


def test_what_is_stored(train_tiny, tiny, tmp_path, monkeypatch):
    spoil_at(monkeypatch, 2, nan_images)
    with pytest.raises(RunError):
        train_tiny(method="simsiam")
    stored = json.loads((tmp_path / "run" / "nonfinite_batch.json").read_text())
    config = replace(tiny, method="simsiam")
    source = open_source("shapes", "train", size=16, max_images=24)
    _, second, _ = training_loader(config, build_networks(config), source)
    assert stored["indices"] == second.index.tolist()
    assert torch.equal(torch.tensor(stored["parameters"]), second.parameters)
    assert stored["columns"] == list(COLUMNS) and stored["what"] == "the loss is nan"
    assert (stored["step"], stored["steps"], stored["processes"]) == (2, 8, 1)
    assert stored["settings"]["method"] == "simsiam"


def test_the_module_where_it_began(train_tiny, tiny, tmp_path):
    """Of its own: a learning rate with which weights overflow. There is no checkpoint yet."""
    optimizer = OptimizerConfig("sgd", lr=1e25, warmup=0)
    train = replace(tiny.train, accumulate=2, checkpoint_every=100)
    config = replace(tiny, method="simclr", optimizer=optimizer, train=train)
    with pytest.raises(RunError, match="the loss is nan at step 2.* no checkpoint yet"):
        train_tiny(config=config, method="simclr")
    found = again(config, tmp_path / "run")
    assert found.same_batch and found.origin.startswith("the output of backbone.")
    assert found.terms["loss"] != found.terms["loss"]


def test_a_step_that_is_finite_this_time(train_tiny, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil_at(patch, 2, nan_images)
        with pytest.raises(RunError):
            train_tiny(method="vicreg")
    found = again(replace(tiny, method="vicreg"), tmp_path / "run")
    assert found.origin is None and found.same_batch and found.terms["loss"] > 0


def test_refuses_what_cannot_be_replayed(train_tiny, tiny, tmp_path, monkeypatch):
    run, config = RunDirectory(tmp_path / "run"), replace(tiny, method="vicreg")
    with pytest.raises(RunError, match="nothing to replay: .*run has no nonfinite_batch.json"):
        again(config, run.path)
    train_tiny(config=config, method="vicreg")
    stored = {"step": 3, "steps": 8, "processes": 1, "indices": [], "parameters": []}
    run.nonfinite_batch.write_text(json.dumps({**stored, "settings": {}}))
    with pytest.raises(RunError, match="gone on since: its last checkpoint has 8 steps, and"):
        again(config, run.path)
    run.nonfinite_batch.write_text(json.dumps({**stored, "settings": {}, "processes": 2}))
    with pytest.raises(RunError, match="trained in 2 processes; only a step of one process"):
        again(config, run.path)
    run.nonfinite_batch.write_text("[]")
    with pytest.raises(RunError, match=r"nonfinite_batch.json is damaged \(TypeError\)"):
        again(config, run.path)
