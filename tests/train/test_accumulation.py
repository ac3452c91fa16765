"""Gradients accumulated over the parts of a step."""

import csv
import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from mast_ext.methods.vicreg import VICRegOptions
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import Interrupted, RunError
from mast_ext.train.loop.module import PretrainModule


def with_parts(config, parts, **train):
    return replace(config, train=replace(config.train, accumulate=parts, **train))


@pytest.fixture
def per_image(tiny):
    """VICReg's distance alone, of networks without batch norm: a mean over images."""
    transformer = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 24}
    return replace(
        tiny,
        vicreg=VICRegOptions(projector=(16,), variance=0.0, covariance=0.0),
        model=replace(tiny.model, name="vit_tiny_patch16_224", timm_args=transformer),
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
    )


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        del row["views_per_second"]
    return found


def interrupt_at(monkeypatch, step, batch_of_epoch):
    def hook(module, batch, batch_idx):
        if (module.trainer.global_step, batch_idx) == (step, batch_of_epoch):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", hook)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_mean_over_images_are_the_whole(train_tiny, per_image, tmp_path, parts):
    whole = train_tiny("whole", config=per_image, method="vicreg").state_dict()
    config = with_parts(per_image, parts)
    for name, value in train_tiny("parts", config=config, method="vicreg").state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=2e-6)
    rows = [rows_of(tmp_path / name) for name in ("parts", "whole")]
    assert rows[0][0].keys() == rows[1][0].keys()
    for row, truth in zip(*rows, strict=True):
        for column, value in truth.items():
            assert float(row[column]) == pytest.approx(float(value), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("batch_of_epoch", [2, 3])
def test_same_bits_when_interrupted_in_any_part(
    train_tiny, tiny, tmp_path, monkeypatch, batch_of_epoch
):
    config = with_parts(tiny, 2)
    whole = train_tiny("whole", config=config, method="moco").state_dict()
    interrupt_at(monkeypatch, 4, batch_of_epoch)  # step 4 is the second of its epoch
    with pytest.raises(Interrupted) as error:
        train_tiny(config=config, method="moco")
    assert error.value.step == 5
    monkeypatch.undo()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = train_tiny(resume=last, config=config, method="moco").state_dict()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_every_part_is_looked_at(train_tiny, tiny, tmp_path, monkeypatch):
    """A loss that is no number in the second of two parts."""

    def spoil(module, batch, batch_idx):
        if batch_idx == 3:
            batch.images[:] = float("nan")

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", spoil)
    with pytest.raises(RunError, match="the loss is nan at step 2: stopped before changing"):
        train_tiny(config=with_parts(tiny, 2), method="vicreg")
    assert len(json.loads((tmp_path / "run/nonfinite_batch.json").read_text())["indices"]) == 8


def test_refuses_unequal_parts(train_tiny, tiny):
    message = r"train.batch_size 8 does not divide into 3 equal parts \(processes: 1, train"
    with pytest.raises(ValueError, match=message):
        train_tiny(config=with_parts(tiny, 3), method="vicreg")
