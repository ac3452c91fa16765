"""Where a step's time goes: which part has the clock while networks, losses or callbacks work."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from mast_ext.augment.rendering import TorchvisionRenderer
from mast_ext.data import open_source
from mast_ext.losses import NTXentLoss
from mast_ext.methods import METHODS, HardViewOptions
from mast_ext.models import EMATeacher, Projector
from mast_ext.train.loop import callbacks, step_times
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.step_times import NETWORKS, OTHER, PARTS, Step, StepTimes, summary
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import AtomicCheckpointIO
from mast_ext.train.state.run_directory import RunDirectory

PAUSE = 100.0


class Clock:
    """Time that passes where a test says so."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(step_times, "_clock", lambda *options: lambda: found.now)
    return found


@pytest.fixture
def timed(tmp_path, tiny):
    """Trains for some steps; gives their times, and the module."""

    def train(method, config=tiny, steps=3, **options):
        config = replace(config, method=method, data=replace(config.data, workers=0))
        networks = build_networks(config)
        source = open_source("shapes", "train", size=16, max_images=24)
        training = Training(config, networks, training_loader(config, networks, source), steps)
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        times = StepTimes(**options)
        console = Console(quiet=True)
        module = fit(training, run, console=console, watching=[times], profiler=times.profiler)
        return times.steps(), module

    return train


def slower(monkeypatch, clock, owner, name):
    """Has a function take `PAUSE`."""
    own = getattr(owner, name)

    def function(*args, **kwargs):
        clock.now += PAUSE
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


class SlowBackward(torch.autograd.Function):
    """The same, and a gradient that takes `PAUSE`."""

    clock: Clock

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        SlowBackward.clock.now += PAUSE
        return gradient


WORK = [
    ("views", TorchvisionRenderer, "_batch"),
    ("teacher", EMATeacher, "forward"),
    ("head, forward", Projector, "forward"),
    ("loss, forward", NTXentLoss, "forward"),
    ("checks", nn.utils, "get_total_norm"),
    ("optimizer", torch.optim.AdamW, "step"),
    ("teacher's update", EMATeacher, "update"),
    ("metrics", callbacks.MetricsFile, "append"),
    ("ranks", callbacks.EmbeddingRanks, "measure"),
    ("checkpoints", AtomicCheckpointIO, "save_checkpoint"),
]


@pytest.mark.parametrize(("part", "owner", "name"), WORK, ids=[part for part, *_ in WORK])
def test_work_counts_as_its_part(timed, tiny, clock, monkeypatch, part, owner, name):
    slower(monkeypatch, clock, owner, name)
    if part == "head, forward":  # which sees the images whose ranks are measured, too
        tiny = replace(tiny, train=replace(tiny.train, rank_every=0))
    steps, _ = timed("moco" if "teacher" in part else "simclr", tiny)
    times = steps[-1].parts  # at the last step everything is due
    assert times[part] >= PAUSE
    assert sum(times.values()) == times[part]


@pytest.mark.parametrize("part", ["backbone", "head", "loss"])
def test_backward_passes_are_told_apart(timed, clock, monkeypatch, part):
    """By operations with a slow gradient inside of each."""
    inner = {"backbone": nn.Conv2d, "head": nn.Linear, "loss": NTXentLoss}[part]
    own = inner.forward

    def forward(self, *args):
        if part == "loss":
            return own(self, *(SlowBackward.apply(each) for each in args))
        return SlowBackward.apply(own(self, *args))

    monkeypatch.setattr(inner, "forward", forward)
    monkeypatch.setattr(SlowBackward, "clock", clock, raising=False)
    steps, _ = timed("simclr")
    for step in steps:
        assert step.parts[f"{part}, backward"] >= PAUSE
        assert sum(step.parts.values()) == step.parts[f"{part}, backward"]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_its_parts(timed, method):
    steps, module = timed(method)
    wanted = {"views", "backbone, forward", "loss, forward", "backbone, backward", "optimizer"}
    wanted |= {"head, forward", "head, backward", "loss, backward", "checks", OTHER}
    if module.teacher is not None:
        wanted |= {"teacher", "teacher's update"}
    for step in steps:
        assert wanted <= step.parts.keys() <= set(PARTS)
    for network in module.modules():  # nothing stays behind
        assert not network._forward_hooks and not network._forward_pre_hooks


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_selection_of_views_is_a_part_of_its_own(timed, tiny, method):
    steps, _ = timed(method, replace(tiny, hard_views=HardViewOptions(4)))
    for step in steps:
        assert step.parts["selection, networks"] > 0 and step.parts["selection, choice"] > 0


