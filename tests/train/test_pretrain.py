"""A run from settings to report: in what order its parts happen."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console

from mast_ext.data import open_source
from mast_ext.methods import HardViewOptions
from mast_ext.train import pretrain as module
from mast_ext.train.config import PretrainConfig, TrainConfig
from mast_ext.train.errors import RunError, SettingsError
from mast_ext.train.pretrain import nothing_hard, plan


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


def source_of(config):
    return open_source("shapes", "train", size=config.data.size, max_images=config.data.max_images)


def test_a_baseline_shares_by_its_own_epochs(tiny):
    """As the plain run of so many epochs that it stands for."""
    config = replace(tiny, method="mast", baseline="mast", hard_views=HardViewOptions(4))
    _, baseline = plan(config, source_of(config))
    epochs = baseline.steps / len(baseline.loader)
    assert epochs == 3 * tiny.train.epochs == baseline.config.train.epochs
    plain = replace(tiny, method="mast", baseline="none").lasting(epochs)
    (alone,) = plan(plain, source_of(config))
    assert baseline.loader.policy.sharing == alone.loader.policy.sharing
    assert baseline.loader.policy.sharing["geometry"].start == round(epochs / 3)


HARD = HardViewOptions(4)


@pytest.mark.parametrize(
    ("options", "train", "told"),
    [
        (HARD, {}, None),
        (None, {}, None),
        (replace(HARD, warmup=8 / 3), {}, "no hard views are selected in 8 steps: hard_views.warm"),
        (replace(HARD, every=9), {}, "no hard views are selected in 8 steps: .*every 9"),
        (replace(HARD, fraction=0.2), {"accumulate": 4}, "fraction is 0.2, and a process has 2 im"),
        (replace(HARD, fraction=0.5), {"accumulate": 4}, None),
    ],
)
def test_hard_views_that_no_image_gets_are_told(tiny, options, train, told):
    train = replace(tiny.train, **train)
    config = replace(tiny, method="simclr", hard_views=options or HardViewOptions(), train=train)
    found = nothing_hard(plan(replace(config, baseline="none"), source_of(config))[0])
    assert len(found) == (told is not None)
    assert told is None or re.search(told, found[0])


def test_parts_of_a_batch_that_are_too_small_to_select_in_are_refused(tiny):
    options = replace(tiny.barlow_twins, chunks=4)
    config = replace(tiny, method="barlow_twins", baseline="none", barlow_twins=options)
    assert plan(config, source_of(config))  # it does not select
    config = replace(config, hard_views=HARD)
    assert plan(config, source_of(config))
    config = replace(config, train=replace(config.train, accumulate=2))
    with pytest.raises(SettingsError, match=r"barlow_twins.chunks must be at most 2, got 4"):
        plan(config, source_of(config))
