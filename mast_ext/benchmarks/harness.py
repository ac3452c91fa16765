"""How operators are compared: what a workload is, and how its contestants are timed.

* Every contestant gets the same random tensors, and must agree with the first on the result: in 16
  bits to a few roundings, as most rivals round their loss, and much before it, to 16 bits.
* Contestants are timed in turn, round by round, so that a drift of the machine hits all of them;
  medians are quoted, and ratios of medians of one run.
* On the CPU: a turn is one call that is not timed and one that is. The first pays for what the
  contestant before did: a core that idled, or memory that went back to the system, takes
  milliseconds to be had again, most of all on a virtual machine.
* Without torch.compile where TORCHDYNAMO_DISABLE=1, which saves most of the time.
* On a GPU: CUDA events around one call, after a sweep over a buffer larger than the L2 cache.
* Memory: the most that is held beyond the inputs. On a GPU by the allocator; on the CPU by the peak
  resident memory of a process of its own (`mast_ext.benchmarks.peak_memory`).
"""

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

L2_SWEEP_BYTES = 256 << 20
MODES = ["forward", "forward + backward"]
SECONDS_PER_CONTESTANT = 20.0  # by default: slow ones get fewer rounds, three at least

Case = dict[str, int]


@dataclass(frozen=True)
class Workload:
    """An operator's inputs and the ways of computing one scalar loss from them.

    Attributes:
        name: What the operator, or what of it is measured, is called.
        cases: Sizes, smallest first.
        gpu_cases: Sizes that only a GPU is asked for.
        inputs: Makes the tensors of a case; those of floating point get a gradient.
        contestants: Name to function of the tensors; the first is ours.
        beside: What is timed beside them though its result is another.
        tolerance: How far contestants may differ from ours, relative to the loss, or to 0.01 where
            it is smaller.
        backward: Whether there is a backward pass.
        least: Of a case, the elements that a step must read or write at least, and the operations
            of its matrix products.
        measured: The classes, where users call these and not the operator.
        graph: Whether ours can be captured into a CUDA graph: not if it seeds a generator.
    """

    name: str
    cases: list[Case]
    inputs: Callable[..., tuple[Tensor, ...]]
    contestants: dict[str, Callable[..., Tensor]]
    gpu_cases: tuple[Case, ...] = ()
    beside: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    tolerance: float = 1e-3
    backward: bool = True
    least: Callable[..., tuple[int, int]] | None = None
    measured: str = ""
    graph: bool = True

    def tolerance_in(self, dtype: torch.dtype) -> float:
        """How far contestants may differ in a dtype."""
        return max(self.tolerance, torch.finfo(dtype).eps if dtype.itemsize == 2 else 0)

    def dtype_on(self, device: str) -> torch.dtype:
        """The dtype that is measured on a device: that of most training there."""
        return torch.bfloat16 if device == "cuda" else torch.float32

    def least_work(self, case: Case, mode: str, dtype: torch.dtype) -> tuple[int, int] | None:
        """Bytes that a step must move at least, and operations of its products; None if unknown.

        Known of a whole step alone: a forward pass that a backward pass belongs to moves fewer.
        """
        if self.least is None or (self.backward and mode == MODES[0]):
            return None
        elements, operations = self.least(**case)
        return elements * dtype.itemsize, operations

    def runs(self) -> list[tuple[str, Case]]:
        """What there is to measure: device and case."""
        everywhere = [(device, case) for device in ("cpu", "cuda") for case in self.cases]
        return everywhere + [("cuda", case) for case in self.gpu_cases]

    def make_inputs(self, case: Case, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The tensors of a case, the same ones each time."""
        torch.manual_seed(0)
        made = self.inputs(**case, dtype=dtype)
        return tuple(t.to(device).requires_grad_(t.is_floating_point()) for t in made)


def lightly_rivals(loss: str) -> dict[str, Callable[..., Tensor]]:
    """The loss of that name of lightly, eager and compiled; nothing where it is not installed."""
    if importlib.util.find_spec("lightly") is None:
        return {}
    module = getattr(importlib.import_module("lightly.loss"), loss)()
    compiled = torch.compile(module, dynamic=False)
    return {"lightly": module, "torch.compile(lightly)": compiled}


@dataclass(frozen=True)
class Result:
    """A contestant in one case: milliseconds by round, and bytes held beyond the inputs."""

    name: str
    milliseconds: list[float]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Of the milliseconds."""
        return statistics.median(self.milliseconds)


class DisagreementError(ValueError):
    """Contestants do not agree on a result, so that their times are of no use."""


def step_of(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], mode: str
) -> Callable[[], object]:
    """One timed call: the loss alone, or with the gradients of all inputs."""
    leaves = [t for t in inputs if t.requires_grad]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*inputs), leaves)

    return forward if mode == "forward" else both


