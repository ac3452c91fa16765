"""The program as several processes of one machine: how it starts, stops, goes on and fails."""

import csv
import os
import signal
import socket

import pytest
import torch

from mast_ext.cli.pretrain import load_config
from mast_ext.train.errors import EndedByAnother
from mast_ext.train.launch import ProcessRank, launched_rank
from mast_ext.train.state.checkpoint import read_checkpoint

# By SGD with a small rate: rounding errors stay small (Adam's first steps blow them up).
OPTIONS = [
    *("--method=simclr", "--hard-views=4", "--baseline=vicreg", "--train.epochs=2"),
    *("--optimizer.name=sgd", "--optimizer.lr=0.001", "--train.checkpoint_every=2"),
]
PROGRAM = ["-m", "mast_ext.cli.main", "pretrain"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.slow
@pytest.mark.distributed
def test_stops_and_goes_on_as_one_process_would(call, start, stop_at, tiny, shapes, tmp_path):
    """Started by the program itself, stopped by a signal, resumed by torchrun."""
    options = [*tiny, *shapes, *OPTIONS]
    two = ["pretrain", *options, "--train.devices=2"]
    status, out, err = stop_at(3, signal.SIGTERM, *two, processes=2)
    assert (status, out) == (128 + signal.SIGTERM, ""), err
    *_, message = err.splitlines()
    assert message.startswith("mast-ext: stopped by signal 15 after step 4: go on with")
    assert err.count("mast-ext:") == 1
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4

    with start(*TORCHRUN, *PROGRAM, "--resume=run") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("run directory: run") == 1
    assert out.count("untrained") == 2  # in the table of probes and in that of ranks
    assert "simclr+hard: 6 steps, 288 image forwards" in out
    assert call("pretrain", *options, "--out=whole")[0] == 0
    for part in (".", "baseline"):
        found, want = weights(run / part), weights(whole / part)
        assert found.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
        with (run / part / "metrics.csv").open(newline="") as file:
            steps = [row["step"] for row in csv.DictReader(file)]
        assert steps == sorted(set(steps), key=int)
    assert (run / "report" / "index.html").exists()
    assert load_config(run).train.devices == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_the_clusters_signal_stops_all_processes(stop_at, tiny, shapes, tmp_path):
    """It goes to the launcher, too, which must not end before the others."""
    options = ["pretrain", *tiny, *shapes, *OPTIONS, "--train.devices=2"]
    status, _, err = stop_at(3, signal.SIGUSR1, *options, processes=2)
    assert status == 128 + signal.SIGUSR1, err
    assert f"mast-ext: stopped by signal {int(signal.SIGUSR1)} after step 4" in err
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4


TORCHRUN_SAYS = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM_SAYS = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "123456",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN_SAYS, ProcessRank(3, 4, 1)),
        (SLURM_SAYS, ProcessRank(5, 6, 2)),
        ({**SLURM_SAYS, **TORCHRUN_SAYS}, ProcessRank(3, 4, 1)),  # torchrun started by srun
        ({**SLURM_SAYS, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "6", "SLURM_PROCID": "0"}, None),  # a batch script's own process
    ],
)
def test_rank_is_read_from_the_environment(monkeypatch, environment, expected):
    ours = {*TORCHRUN_SAYS, *SLURM_SAYS, "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT"}
    for name in ours:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert launched_rank() == expected
    if expected == ProcessRank(5, 6, 2):
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node07", "18456")


def test_says_nothing_when_another_process_does(call, monkeypatch):
    def end(*arguments, **options):
        raise EndedByAnother

    monkeypatch.setattr("mast_ext.cli.pretrain.pretrain", end)
    assert call("pretrain") == (1, "", "")


def test_more_processes_than_gpus(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    status, _, err = call("pretrain", "--train.devices=2")
    assert (status, err.split(" (")[0]) == (
        2,
        "mast-ext: train.devices is 2, but there are 1 GPUs here",
    )


def test_says_when_the_others_cannot_be_met(call, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **TORCHRUN_SAYS})
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = str(taken.getsockname()[1])
        rank = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update(rank)
        status, _, err = call("pretrain", "--train.accelerator=cpu")
    assert status == 1
    assert err.startswith(f"mast-ext: rank 0 of 4 does not meet the others at localhost:{port}")
