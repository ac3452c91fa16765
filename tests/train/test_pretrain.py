"""A run from settings to report: in what order its parts happen."""

from contextlib import contextmanager

import pytest
from rich.console import Console

from mast_ext.train import pretrain as module
from mast_ext.train.config import PretrainConfig, TrainConfig
from mast_ext.train.errors import RunError


def test_the_report_is_made_when_the_other_processes_have_gone(monkeypatch, tmp_path):
    """They wait for the end of training alone; a loss that gathers would wait for them."""
    together = []

    @contextmanager
    def process_group(accelerator):
        together.append(accelerator)
        yield
        together.clear()

    def reporting(*args):
        assert not together
        return "found"

    def training(*args):
        assert together == ["cpu"]
        return None, []

    config = PretrainConfig(train=TrainConfig(accelerator="cpu"))
    monkeypatch.setattr(module, "process_group", process_group)
    monkeypatch.setattr(module, "_train_all", training)
    monkeypatch.setattr(module, "_report", reporting)
    assert module.pretrain(config, console=Console(quiet=True)) == "found"


def test_processes_that_have_joined_already_are_refused(monkeypatch):
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with pytest.raises(RunError, match="without torch.distributed's process group"):
        module.pretrain(PretrainConfig())