class Clock:
    """Times one call of a step, in milliseconds."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.sweep = (
            torch.empty(L2_SWEEP_BYTES, dtype=torch.int8, device="cuda") if self.cuda else None
        )

    def __call__(self, step: Callable[[], object]) -> float:
        if self.sweep is None:
            step()
            begin = time.perf_counter()
            step()
            return (time.perf_counter() - begin) * 1e3
        self.sweep.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def race(
    workload: Workload,
    case: Case,
    mode: str,
    device: str,
    rounds: int,
    seconds: float = SECONDS_PER_CONTESTANT,
    *,
    compiled: bool = True,
    memory: bool = True,
) -> list[Result]:
    """Times all contestants of a case in turn.

    Args:
        workload: What is compared.
        case: Its sizes.
        mode: One of `MODES`.
        device: ``"cpu"`` or ``"cuda"``.
        rounds: Timed calls of each contestant.
        seconds: For all calls of one; of slow ones fewer are timed, three at least.
        compiled: Whether contestants of torch.compile take part.
        memory: Whether memory is measured, which on the CPU takes a process for each contestant.

    Raises:
        DisagreementError: A contestant's result is not ours.
    """
    compiled = compiled and os.environ.get("TORCHDYNAMO_DISABLE") != "1"
    dtype = workload.dtype_on(device)
    inputs = workload.make_inputs(case, device, dtype)
    steps, losses = {}, {}
    for name, function in (workload.contestants | workload.beside).items():
        if name.startswith("torch.compile") and not compiled:
            continue
        if isinstance(function, torch.nn.Module):
            function.to(device)
        if name in workload.contestants:
            with torch.no_grad():
                losses[name] = function(*inputs).item()
        steps[name] = step_of(function, inputs, mode)
    if device == "cuda" and workload.graph:
        ours = next(iter(steps))
        steps[f"{ours}, CUDA graph"] = graphed(steps[ours])
    ours, ours_loss = next(iter(losses.items()))
    for name, loss in losses.items():
        if not abs(loss - ours_loss) <= workload.tolerance_in(dtype) * max(0.01, abs(ours_loss)):
            raise DisagreementError(
                f"{workload.name} of {case}: {name} gives {loss}, but {ours} gives {ours_loss}"
            )

    clock = Clock(device)
    budget = {}
    for name, step in steps.items():  # also the warm-up
        step()
        call = clock(step) / 1e3
        budget[name] = max(3, min(rounds, int(seconds / max(call, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds):
        for name, step in steps.items():
            if round_ < budget[name]:
                times[name].append(clock(step))
    peaks: dict[str, int | None] = dict.fromkeys(steps)
    if memory:
        peaks = {n: peak_bytes(workload, case, mode, device, n, step) for n, step in steps.items()}
    return [Result(name, times[name], peaks[name]) for name in steps]


def graphed(step: Callable[[], object]) -> Callable[[], None]:
    """The step captured into a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak_bytes(
    workload: Workload, case: Case, mode: str, device: str, name: str, step: Callable[[], object]
) -> int | None:
    """Bytes held beyond the inputs; on the CPU in full steps only, as each costs a process."""
    if name not in workload.contestants:
        return None
    if device == "cpu" and (mode == "forward" or sys.platform != "linux"):
        return None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, "-m", "mast_ext.benchmarks.peak_memory", workload.name, name]
    child = subprocess.run([*command, json.dumps(case), mode], capture_output=True, text=True)
    if child.returncode != 0:
        said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise RuntimeError(f"memory of {name} in {workload.name} was not measured: {said[-1]}")
    return json.loads(child.stdout.splitlines()[-1])
