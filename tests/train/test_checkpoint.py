import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mast_ext.train.errors import CheckpointError, Interrupted, RunError
from mast_ext.train.loop import checkpoints
from mast_ext.train.loop.checkpoints import Checkpoints, signals_restored
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import AtomicCheckpointIO, read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


FOREIGN = [
    (lambda path: path.write_bytes(b""), "is damaged or not a checkpoint"),
    (lambda path: path.write_bytes(b"words, no tensors"), "is damaged or not a checkpoint"),
    (lambda path: torch.save({"state_dict": {}}, path), "another program wrote it"),
    (lambda path: torch.save([1, 2], path), "another program wrote it"),
    (lambda path: torch.save({"mast_ext": {"format": "0"}}, path), "another program wrote it"),
    (lambda path: torch.save({"mast_ext": Harmful()}, path), "is damaged or not a checkpoint"),
]


@pytest.mark.parametrize(("write", "message"), FOREIGN)
def test_refuses_foreign_files(tmp_path, capsys, write, message):
    path = tmp_path / "model.ckpt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_names_a_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no run or checkpoint at .*nothing\.ckpt"):
        read_checkpoint(tmp_path / "nothing.ckpt")


def test_truncated_checkpoint_is_refused(train_tiny, tmp_path):
    train_tiny()
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "part",
    ["state_dict", "optimizer_states", "callbacks", "mast_ext/identity", "mast_ext/generators"],
)
def test_checkpoint_without_a_part_is_refused(train_tiny, tmp_path, part):
    train_tiny()
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    section, _, name = part.rpartition("/")
    del (checkpoint[section] if section else checkpoint)[name]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=f"{path} is not whole: it has no {part}"):
        train_tiny(resume=path)


def test_checkpoint_with_other_weights_is_refused(train_tiny, tmp_path):
    """As one of a version of the program that named them otherwise."""
    train_tiny()
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    weights = checkpoint["state_dict"]
    name = next(iter(weights))
    weights["renamed"] = weights.pop(name)
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=f"{path} does not fit .*: it has no {name}"):
        train_tiny(resume=path)


def test_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"mast_ext": {"format": "mast_ext.checkpoint.1", "n": 1}}, path)

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=f"cannot write {path}: disk full"):
        io.save_checkpoint({"mast_ext": {"format": "mast_ext.checkpoint.1", "n": 2}}, path)
    assert read_checkpoint(path)["mast_ext"]["n"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_last_and_best(train_tiny, tmp_path):
    train_tiny()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    last, best = (read_checkpoint(folder / f"{name}.ckpt") for name in ("last", "best"))
    assert last["global_step"] == 8 and best["global_step"] in (3, 6, 8)
    header = last["mast_ext"]
    assert header["loader"] == {"seed": 0, "epoch": 2, "step": 2}
    assert header["identity"]["method"] == "mast" and header["identity"]["images"] == 24


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_stops_at_a_number_that_is_not_finite(train_tiny, tmp_path, monkeypatch, what):
    """At step 4 (of 8, from 1), with the checkpoint of step 3."""

    def spoil(module, batch, batch_idx):
        if module.trainer.global_step != 3:
            return
        if what == "loss":
            batch.images[0, 0, 0, 0, 0] = float("nan")
        else:
            weight = module.method.projector[0].weight
            weight.register_hook(lambda grad: torch.full_like(grad, float("inf")))

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", spoil)
    with pytest.raises(RunError) as error:
        train_tiny()
    message, run = str(error.value), tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    assert message.startswith(f"the {what} is {'nan' if what == 'loss' else 'inf'} at step 4: ")
    assert f"the last good checkpoint is {last}" in message
    indices = json.loads((run / "nonfinite_batch.json").read_text())["indices"]
    assert len(set(indices)) == 8 and max(indices) < 24
    assert f"samples {', '.join(map(str, indices))} (all in" in message
    state = read_checkpoint(last)
    assert state["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values())


def test_names_that_there_is_no_checkpoint_yet(train_tiny, monkeypatch):
    def spoil(module, batch, batch_idx):
        batch.images.fill_(float("inf"))

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", spoil)
    with pytest.raises(RunError, match="at step 1: .*no checkpoint yet"):
        train_tiny()


class Clock:
    """A time that steps take in two processes, and what these tell each other at which step."""

    def __init__(self, seconds, signal_at=None):
        self.seconds, self.signal_at = seconds, signal_at
        self.now, self.step, self.told = 0.0, 0, []

    def all_gather_numbers(self, numbers):
        received, own = numbers
        assert own == pytest.approx(self.seconds[0])
        self.told.append(self.step)
        signaled = self.signal_at is not None and self.step >= self.signal_at
        return [[received, own], [float(signal.SIGTERM if signaled else 0), self.seconds[1]]]


def steps_of(monkeypatch, run, clock, steps, every=1000):
    """Ends of steps in the first of two processes; gives those after which it saved."""
    monkeypatch.setattr(checkpoints, "world_size", lambda: 2)
    monkeypatch.setattr(checkpoints, "all_gather_numbers", clock.all_gather_numbers)
    monkeypatch.setattr(checkpoints, "all_gather_object", lambda losses: [losses, losses])
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock.now)
    saved = []
    trainer = SimpleNamespace(
        global_step=0, max_steps=-1, save_checkpoint=lambda path: saved.append(clock.step)
    )
    module = SimpleNamespace(settle=lambda: None, take_losses=lambda: [])
    callback = Checkpoints(run, identity={}, seed=0, steps_per_epoch=10_000, every=every)
    with signals_restored():
        callback.on_train_start(trainer, module)
        try:
            for step in range(1, steps + 1):
                clock.now += clock.seconds[0]
                clock.step = trainer.global_step = step
                callback.on_train_batch_end(trainer, module, None, None, 0)
        except Interrupted as error:
            assert error.step == clock.step == saved[-1]
    return saved


@pytest.mark.parametrize("seconds", [(0.125, 0.25), (0.25, 0.125)])
def test_processes_agree_once_a_second_of_the_slowest(monkeypatch, tmp_path, seconds):
    clock = Clock(seconds)
    assert steps_of(monkeypatch, RunDirectory(tmp_path), clock, 20) == []
    assert clock.told == [1, 5, 9, 13, 17]


def test_processes_with_long_steps_agree_after_each(monkeypatch, tmp_path):
    clock = Clock((3.0, 2.0))
    steps_of(monkeypatch, RunDirectory(tmp_path), clock, 4)
    assert clock.told == [1, 2, 3, 4]


def test_processes_agree_before_a_checkpoint(monkeypatch, tmp_path):
    clock = Clock((0.125, 0.125))
    assert steps_of(monkeypatch, RunDirectory(tmp_path), clock, 20, every=7) == [7, 14]
    assert clock.told == [1, 7, 14]


def test_a_signal_to_another_process_stops_at_the_next_agreement(monkeypatch, tmp_path):
    clock = Clock((0.125, 0.125), signal_at=3)
    assert steps_of(monkeypatch, RunDirectory(tmp_path), clock, 40) == [9]
    assert clock.told == [1, 9]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [1, 1_000_000])
def test_full_disk_is_named(tmp_path, numbers):
    """By the writer of torch itself, which fails in other ways for what fits into its buffer."""
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match=f"cannot write {path}: no space left on device"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(numbers)}, path)
    assert list(tmp_path.iterdir()) == []
