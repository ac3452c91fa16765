"""Where the time of training steps goes.

`StepTimes` looks at a training by the names that the loop and Lightning give to its parts
(`lightning.pytorch.profilers`), and by hooks on the networks; it changes nothing, and makes a GPU
wait for nothing. Time counts for the innermost part that has begun, so the parts of a step add up
to it; what has no name of its own is "other".
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mast_ext.methods import Encoded
from mast_ext.train.config import PretrainConfig
from mast_ext.train.loop.module import PretrainModule

OTHER = "other"

PARTS = (
    "views",
    "transfer",
    "selection, networks",
    "selection, choice",
    "teacher",
    "backbone, forward",
    "head, forward",
    "loss, forward",
    "loss, backward",
    "head, backward",
    "backbone, backward",
    "checks",
    "optimizer",
    "teacher's update",
    "metrics",
    "ranks",
    "checkpoints",
    OTHER,
)
"""Parts of a step, in the order in which they happen.

``views`` are rendered, or waited for where threads render them; ``transfer`` brings them to a GPU
and normalizes them there. ``selection`` is that of hard views: its forward passes, and all else.
``teacher`` is its forward pass. ``checks`` are the gradient's norm, whether all is finite, and
clipping.
"""

NETWORKS = frozenset(part for part in PARTS if part.startswith(("backbone", "head", "teacher")))
NETWORKS |= {"selection, networks"}
NETWORKS -= {"teacher's update"}
"""The parts that are forward and backward passes of backbones and heads."""

SELECTION = {"selection, networks", "selection, choice"}
"""The parts that are due where hard views are selected."""

# By the names that Lightning's trainer, our module and our loader call them.
_ACTIONS = {
    "wait_for_views": "views",
    "transfer_views": "transfer",
    "select_views": "selection, choice",
    "encode": "backbone, forward",
    "loss": "loss, forward",
    "backward": "loss, backward",
    "optimizer_zero_grad": "optimizer",
    "check_gradient": "checks",
    "update_weights": "optimizer",
    "lr_scheduler_step": "optimizer",
    "update_teacher": "teacher's update",
    "measure_ranks": "ranks",
    "save_checkpoint": "checkpoints",
}


@dataclass(frozen=True)
class Step:
    """Seconds of a step.

    Attributes:
        number: Its number, from 1.
        parts: Of every part that had the clock.
    """

    number: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """The whole step by the clock, from the end of the step before it to its own."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class PartTime:
    """What a part takes.

    Attributes:
        name: One of `PARTS`.
        seconds: Of a step: the median; of what happens every few steps, that divided by these.
        once: Seconds each time, of what happens every few steps; None of all else.
        every: Steps between two times.
    """

    name: str
    seconds: float
    once: float | None = None
    every: float = 1.0


