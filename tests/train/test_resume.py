"""A run that was stopped at any step and resumed ends in the same bits as one that was not."""

import csv
import os
import random
import re
import signal
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from mast_ext.methods import HardViewOptions
from mast_ext.train.errors import CheckpointError, Interrupted
from mast_ext.train.loop import fit as fitting
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import read_checkpoint

STEPS = 8


class PowerCut(BaseException):
    pass


@pytest.fixture
def stop_at(monkeypatch):
    """Makes something happen as the given step (from 0) begins."""

    def arrange(step, action):
        def hook(module, batch, batch_idx):
            if module.trainer.global_step == step:
                action()

        monkeypatch.setattr(PretrainModule, "on_train_batch_start", hook)

    yield arrange
    monkeypatch.undo()


def cut():
    raise PowerCut


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


def rows(path):
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        del row["views_per_second"]
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return {}


def whole_run(train_tiny, uninterrupted, tmp_path, method):
    if method not in uninterrupted:
        module = train_tiny("whole", method=method)
        run = tmp_path / "whole"
        best = read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
        uninterrupted[method] = (module.state_dict(), rows(run / "metrics.csv"), best)
    return uninterrupted[method]


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("how", [sigterm, cut])
def test_same_bits_from_any_step(train_tiny, stop_at, uninterrupted, tmp_path, step, how):
    weights, metrics, best = whole_run(train_tiny, uninterrupted, tmp_path, "mast")
    if how is cut and step < 2:
        pytest.skip("no checkpoint is written before step 2")
    stop_at(step, how)
    with pytest.raises((Interrupted, PowerCut)):
        train_tiny()
    stop_at(None, None)
    # What a resumed process would not share with the one that died:
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    run = tmp_path / "run"
    resumed = train_tiny(resume=run / "checkpoints" / "last.ckpt")
    assert_same_bits(resumed.state_dict(), weights)
    assert rows(run / "metrics.csv") == metrics
    assert_same_bits(read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"], best)


@pytest.mark.parametrize(
    "method",
    [
        *("vicreg", "simclr+equimod", "moco", "moco+equimod", "byol"),
        *("simsiam+hard", "byol+hard", "mast+equimod+hard"),
    ],
)
def test_same_bits_when_interrupted_twice(train_tiny, stop_at, uninterrupted, tmp_path, method):
    """Of methods with other state: EquiMod's heads, MoCo's teacher and queue."""
    weights, metrics, _ = whole_run(train_tiny, uninterrupted, tmp_path, method)
    last, resume = tmp_path / "run" / "checkpoints" / "last.ckpt", None
    for step in (2, 5):
        stop_at(step, sigterm)
        with pytest.raises(Interrupted):
            train_tiny(resume=resume, method=method)
        resume = last
    stop_at(None, None)
    resumed = train_tiny(resume=last, method=method)
    assert_same_bits(resumed.state_dict(), weights)
    assert rows(tmp_path / "run" / "metrics.csv") == metrics


def test_same_bits_of_random_hard_views(train_tiny, stop_at, tiny, tmp_path):
    """Selection that draws numbers, at every second step after a warm-up."""
    options = HardViewOptions(4, every=2, warmup=0.5, strategy="softmax", fraction=0.5)
    config = replace(tiny, hard_views=options)
    whole = train_tiny("whole", config=config, method="simclr").state_dict()
    stop_at(5, sigterm)
    with pytest.raises(Interrupted):
        train_tiny(config=config, method="simclr")
    stop_at(None, None)
    torch.manual_seed(99)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_same_bits(train_tiny(resume=last, config=config, method="simclr").state_dict(), whole)


def test_a_finished_run_resumes_to_itself(train_tiny, tmp_path):
    weights = {name: value.clone() for name, value in train_tiny().state_dict().items()}
    resumed = train_tiny(resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert_same_bits(resumed.state_dict(), weights)


def test_sigterm_between_steps(train_tiny, stop_at, uninterrupted, tmp_path, monkeypatch):
    """After one step's checkpoint was written and before the next step begins."""
    weights, metrics, _ = whole_run(train_tiny, uninterrupted, tmp_path, "mast")
    original = Trainer.save_checkpoint

    def save_then_signal(trainer, *args, **kwargs):
        original(trainer, *args, **kwargs)
        if trainer.global_step == 4:
            sigterm()

    monkeypatch.setattr(Trainer, "save_checkpoint", save_then_signal)
    with pytest.raises(Interrupted):
        train_tiny()
    monkeypatch.setattr(Trainer, "save_checkpoint", original)
    resumed = train_tiny(resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert_same_bits(resumed.state_dict(), weights)
    assert rows(tmp_path / "run" / "metrics.csv") == metrics


def test_sigterm_while_the_last_checkpoint_is_written(
    train_tiny, uninterrupted, tmp_path, monkeypatch
):
    """After which there is no step that could look for it."""
    weights, *_ = whole_run(train_tiny, uninterrupted, tmp_path, "mast")
    original = Trainer.save_checkpoint

    def signal_then_save(trainer, *args, **kwargs):
        if trainer.global_step == STEPS:
            sigterm()
        original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", signal_then_save)
    with pytest.raises(Interrupted, match=f"signal {int(signal.SIGTERM)} after step {STEPS}"):
        train_tiny()
    resumed = train_tiny(resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert_same_bits(resumed.state_dict(), weights)


def test_the_checkpoint_does_not_stay_in_memory(train_tiny, stop_at, tmp_path, monkeypatch):
    stop_at(3, sigterm)
    with pytest.raises(Interrupted):
        train_tiny()
    read, held = [], []

    def remembered(path):
        checkpoint = read_checkpoint(path)
        read.extend(weakref.ref(value) for value in checkpoint["state_dict"].values())
        return checkpoint

    stop_at(5, lambda: held.extend(each for each in read if each() is not None))
    monkeypatch.setattr(fitting, "read_checkpoint", remembered)
    train_tiny(resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert read and not held


def test_interruption_names_signal_and_step(train_tiny, stop_at, tmp_path):
    stop_at(3, sigterm)
    with pytest.raises(Interrupted) as error:
        train_tiny()
    assert (error.value.signal, error.value.step) == (signal.SIGTERM, 4)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_ends_at_once(train_tiny, stop_at):
    """Lightning would exit the program without a word, and leave SIGINT ignored."""
    before = signal.getsignal(signal.SIGINT)  # of a shell's background process it is ignored
    stop_at(3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        train_tiny()
    assert signal.getsignal(signal.SIGINT) == before


def test_generators_are_restored(train_tiny, stop_at, tmp_path, monkeypatch):
    drawn = []

    def draw(module, outputs, batch, batch_idx):
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))

    monkeypatch.setattr(PretrainModule, "on_train_batch_end", draw)
    train_tiny("whole")
    expected = list(drawn)
    drawn.clear()
    stop_at(4, cut)
    with pytest.raises(PowerCut):
        train_tiny()
    stop_at(None, None)
    monkeypatch.setattr(PretrainModule, "on_train_batch_end", draw)
    del drawn[4:]
    train_tiny(resume=tmp_path / "run" / "checkpoints" / "last.ckpt")
    # The checkpoint of step 4 is written before that step's own draw.
    assert drawn[4:] == expected[3:-1]


@pytest.mark.parametrize("kept", [False, True])
def test_a_resume_without_the_teachers_state_would_differ(train_tiny, stop_at, tmp_path, kept):
    """So the comparison of bits above does see the teacher and the queue."""
    whole = train_tiny("whole", method="moco").state_dict()
    stop_at(4, sigterm)
    with pytest.raises(Interrupted):
        train_tiny(method="moco")
    stop_at(None, None)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    if not kept:
        state = checkpoint["state_dict"]
        fresh = {name.removeprefix("backbone."): name for name in state if "backbone" in name}
        for name, source in fresh.items():
            state[f"teacher.module.0.{name}"] = state[source]
        torch.save(checkpoint, last)
    resumed = train_tiny(resume=last, method="moco").state_dict()
    same = all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert same == kept


@pytest.mark.parametrize(
    ("mine", "other"),
    [("simclr", "simclr+equimod"), ("moco", "simclr"), ("simsiam", "simsiam+hard")],
)
def test_refuses_the_checkpoint_of_another_method(train_tiny, tmp_path, mine, other):
    for first, second in ((mine, other), (other, mine)):
        train_tiny(first, method=first)
        last = tmp_path / first / "checkpoints" / "last.ckpt"
        message = re.escape(f"its method is {first}, this run's is {second}")
        with pytest.raises(CheckpointError, match=message):
            train_tiny("into", last, method=second)


def test_refuses_to_go_on_with_more_images(train_tiny, tiny, tmp_path):
    train_tiny()
    message = "last.ckpt is of a run on 24 training images, and there are 32 now: bring back"
    more = replace(tiny, data=replace(tiny.data, max_images=32))
    with pytest.raises(CheckpointError, match=message):
        train_tiny("other", tmp_path / "run" / "checkpoints" / "last.ckpt", more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, seed=1), "its seed is 0, this run's is 1"),
        (lambda c: replace(c, train=replace(c.train, batch_size=12)), "its batch_size is 8"),
        (lambda c: replace(c, model=replace(c.model, name="resnet18")), "its backbone is"),
    ],
)
def test_refuses_the_checkpoint_of_another_run(train_tiny, tiny, tmp_path, change, message):
    train_tiny()
    with pytest.raises(CheckpointError, match=f"last.ckpt belongs to another run: {message}"):
        train_tiny("other", tmp_path / "run" / "checkpoints" / "last.ckpt", change(tiny))