def test_images_whose_ranks_are_measured_count_there(timed, clock, monkeypatch):
    own = nn.Conv2d.forward

    def forward(self, images):
        clock.now += 0.0 if self.training else PAUSE
        return own(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    steps, _ = timed("simclr")
    times = steps[-1].parts
    assert times["ranks"] >= PAUSE and sum(times.values()) == times["ranks"]


def test_time_of_the_cpu_leaves_out_waiting(timed, monkeypatch):
    own = TorchvisionRenderer._batch

    def waiting(*args):
        time.sleep(0.5)
        return own(*args)

    monkeypatch.setattr(TorchvisionRenderer, "_batch", waiting)
    steps, _ = timed("simclr", cpu_time=True)
    assert all(0 < step.parts["views"] < 0.5 for step in steps)


def test_parts_of_a_step_are_one_step(timed, tiny):
    config = replace(tiny, train=replace(tiny.train, accumulate=2))
    steps, _ = timed("simclr", config)
    assert [step.number for step in steps] == [1, 2, 3]


def test_summary(tiny):
    train = replace(tiny.train, log_every=2, rank_every=10, checkpoint_every=100)
    names = {"views": 1.0, "loss, forward": 2.0, OTHER: 0.5}
    steps = [Step(n, {**names, "metrics": 0.001}) for n in range(1, 5)]
    steps[1].parts["metrics"] = steps[3].parts["metrics"] = 0.4
    steps[2].parts["views"] = 9.0
    steps.append(Step(5, {**names, "metrics": 0.6, "ranks": 5.0, "checkpoints": 3.0}))
    found = {part.name: part for part in summary(steps, replace(tiny, train=train), 50)}
    assert list(found) == [part for part in PARTS if part in found]
    assert found["views"].seconds == 1.0 and found["views"].once is None
    assert (found["metrics"].once, found["metrics"].seconds) == (0.4, 0.2)  # of 0.4, 0.4, 0.6
    assert (found["ranks"].once, found["ranks"].seconds) == (5.0, 0.5)
    # At every 50th step, at each second of which one is due twice and written once.
    assert found["checkpoints"].seconds == pytest.approx(3 / 50)
    train = replace(train, log_every=20, checkpoint_every=60)
    found = {part.name: part for part in summary(steps, replace(tiny, train=train), 50)}
    assert found["ranks"].seconds == 5.0 / 20  # with a row of metrics
    assert found["checkpoints"].seconds == pytest.approx(3 * (1 / 60 + 1 / 50 - 1 / 300))
    assert "teacher" in NETWORKS and "teacher's update" not in NETWORKS


def test_selection_at_some_steps_counts_by_its_share(tiny):
    config = replace(tiny, hard_views=HardViewOptions(4, every=3))
    steps = [Step(n, {"views": 1.0, "selection, choice": 0.01}) for n in range(1, 8)]
    for step in steps[2::3]:
        step.parts.update({"selection, networks": 6.0, "selection, choice": 0.3})
    found = {part.name: part for part in summary(steps, config, 50)}
    for name, once in (("selection, networks", 6.0), ("selection, choice", 0.3)):
        assert (found[name].once, found[name].every) == (once, 3)
        assert found[name].seconds == pytest.approx(once / 3)


def test_a_gpu_is_asked_by_events(monkeypatch):
    """Which are recorded in its stream and read at the end."""
    clock = iter(range(100))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    times = StepTimes()
    profiler = times.profiler
    profiler.begin(step_times._clock(torch.device("cuda"), False))
    for _ in range(2):
        with profiler.profile("wait_for_views"):
            pass
        with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
            profiler.turn("backbone, backward")
        step = times._step + 1
        times.on_train_batch_end(SimpleNamespace(global_step=step), None, None, None, 0)
    first, second = times.steps()
    # A mark per turn: before each part, and behind the last one.
    assert first.parts == {"views": 1, "loss, backward": 1, "backbone, backward": 1, OTHER: 3}
    assert first.parts == second.parts
    assert first.seconds + second.seconds == next(clock) - 1  # no gap between the two
