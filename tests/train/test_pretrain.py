"""A run from settings to report: in what order its parts happen."""

from contextlib import contextmanager

from rich.console import Console

from mast_ext.train import pretrain as module
from mast_ext.train.config import PretrainConfig, TrainConfig


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
