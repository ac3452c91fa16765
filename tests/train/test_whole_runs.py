"""Whole runs, from the first step to the report, on every device there is."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from mast_ext.methods import EquiModOptions, HardViewOptions
from mast_ext.train.errors import Interrupted
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.pretrain import pretrain
from mast_ext.train.state.checkpoint import read_checkpoint

QUIET = Console(quiet=True)


@pytest.fixture
def small(tiny, device, tmp_path):
    train = replace(tiny.train, accelerator=device.type, epochs=1.0)
    return replace(tiny, train=train, out=str(tmp_path / "run"), baseline="none")


def hard(config):
    return replace(config, hard_views=HardViewOptions(4))


VARIANTS = {
    "byol": hard,  # its teacher embeds the views that are chosen from, too
    "dino": hard,
    "mast": lambda config: replace(config, mast=replace(config.mast, uncertainty=True)),
    "simclr": lambda config: hard(replace(config, equimod=EquiModOptions(1.0, (16, 16), 8))),
}


@pytest.mark.parametrize("method", VARIANTS)
def test_a_run_is_reported(small, method):
    outcome = pretrain(VARIANTS[method](replace(small, method=method)), console=QUIET)
    rows = json.loads((outcome.run.report / "results.json").read_text())["rows"]
    assert rows[0]["model"].startswith(method)
    assert all(0 <= row["accuracy"]["linear probe"]["hue"] <= 1 for row in rows)
    assert outcome.report.stat().st_size > 10_000


def test_a_run_that_is_measured_again_shows_the_same_hard_views(small):
    """The teacher's temperature is that of the last step, though no step is made."""
    dino = replace(small.dino, warmup_teacher_temperature=1.0, temperature_warmup=1.0)
    config = hard(replace(small, method="dino", dino=dino))
    report = pretrain(config, console=QUIET).run.report
    before = np.load(report / "hard_views.npz")["chosen"]
    pretrain(config, resume=report.parent, console=QUIET)
    assert np.array_equal(np.load(report / "hard_views.npz")["chosen"], before)


@pytest.mark.parametrize("method", ["byol", "mast"])
def test_an_interrupted_run_goes_on(small, monkeypatch, tmp_path, device, method):
    """To the weights of one that was not; on a GPU up to its order of sums."""
    config = replace(small, method=method)
    pretrain(config, console=QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "on_train_batch_start", stop_at_second_step)
        with pytest.raises(Interrupted) as stopped:
            pretrain(replace(config, out=str(tmp_path / "stopped")), console=QUIET)
    pretrain(config, resume=stopped.value.run, console=QUIET)
    whole, resumed = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("run", "stopped")
    )
    for name in whole:
        tolerance = 0 if device.type == "cpu" else 1e-3
        torch.testing.assert_close(resumed[name], whole[name], rtol=tolerance, atol=tolerance)


def stop_at_second_step(module, batch, batch_idx):
    if module.trainer.global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
