"""How many processes a machine has a place for, and what is left when they have ended."""

import os
import signal

import pytest
import torch

from mast_ext.train import launch
from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import Interrupted, SettingsError
from mast_ext.train.launch import LAUNCHER_SIGNALS, require_devices
from mast_ext.train.loop.module import PretrainModule


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


SLURM = {
    **{"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_NODEID": "0"},
    "SLURM_LOCALID": "0",
}
JOBS = {
    "a task of SLURM": {**SLURM, "SLURM_NTASKS": "1"},
    "the script of two tasks": {**SLURM, "SLURM_NTASKS": "2"},
    "a task of LSF": {
        **{"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere"},
        **{"JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "1"},
    },
}


@pytest.mark.parametrize("job", JOBS)
def test_one_process_trains_in_a_batch_job(train_tiny, tmp_path, monkeypatch, job):
    """A signal of the scheduler ends it with a checkpoint of ours, and with none of Lightning's."""
    for name, value in JOBS[job].items():
        monkeypatch.setenv(name, value)

    def warned(module, batch, batch_idx):
        if module.trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", warned)
    with pytest.raises(Interrupted, match=f"stopped by signal {int(signal.SIGUSR1)} after step 4"):
        train_tiny()
    found = sorted(path.name for path in (tmp_path / "run").rglob("*.ckpt"))
    assert found == ["best.ckpt", "last.ckpt"]


def test_the_launcher_leaves_no_handlers(monkeypatch):
    """A SIGTERM afterwards would raise torch's exception in whatever runs then."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it would be set, and stay
    before = [signal.getsignal(number) for number in LAUNCHER_SIGNALS]
    assert launch.launch("mast_ext.cli.main", ["--version"], 2) == 0
    assert [signal.getsignal(number) for number in LAUNCHER_SIGNALS] == before