class StepTimes(Callback):
    """Measures a training; give it to `fit` as ``watching``, and its ``profiler`` as ``profiler``.

    Args:
        cpu_time: Whether the time of the CPU in all threads of the process is counted, in place of
            that on the wall: on a machine that does other work, too, this says what the parts would
            take by themselves, but nothing of what is waited for. Not on a GPU.

    Attributes:
        profiler: What Lightning tells when a part begins and ends.
    """

    def __init__(self, *, cpu_time: bool = False) -> None:
        self.profiler = _Parts()
        self.cpu_time = cpu_time
        self._step = 0
        self._hooks: list[Any] = []
        self._marks: list[tuple[int, list[tuple[str, Any]], Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(PretrainModule, pl_module)
        self._step = trainer.global_step
        self._hooks = list(_hooked(module, self.profiler))
        self.profiler.begin(_clock(module.device, self.cpu_time))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # else a part of a step
            self._step = trainer.global_step
            self._marks.append((self._step, *self.profiler.cut()))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.profiler.stop_clock()
        for hook in self._hooks:
            hook.remove()

    def steps(self) -> list[Step]:
        """All steps. To be called after training: it waits for a GPU."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found = []
        for number, marks, end in self._marks:
            parts: dict[str, float] = defaultdict(float)
            stamps = [stamp for _, stamp in marks] + [end]
            for (part, begin), after in zip(marks, stamps[1:], strict=True):
                parts[part] += _seconds(begin, after)
            found.append(Step(number, dict(parts)))
        return found


def summary(steps: Sequence[Step], config: PretrainConfig, steps_per_epoch: int) -> list[PartTime]:
    """What each part takes in a step of a long run, in the order of `PARTS`.

    Rows of metrics, ranks, checkpoints and perhaps hard views are due every few steps: one of them
    counts by its share.

    Args:
        steps: Those to count, the run's last one among them: at the end everything is due.
        config: Settings of the run.
        steps_per_epoch: Steps of an epoch.
    """
    train, selects = config.train, config.hard_views.every
    both = math.lcm(train.checkpoint_every, steps_per_epoch)  # where one is written for both
    every: dict[str, float] = {
        "metrics": train.log_every,
        "ranks": max(train.rank_every, train.log_every),  # only with a row of metrics
        "checkpoints": 1 / (1 / train.checkpoint_every + 1 / steps_per_epoch - 1 / both),
    }
    if selects > 1:
        every |= dict.fromkeys(SELECTION, selects)
    found = []
    for part in PARTS:
        times = [step.parts[part] for step in steps if part in step.parts]
        if part == "metrics":  # its callback looks at every step whether a row is due
            due = [s for s in steps if s.number % train.log_every == 0 or s is steps[-1]]
            times = [step.parts[part] for step in due if part in step.parts]
        if part in SELECTION and selects > 1:
            times = [s.parts[part] for s in steps if s.parts.keys() >= SELECTION]
        if times and part in every:
            once = statistics.median(times)
            found.append(PartTime(part, once / every[part], once, every[part]))
        elif times:
            times += [0.0] * (len(steps) - len(times))
            found.append(PartTime(part, statistics.median(times)))
    return found


class _Parts(Profiler):
    """Which part has the clock, and since when."""

    def __init__(self) -> None:
        super().__init__()
        self._now: Callable[[], Any] | None = None
        self._open = [OTHER]
        self._marks: list[tuple[str, Any]] = []

    def begin(self, now: Callable[[], Any]) -> None:
        self._now = now
        self._mark()

    def stop_clock(self) -> None:
        self._now = None

    def cut(self) -> tuple[list[tuple[str, Any]], Any]:
        """What each part has had since the last cut, as (part, begin), and the end."""
        marks, self._marks = self._marks, []
        self._mark()
        return marks, self._marks[0][1]

    def start(self, action_name: str) -> None:
        """An action of Lightning or of ours begins; one without a name here is its outer one's."""
        name = action_name.rpartition(".")[2] if action_name.startswith("[") else action_name
        part = _ACTIONS.get(name)
        if action_name.startswith("[Callback]Metrics.on_train_batch_end"):
            part = "metrics"
        elif action_name.startswith("[Callback]"):  # they have hooks of many of these names
            part = None
        self.push(part or self._open[-1])

    def stop(self, action_name: str) -> None:
        self.pop()

    def push(self, part: str) -> None:
        """A part begins."""
        if self._open[-1].startswith("selection"):
            part = "selection, networks" if part in NETWORKS else "selection, choice"
        elif self._open[-1] == "ranks":  # which passes images through the networks, too
            part = "ranks"
        self._open.append(part)
        self._mark()

    def pop(self) -> None:
        """The innermost part ends."""
        if len(self._open) > 1:  # else it began before the clock
            self._open.pop()
        self._mark()

    def turn(self, part: str) -> None:
        """The innermost part ends and another one begins in its place."""
        if self._open[-1].endswith("backward"):
            self._open[-1] = part
            self._mark()

    def _mark(self) -> None:
        if self._now is not None and (not self._marks or self._marks[-1][0] != self._open[-1]):
            self._marks.append((self._open[-1], self._now()))


def _clock(device: torch.device, cpu_time: bool) -> Callable[[], Any]:
    """Stamps of time: of a GPU events in its stream, which it reaches when it gets there."""
    if device.type != "cuda":
        return time.process_time if cpu_time else time.perf_counter

    def now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return now


def _seconds(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3


def _hooked(module: PretrainModule, parts: _Parts) -> Iterator[Any]:
    """Hooks on the networks that tell when their passes begin and end; gives their handles."""
    heads = [m for n, m in module.method.named_modules() if n and not _is_of_loss(n, m)]
    of = [(module.backbone, "backbone"), *((head, "head") for head in heads)]
    for network, name in of:
        yield from _around(network, f"{name}, forward", parts)
        yield network.register_forward_hook(_turning(f"{name}, backward", parts))
    for teacher in (module.teacher, module.gram_teacher):
        if teacher is not None:
            # Transformers' patches do not come by `forward` of the whole, but by their blocks'.
            for network in teacher.modules():
                yield from _around(network, "teacher", parts)
    yield module.method.register_forward_pre_hook(_turning_at_features(parts))


def _is_of_loss(name: str, module: nn.Module) -> bool:
    return "loss" in name or type(module).__module__.startswith("mast_ext.losses")


def _around(network: nn.Module, part: str, parts: _Parts) -> Iterator[Any]:
    yield network.register_forward_pre_hook(lambda *_: parts.push(part))
    yield network.register_forward_hook(lambda *_: parts.pop(), always_call=True)


def _turning(part: str, parts: _Parts) -> Callable[..., None]:
    """A forward hook: when the gradient of the outputs is there, the network's backward begins."""

    def hook(network: nn.Module, inputs: Any, outputs: Any) -> None:
        _at_gradient(outputs, lambda _: parts.turn(part))

    return hook


def _turning_at_features(parts: _Parts) -> Callable[..., None]:
    """A forward hook of the method: at its inputs' gradient the backbone's backward begins."""

    def hook(method: nn.Module, inputs: tuple[Any, ...]) -> None:
        encoded: Encoded = inputs[0]
        student = [each.student for each in (encoded.patches, encoded.anchored) if each is not None]
        _at_gradient([encoded.features, *student], lambda _: parts.turn("backbone, backward"))

    return hook


def _at_gradient(outputs: Any, then: Callable[[Tensor], None]) -> None:
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.grad_fn is not None:
            tensor.register_hook(then)
