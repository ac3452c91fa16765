"""One training that is killed again and again at random instants, and resumed each time.

It ends in the same bits as one that was left alone: weights, teacher, center and queue, optimizer
and schedules, generators, metrics and what was measured.
"""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from mast_ext.cli import main as program
from mast_ext.train import pretrain
from mast_ext.train.loop.callbacks import MetricsFile
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import AtomicCheckpointIO, read_checkpoint

OPTIONS = [
    *("--baseline=none", "--train.batch_size=8", "--train.epochs=40", "--train.accelerator=cpu"),
    *("--train.logger=csv", "--train.checkpoint_every=2", "--train.log_every=1"),
    *("--train.rank_every=4", "--evaluation.neighbors=[5]", "--augment.size=16"),
    *("--data.size=16", "--data.max_images=24", "--data.max_test_images=12"),
    "--model.timm_args={channels: [8,8,8,16], stem_width: 4}",
]
METHODS = {
    "mast": ["--method=mast", "--mast.projector=[16,16]"],
    "dino with hard views": [
        *("--method=dino", "--hard-views=4", "--dino.prototypes=12", "--dino.head=[16]"),
        *("--dino.bottleneck=8", "--dino.local_views=0"),
    ],
    "moco with EquiMod": [
        *("--method=moco", "--moco.queue=20", "--moco.projector=[16,16]"),
        *("--equimod.weight=1", "--equimod.projector=[16,16]"),
    ],
}

STARTING, BETWEEN, STEP, METRICS, CHECKPOINT, REPORT = range(6)
PHASES = ["starting", "between", "in a step", "writing metrics", "writing a checkpoint", "probing"]
MOMENTS = {  # what a process does in a phase
    STEP: (PretrainModule, "training_step"),
    METRICS: (MetricsFile, "append"),
    CHECKPOINT: (AtomicCheckpointIO, "save_checkpoint"),
    REPORT: (pretrain, "_report"),
}


def train(arguments, threads, phase, entered, errors):
    """The program in a process of its own, which says what it does.

    Args:
        arguments: Those of ``pretrain``.
        threads: torch's, on whose number the bits depend.
        phase: A shared number, in which the phase stands.
        entered: Shared numbers: how often each phase was entered.
        errors: A file for what the program says.
    """
    torch.set_num_threads(threads)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for number, (owner, name) in MOMENTS.items():
        setattr(owner, name, telling(getattr(owner, name), number, phase, entered))
    sys.exit(program.main(["pretrain", *arguments]))


def telling(function, number, phase, entered):
    def told(*arguments, **options):
        before, phase.value = phase.value, number
        entered[number] += 1
        try:
            return function(*arguments, **options)
        finally:
            phase.value = before or BETWEEN

    return told


@pytest.fixture(scope="module")
def processes():
    """Where processes come from that have imported everything when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mast_ext.cli.pretrain", "tests.train.faults.test_kills"])
    return context


class Life:
    """A process that trains until it is done, or killed."""

    def __init__(self, processes, arguments, errors):
        self.phase, self.entered = processes.Value("i", STARTING), processes.Array("i", len(PHASES))
        self.errors = errors
        shared = (self.phase, self.entered, errors)
        self.process = processes.Process(target=train, args=(arguments, threads(), *shared))
        self.process.start()

    def end(self):
        self.process.join()
        assert self.process.exitcode == 0, self.errors.read_text()

    def kill(self, phase, times, seconds):
        """Kills it some time after it has entered a phase for so many times; gives the phase."""
        while self.entered[phase] < times and self.process.is_alive() and phase != STARTING:
            time.sleep(1e-4)
        time.sleep(seconds)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, self.errors.read_text()
        return self.phase.value


def threads():
    return torch.get_num_threads()


def plan(chance, kills):
    """Phases, how often to let one pass, and seconds after it began, at which to kill.

    The last two come when training is done.
    """
    for number in range(kills):
        phase = chance.choice((STARTING, STEP, STEP, METRICS, CHECKPOINT, CHECKPOINT))
        if number >= kills - 2:
            phase = REPORT
        longest = {STARTING: 0.4, REPORT: 0.3, CHECKPOINT: 5e-3}.get(phase, 0.02)
        yield phase, 1 if phase == REPORT else chance.randint(1, 3), chance.uniform(0, longest)


def everything(run):
    """What a run leaves, as far as two runs must have it in common."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["views_per_second"]
    checkpoints = {
        name: read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best")
    }
    for checkpoint in checkpoints.values():
        del checkpoint["loops"]  # counts of what Lightning has begun, which nothing goes by
    return {
        **checkpoints,
        "backbone": load_file(run / "backbone.safetensors"),
        "metrics": rows,
        "results": (run / "report/results.json").read_text(),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
    }


def differences(mine, theirs, where=""):
    """Names of what is not the same, to the bit."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        return [] if same else [where]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = sorted({*mine, *theirs}, key=str)
        pairs = [(name, mine.get(name), theirs.get(name)) for name in names]
    elif isinstance(mine, (list, tuple)) and type(mine) is type(theirs):
        if len(mine) != len(theirs):
            return [f"{where} has {len(mine)} and {len(theirs)} items"]
        pairs = [(i, *pair) for i, pair in enumerate(zip(mine, theirs, strict=True))]
    else:
        return (
            [] if type(mine) is type(theirs) and mine == theirs else [f"{where}: {mine} {theirs}"]
        )
    return [found for name, *pair in pairs for found in differences(*pair, f"{where}/{name}")]


@pytest.mark.parametrize(
    ("method", "kills"),
    [("mast", 4), *(pytest.param(name, 22, marks=pytest.mark.slow) for name in METHODS)],
)
def test_ends_in_the_same_bits(processes, tmp_path, method, kills, fuzz):
    if kills > 4 and fuzz == 1:
        pytest.skip("takes minutes: with --fuzz 2")
    run, errors = tmp_path / "run", tmp_path / "errors"
    options = [*OPTIONS, *METHODS[method]]
    Life(processes, [*options, f"--out={tmp_path / 'whole'}"], errors).end()
    whole, hit = everything(tmp_path / "whole"), Counter()
    for moment in plan(random.Random(method), kills):
        begun = (run / "checkpoints/last.ckpt").exists()
        if not begun and run.exists():
            shutil.rmtree(run)  # ended before there was anything to go on with
        arguments = [f"--resume={run}"] if begun else [*options, f"--out={run}"]
        hit[PHASES[Life(processes, arguments, errors).kill(*moment)]] += 1
    Life(processes, [f"--resume={run}"], errors).end()
    assert differences(everything(run), whole) == []
    print(f"{method}: {kills} kills: {dict(hit)}")
    if kills >= 20:
        assert hit.keys() >= {"in a step", "writing a checkpoint", "probing"}
