"""What losses exchange with gloo on this machine, beside what is counted and what a model expects.

    python benchmarks/scaling/check.py --report benchmarks/results/scaling-gloo.md

runs losses on 1, 2, 4 and 8 processes, compares what they send with what `counting.py` counts, and
the sum of their collectives' times, given the latency and bandwidth found just before, with the
clock.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CASES
from counting import counted, size_of
from tables import amount, milliseconds, row, table_head, write_table
from torch import Tensor

WORLDS = (1, 2, 4, 8)
ROUNDS = 15


class Recorded:
    """Calls torch.distributed's collectives, notes what they send, and can send it once more."""

    def __init__(self) -> None:
        self.collectives: list[tuple[str, int]] = []
        self.calls: list[Callable[[], Any]] = []
        self.original = {name: getattr(dist, name) for name in self.kinds()}

    @staticmethod
    def kinds() -> dict[str, tuple[str, int]]:
        """By function: its collective, and the position of the argument that a process sends."""
        return {
            "all_gather_into_tensor": ("all-gather", 1),
            "reduce_scatter_tensor": ("reduce-scatter", 0),
            "all_reduce": ("all-reduce", 0),
            "broadcast": ("broadcast", 0),
        }

    def functions(self) -> dict[str, Any]:
        return {
            **{name: partial(self.call, name) for name in self.kinds()},
            "batch_isend_irecv": self.ring_shift,
        }

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        kind, which = self.kinds()[name]
        told = args[which].dtype in (torch.int64, torch.float64)  # what hosts tell each other
        self.collectives.append(("host" if told else kind, size_of(args[which])))
        again = {key: value for key, value in options.items() if key != "async_op"}
        others = [
            torch.zeros_like(arg.detach()) if isinstance(arg, Tensor) else arg for arg in args
        ]
        self.calls.append(partial(self.original[name], *others, **again))
        return self.original[name](*args, **options)

    def ring_shift(self, operations: list[Any]) -> list[Any]:
        self.collectives.append(("ring shift", size_of(operations[0].tensor)))
        others = [dist.P2POp(o.op, torch.zeros_like(o.tensor), o.peer) for o in operations]
        self.calls.append(lambda: [work.wait() for work in self.original_ring(others)])
        return self.original_ring(operations)

    original_ring = staticmethod(dist.batch_isend_irecv)

    def send_again(self) -> None:
        for call in self.calls:
            call()


def train(call: Callable[[], Tensor]) -> None:
    call().backward()


def clock(function: Callable[[], Any]) -> float:
    """Median seconds of rounds that all processes begin together."""
    times = []
    for turn in range(ROUNDS + 2):
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter()
        function()
        if turn > 1:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def fitted() -> dict[str, tuple[float, float]]:
    """Latency and seconds per byte of every collective between these processes."""
    world, found = dist.get_world_size(), {}

    def gather(n: int) -> Callable[[], Any]:
        return partial(dist.all_gather_into_tensor, torch.empty(world * n), torch.ones(n))

    def scatter(n: int) -> Callable[[], Any]:
        return partial(dist.reduce_scatter_tensor, torch.empty(n), torch.ones(world * n))

    def shift(n: int) -> Callable[[], Any]:
        x, y = torch.ones(n), torch.empty(n)
        to, source = (dist.get_rank() + 1) % world, (dist.get_rank() - 1) % world

        def ring() -> None:
            for work in dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, y, source)]
            ):
                work.wait()

        return ring

    calls = {
        "all-gather": gather,
        "reduce-scatter": scatter,
        "all-reduce": lambda n: partial(dist.all_reduce, torch.zeros(n)),
        "broadcast": lambda n: partial(dist.broadcast, torch.ones(n), src=0),
        "ring shift": shift,
    }
    small, large = 16, 1 << 18
    for kind, make in calls.items():
        least, most = (clock(make(n)) for n in (small, large))
        per_byte = max(most - least, 0.0) / (4 * (large - small))
        found[kind] = (least - 4 * small * per_byte, per_byte)
    found["host"] = found["all-gather"]
    return found


def check_process(rank: int, world: int, folder: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world
    )
    costs = fitted() if world > 1 else {}
    for name, case in CASES.items():
        if case.check is None:
            continue
        torch.manual_seed(rank)
        inputs: list[Tensor] = []

        def new(*shape: int, inputs: list[Tensor] = inputs) -> Tensor:
            inputs.append(torch.randn(*shape, requires_grad=True))
            return inputs[-1]

        call = case.check(new)
        step = clock(partial(train, call))
        recorded = Recorded()
        with mock.patch.multiple(dist, **recorded.functions()):
            train(call)
        sent = clock(recorded.send_again)
        if rank == 0:
            predicted = sum(costs[k][0] + n * costs[k][1] for k, n in recorded.collectives)
            queue.put((name, sorted(recorded.collectives), step, sent, predicted))
    dist.destroy_process_group()


def checks() -> list[str]:
    """What the losses send with gloo, and how long that takes, beside what is expected."""
    lines = table_head(
        ["loss", "processes", "received", "as counted", "exchange, ms", "model, ms", "step, ms"]
    )
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found: dict[tuple[str, int], tuple] = {}
        for world in WORLDS:
            queue = context.SimpleQueue()
            mp.spawn(check_process, (world, folder, queue), nprocs=world)
            while not queue.empty():
                name, *rest = queue.get()
                found[name, world] = tuple(rest)
    for name in CASES:
        for world in WORLDS:
            if (name, world) not in found:
                continue
            collectives, step, sent, predicted = found[name, world]
            expected = counted(CASES[name], world, torch.float32, checking=True)
            same = sorted(expected.collectives) == [tuple(c) for c in collectives]
            cells = [f"`{name}`", str(world), amount(expected.received(world))]
            cells += ["yes" if same else "NO", *map(milliseconds, (sent, predicted, step))]
            lines.append(row(cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    values = parser.parse_args()
    notes = ["Processes of one thread each; medians. The model's costs were fitted just before."]
    write_table("The exchange of the losses with gloo", notes, checks(), values.report)


if __name__ == "__main__":
    main()
