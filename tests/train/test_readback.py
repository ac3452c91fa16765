"""Numbers of steps come in order, at once from the CPU and a step late from elsewhere."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mast_ext.train.errors import RunError
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.readback import Readback
from mast_ext.train.state.checkpoint import read_checkpoint


def send(readback, step, device="cpu"):
    loss, norm = torch.tensor(float(step), device=device), torch.tensor(0.5, device=device)
    readback.send(step, [loss, loss + 1], norm, [(torch.tensor([step]), torch.zeros(2, 1, 14))])


def steps(numbers):
    return [each.step for each in numbers]


def test_the_cpu_gives_them_at_once():
    readback = Readback()
    for step in (1, 2):
        send(readback, step)
        (numbers,) = readback.take()
        assert (numbers.step, numbers.losses, numbers.gradient_norm) == (
            step,
            (step, step + 1),
            0.5,
        )
        assert numbers.samples[0][0].tolist() == [step]
    assert readback.take(wait=True) == [] and not readback.late


@pytest.fixture
def events(monkeypatch):
    """Calls of events and copies to page-locked memory, to which zeros are copied."""
    calls, empty = [], torch.empty
    event = SimpleNamespace(
        record=lambda: calls.append("record"), synchronize=lambda: calls.append("wait")
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)

    def locked(*args, pin_memory=False, **kwargs):
        made = empty(*args, **kwargs)
        made.is_locked = pin_memory
        return made

    def copy(target, source, non_blocking):
        assert target.is_locked and non_blocking
        calls.append("copy")
        return target.zero_()

    monkeypatch.setattr(torch, "empty", locked)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    return calls


def test_a_gpu_gives_them_a_step_late(events):
    readback = Readback()
    send(readback, 1, "meta")
    assert readback.late and readback.take() == []
    send(readback, 2, "meta")
    assert events == ["copy", "record"] * 2  # nothing was waited for
    assert steps(readback.take()) == [1]
    assert events == [*["copy", "record"] * 2, "wait"]
    assert steps(readback.take()) == []
    assert steps(readback.take(wait=True)) == [2]
    send(readback, 3, "meta")
    send(readback, 4, "meta")
    assert steps(readback.take(wait=True)) == [3, 4]


def read_late(monkeypatch):
    """As of a GPU."""
    original = Readback.send

    def send(readback, *args):
        original(readback, *args)
        readback.late = True

    monkeypatch.setattr(Readback, "send", send)


def spoil_at(monkeypatch, step):
    seen = []

    def hook(module, batch, batch_idx):
        seen.append(module.trainer.global_step)
        if module.trainer.global_step == step - 1:
            batch.images[:] = float("nan")

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", hook)
    return seen


@pytest.mark.parametrize(("spoiled", "saved", "begun"), [(3, 2, 4), (4, 2, 4), (8, 6, 8)])
def test_what_is_seen_late_is_in_no_checkpoint(
    train_tiny, tiny, tmp_path, monkeypatch, spoiled, saved, begun
):
    """Between checkpoints, right before one, and in the last step."""
    read_late(monkeypatch)
    seen = spoil_at(monkeypatch, spoiled)
    config = replace(tiny, data=replace(tiny.data, max_images=80))  # ten steps to an epoch
    config = replace(config, train=replace(config.train, epochs=0.8))
    message = f"the loss is nan at step {spoiled}: stopped before saving weights that it changed"
    with pytest.raises(RunError, match=message):
        train_tiny(config=config, method="vicreg")
    assert len(seen) == begun
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == saved
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert len(json.loads((tmp_path / "run/nonfinite_batch.json").read_text())["indices"]) == 8


def test_reading_late_changes_nothing_else(train_tiny, tmp_path, monkeypatch):
    plain = train_tiny("plain").state_dict()
    read_late(monkeypatch)
    found = train_tiny("late").state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    checkpoints = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("plain", "late")
    ]
    assert checkpoints[0]["callbacks"] == checkpoints[1]["callbacks"]
