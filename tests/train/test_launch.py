"""How many processes a machine has a place for, and what is left when they have ended."""

import signal

import pytest
import torch

from mast_ext.train import launch
from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import SettingsError
from mast_ext.train.launch import LAUNCHER_SIGNALS, require_devices


@pytest.mark.parametrize(("devices", "told"), [(1, ""), (2, ""), (4, "more than the 2 CPU cores")])
def test_more_processes_than_cores_are_told(monkeypatch, devices, told):
    monkeypatch.setattr(launch, "usable_cores", lambda: 2)
    remark = require_devices(TrainConfig(devices=devices, accelerator="cpu"))
    assert told in remark and bool(remark) == bool(told)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)
    assert require_devices(TrainConfig(devices=2)) == ""
    with pytest.raises(SettingsError, match="train.devices is 4, but there are 2 GPUs here"):
        require_devices(TrainConfig(devices=4))


def test_the_launcher_leaves_no_handlers(monkeypatch):
    """A SIGTERM afterwards would raise torch's exception in whatever runs then."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it would be set, and stay
    before = [signal.getsignal(number) for number in LAUNCHER_SIGNALS]
    assert launch.launch("mast_ext.cli.main", ["--version"], 2) == 0
    assert [signal.getsignal(number) for number in LAUNCHER_SIGNALS] == before
