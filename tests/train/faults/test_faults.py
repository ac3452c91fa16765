"""The program under faults, whenever it moves a file to its place, and then resumed.

The resumed run ends as an undisturbed one does, and no part of a file remains.
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mast_ext.cli.main import main
from mast_ext.train.state.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
OPTIONS = [
    *("--train.batch_size=8", "--train.epochs=2", "--train.accelerator=cpu"),
    *("--train.logger=csv", "--train.checkpoint_every=2", "--evaluation.neighbors=[5]"),
    *("--train.log_every=2", "--train.rank_every=2"),
    *("--data.size=16", "--data.max_images=24", "--data.max_test_images=12", "--augment.size=16"),
    "--model.timm_args={channels: [8,8,8,16], stem_width: 4}",
    *("--method=simclr", "--baseline=vicreg"),
    *("--simclr.projector=[16,16]", "--vicreg.projector=[16,16]"),
]


def start(out, fault, number, *options):
    """Runs the program until it ends, with a fault: status, standard error."""
    root = HERE.parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mast_ext.cli.main", "pretrain", *OPTIONS, *options, f"--out={out}"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE / "hook"), str(root)]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # of which the bits depend
            "FAULT": fault,
            "FAULT_AT": str(number),
            "WITNESS": str(out.with_name("witness")),
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and how often it moves a file to its place."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, err = start(out, "none", 0)
    assert status == 0, err
    return out, int(out.with_name("witness").read_text().split()[0])


def weights(run):
    return read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]


def metrics(run):
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "views_per_second"} for row in rows]


def assert_same_bits(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def files(run):
    return sorted(path.relative_to(run) for path in run.rglob("*"))


def assert_same(run, whole):
    for part in (".", "baseline"):
        mine, theirs = run / part, whole / part
        assert_same_bits(weights(mine), weights(theirs))
        assert_same_bits(*(load_file(each / "backbone.safetensors") for each in (mine, theirs)))
        assert metrics(mine) == metrics(theirs)
    results = [(each / "report/results.json").read_text() for each in (run, whole)]
    assert results[0] == results[1]
    assert files(run) == files(whole)  # nothing is missing, and no part of a file remains


FAULTS = [
    *("killed", "killed in the middle of a file", "killed after the move"),
    *("stopped", "full disk", "read-only", "folder gone"),
] * 2


# Each fault twice, at moments from the first to the last.
@pytest.mark.parametrize(("part", "fault"), list(enumerate(FAULTS)))
def test_resumed_run_ends_as_an_undisturbed_one(tmp_path, whole, fault, part):
    undisturbed, moments = whole
    number = 1 + part * (moments - 1) // (len(FAULTS) - 1)
    run = tmp_path / "run"
    status, err = start(run, fault, number)
    assert "Traceback" not in err
    place = Path((tmp_path / "witness").read_text().split(maxsplit=1)[1])
    if fault.startswith("killed"):
        assert status == -signal.SIGKILL
    elif fault == "stopped":
        assert status in (0, 128 + signal.SIGTERM, -signal.SIGTERM), err
    else:
        assert status in (0, 1), err
        if status:
            assert err.splitlines()[-1].startswith("mast-ext: cannot "), err
            assert not list(tmp_path.rglob("*.partial")) or fault == "read-only"
    elsewhere = place.parent.with_name("elsewhere")
    if elsewhere.exists():
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.move(elsewhere, place.parent)
    if (run / "checkpoints/last.ckpt").exists():
        assert main(["pretrain", f"--resume={run}"]) == 0
    else:
        shutil.rmtree(run, ignore_errors=True)  # ended before there was anything to go on with
        assert main(["pretrain", *OPTIONS, f"--out={run}"]) == 0
    assert_same(run, undisturbed)


@pytest.mark.distributed
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(tmp_path, monkeypatch):
    """With as many processes, in the bits of a run in which none died."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # as in `start`
    two, whole, run = "--train.devices=2", tmp_path / "whole", tmp_path / "run"
    status, err = start(whole, "none", 0, two)
    assert status == 0, err
    status, err = start(run, "another process dies", 4, two)
    assert status == 128 + signal.SIGKILL and "Traceback" not in err
    *others, launcher = [line for line in err.splitlines() if line.startswith("mast-ext: ")]
    assert launcher.startswith("mast-ext: rank 1 was ended by signal 9 (Killed)")
    # The other process may be ended before it has noticed.
    assert others in ([], ["mast-ext: rank 0: another process of the run died or is late"])
    assert main(["pretrain", f"--resume={run}"]) == 0
    assert_same(run, whole)
