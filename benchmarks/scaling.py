"""What losses exchange, hold and compute on many processes: counted, predicted, and checked.

    python benchmarks/scaling.py --report benchmarks/results/scaling.md
    python benchmarks/scaling.py --check --report benchmarks/results/scaling-gloo.md

The first runs losses (`CASES`) as one process of up to 4,096 would, on tensors that have a shape
and no values: the others are taken to hold what it holds. What it sends, the most it holds at a
time and its operations are counted from that run. The times are a model's: of every operation the
longer of its arithmetic and of its memory traffic, of every collective latency and bandwidth
(`Machine`). Arithmetic is that of matrix products; of decompositions only memory traffic counts. No
GPU has been asked.

The second runs losses on 1, 2, 4 and 8 processes with gloo on this machine, compares what they send
with what is counted, and the model, given the latency and bandwidth found here, with the clock.
"""

import argparse
import contextlib
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mast_ext import losses

WORLDS = (1, 8, 64, 512, 4096)
CHECKED_WORLDS = (1, 2, 4, 8)
ROUNDS = 15


# ---- The losses, as a process calls them


@dataclass(frozen=True)
class Case:
    """A loss, and what it is called with on every process.

    Attributes:
        sizes: In words, for the table.
        make: Takes a function from a shape to a tensor; returns what computes the loss.
        check: The same with sizes that this machine computes in milliseconds.
    """

    sizes: str
    make: Callable[[Callable[..., Tensor]], Callable[[], Tensor]]
    check: Callable[[Callable[..., Tensor]], Callable[[], Tensor]] | None = None


def two(loss: Callable[[], torch.nn.Module], batch: int, dim: int) -> Callable:
    """A loss of two views."""
    return lambda new: partial(loss(), new(batch, dim), new(batch, dim))


def of(loss: Callable[[], torch.nn.Module], *shape: int) -> Callable:
    return lambda new: partial(loss(), new(*shape))


def dino(batch: int, prototypes: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        teacher = [new(batch, prototypes).detach() for _ in range(2)]
        student = [new(batch, prototypes) for _ in range(10)]
        loss = losses.DINOLoss(prototypes).to(teacher[0].device)
        return partial(loss, teacher, student)

    return make


def swav(batch: int, prototypes: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        high = [new(batch, prototypes) for _ in range(2)]
        low = [new(batch, prototypes) for _ in range(6)]
        return partial(losses.SwaVLoss(sinkhorn_gather_distributed=True), high, low)

    return make


def mast(batch: int, dim: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        x, y = new(batch, dim), new(batch, dim)
        masks = losses.AugmentationMasks((0.125, 0.0), dim).to(x.device)
        changed = torch.ones(batch, 2, dtype=torch.bool, device=x.device)
        loss = losses.MASTLoss(masks, gather_distributed=True)
        return lambda: loss(x, y, changed).loss

    return make


def lejepa(batch: int, dim: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        views = [new(2, batch, dim), new(6, batch, dim)]
        loss = losses.LeJEPALoss(gather_distributed=True)
        return lambda: loss(global_proj=views[0], local_proj=views[1])

    return make


NTXENT = partial(losses.NTXentLoss, gather_distributed=True)
CLIP = partial(losses.InfoNCELoss, two_sided=True, gather_distributed=True)
SIGLIP = partial(losses.SigLIPLoss, gather_distributed=True)
VICREG = partial(losses.VICRegLoss, gather_distributed=True)
BARLOW = partial(losses.BarlowTwinsLoss, gather_distributed=True)
KOLEO = partial(losses.KoLeoLoss, gather_distributed=True)
FROSSL = partial(losses.FroSSLLoss, gather_distributed=True)
EMPSSL = partial(losses.EMPSSLLoss, gather_distributed=True)
TICO = partial(losses.TiCoLoss, gather_distributed=True)

CASES = {
    "NTXentLoss": Case("2 views, B 256, D 256", two(NTXENT, 256, 256), two(NTXENT, 64, 128)),
    "InfoNCELoss, two-sided": Case("B 256, D 512", two(CLIP, 256, 512), two(CLIP, 64, 128)),
    "SigLIPLoss": Case("B 256, D 512", two(SIGLIP, 256, 512), two(SIGLIP, 64, 128)),
    "VICRegLoss": Case("2 views, B 64, D 8192", two(VICREG, 64, 8192), two(VICREG, 64, 512)),
    "BarlowTwinsLoss": Case("2 views, B 64, D 8192", two(BARLOW, 64, 8192), two(BARLOW, 64, 512)),
    "MASTLoss": Case("2 views, B 64, D 8192", mast(64, 8192), mast(64, 512)),
    "TiCoLoss": Case("2 views, B 64, D 2048", two(TICO, 64, 2048), two(TICO, 64, 512)),
    "FroSSLLoss": Case("4 views, B 64, D 2048", of(FROSSL, 4, 64, 2048), of(FROSSL, 4, 64, 256)),
    "EMPSSLLoss": Case("20 views, B 64, D 1024", of(EMPSSL, 20, 64, 1024)),
    "KoLeoLoss": Case("B 64, D 1024", of(KOLEO, 64, 1024), of(KOLEO, 64, 256)),
    "LeJEPALoss": Case("2 + 6 views, B 64, D 512", lejepa(64, 512), lejepa(64, 64)),
    "DINOLoss": Case("2 + 8 views, B 32, C 65536", dino(32, 65536), dino(16, 4096)),
    "SwaVLoss": Case("2 + 6 views, B 64, C 3000", swav(64, 3000), swav(64, 1000)),
}


# ---- Counting


@dataclass
class Count:
    """What one process does in a step.

    Attributes:
        collectives: What it took part in: the kind, and the bytes that each process brings.
        operations: Of every operation arithmetic operations in products of 16 bit, and of 32 bit,
            and bytes of its operands and results.
        peak: The most bytes at a time beyond the inputs, but for what an operator needs meanwhile.
    """

    collectives: list[tuple[str, int]] = field(default_factory=list)
    operations: list[tuple[int, int, int]] = field(default_factory=list)
    peak: int = 0

    def received(self, world: int) -> float:
        """Bytes that a process receives."""
        shares = {
            "all-gather": world - 1,
            "reduce-scatter": world - 1,
            "all-reduce": 2 * (world - 1) / world,
            "broadcast": 1,
            "ring shift": 1,
        }
        return sum(shares[kind] * size for kind, size in self.collectives if kind in shares)


def size_of(x: Tensor) -> int:
    return x.numel() * x.element_size()


class Operations(TorchDispatchMode):
    """Counts operations and what they leave in memory, as they are carried out."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count, self.held, self.paused = count, 0, False
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = [t for t in made if self._is_new(t, given)]
        packet = func._overloadpacket
        counts = bool(new) and not packet.__name__.startswith(("empty", "new_empty"))
        counts = (counts or func._schema.is_mutable) and all(t.is_meta for t in given + made)
        if counts and not self.paused:
            formula = flop_registry.get(packet) or PRODUCTS.get(packet.__name__)
            products = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
            wide = max((t.element_size() for t in given), default=4) > 2
            # Ours make several 16 bit products of one of float32.
            wide = wide and not str(packet).startswith("mast_ext")
            moved = sum(map(size_of, given + new))
            self.count.operations.append((0, products, moved) if wide else (products, 0, moved))
        return out

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """For what stands in for the network."""
        self.paused = True
        yield
        self.paused = False

    def _is_new(self, x: Tensor, given: list[Tensor]) -> bool:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self.storages or any(key == t.untyped_storage()._cdata for t in given):
            return False
        self.held += storage.nbytes()
        self.count.peak = max(self.count.peak, self.held)
        self.storages[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
        return True

    def _freed(self, key: int, size: int) -> None:
        self.held -= size
        del self.storages[key]


def contrastive(x: Tensor, y: Tensor | None, masks: Tensor | None, *_: Any, **__: Any) -> int:
    y = x if y is None else y
    subspaces = 1 if masks is None else len(masks)
    return 2 * subspaces * x.shape[0] * y.shape[0] * x.shape[1] * y.shape[1] * x.shape[2]


def statistics_of(z: Tensor, masks: Tensor | None, *_: Any, **__: Any) -> int:
    rows, dim = z.shape[-2:]
    subspaces = 1 if masks is None else len(masks)
    return 2 * subspaces * z.numel() * min(rows, dim)


# Arithmetic operations in the matrix products of our operators; the others of `CASES` have none.
# Backward passes make the products of the forward pass anew where these are not kept.
PRODUCTS: dict[str, Callable[..., int]] = {
    "contrastive_logsumexp": contrastive,
    "contrastive_logsumexp_backward": lambda _, __, x, y, masks, *___, **____: (
        2 * contrastive(x, y, masks)
    ),
    "variance_covariance": statistics_of,
    "variance_covariance_backward": lambda _, __, z, masks, *___, **____: statistics_of(z, masks),
    "cross_correlation_penalty": lambda a, *_, **__: 2 * a.numel() * min(2 * len(a), a.shape[1]),
    "cross_correlation_penalty_backward": lambda _, a, *__, **___: (
        4 * a.numel() * min(2 * len(a), a.shape[1])
    ),
    "nearest_neighbor_distance": lambda x, *_, **__: len(x) * x.numel(),
    "sigmoid_contrast": lambda x, y, *_, **__: 2 * x.numel() * len(y),
    "sigmoid_contrast_backward": lambda _, x, y, *__, **___: 6 * x.numel() * len(y),
    "sigmoid_contrast_with_grad": lambda x, y, *_, **__: 6 * x.numel() * len(y),
    "sliced_characteristic_sums": lambda z, slices, *_, **__: 2 * z.numel() * slices.shape[1],
    "sliced_characteristic_sums_backward": lambda _, z, slices, *__, **___: (
        2 * z.numel() * slices.shape[1]
    ),
}


class OthersAlike:
    """Stands for torch.distributed where every other process does what this one does."""

    def __init__(self, world: int, operations: Operations) -> None:
        self.world, self.count, self.operations = world, operations.count, operations

    def functions(self) -> dict[str, Any]:
        return {
            "is_initialized": lambda: True,
            "get_world_size": lambda: self.world,
            "get_rank": lambda: 0,
            "get_backend_config": lambda: "cpu:alike",
            "all_gather_into_tensor": self.all_gather,
            "reduce_scatter_tensor": self.reduce_scatter,
            "all_reduce": self.all_reduce,
            "broadcast": self.broadcast,
            "P2POp": lambda call, x, _: (call, x),
            "batch_isend_irecv": self.ring_shift,
        }

    def all_gather(self, out: Tensor, x: Tensor, group: Any = None) -> None:
        # What hosts tell each other, sizes of batches, is in the memory of the CPU.
        self.count.collectives.append(("all-gather" if x.is_meta else "host", size_of(x)))
        with self.operations.pause():
            out.view(self.world, *x.shape).copy_(x)

    def reduce_scatter(self, out: Tensor, x: Tensor) -> None:
        self.count.collectives.append(("reduce-scatter", size_of(out)))
        with self.operations.pause():
            out.copy_(x[: len(out)])

    def all_reduce(self, x: Tensor, _: Any = None, async_op: bool = False) -> Any:
        self.count.collectives.append(("all-reduce", size_of(x)))
        with self.operations.pause():
            x.mul_(self.world)
        return mock.Mock() if async_op else None

    def broadcast(self, x: Tensor, src: int) -> None:
        self.count.collectives.append(("broadcast", size_of(x)))

    def ring_shift(self, operations: list[tuple[Any, Tensor]]) -> list[Any]:
        (_, sent), (_, received) = operations
        self.count.collectives.append(("ring shift", size_of(sent)))
        with self.operations.pause():
            received.copy_(sent)
        return []


def counted(case: Case, world: int, dtype: torch.dtype, checking: bool = False) -> Count:
    """What a step of the loss, forward and backward, takes on one of ``world`` processes."""
    count = Count()
    make = case.check if checking and case.check else case.make
    call = make(partial(torch.empty, dtype=dtype, device="meta", requires_grad=True))
    with contextlib.ExitStack() as stack:
        operations = Operations(count)
        if world > 1:
            alike = OthersAlike(world, operations).functions()
            stack.enter_context(mock.patch.multiple(dist, **alike))
        stack.enter_context(operations)
        call().backward()
    return count


# ---- The model


@dataclass(frozen=True)
class Machine:
    """What the model believes of a GPU and its network. None of these was measured by us.

    Attributes:
        products: Arithmetic operations per second in products of 16 bit matrices: 45 % of an H200's
            peak, the speed our kernels are designed for.
        wide_products: The same of torch's products in float32, which are not rounded to TF32.
        memory: Bytes per second from and to the GPU's memory: 85 % of an H200's peak.
        launch: Seconds that any operation takes at least.
        node: GPUs that NVLink connects.
        link: Bytes per second and direction of a GPU's NVLink.
        network: Bytes per second of a GPU's network adapter: 400 Gb/s.
        link_latency: Seconds of a step of a collective inside a node.
        network_latency: Seconds of a step between nodes.
    """

    products: float = 0.45 * 790e12
    wide_products: float = 0.75 * 67e12
    memory: float = 0.85 * 4.8e12
    launch: float = 4e-6
    node: int = 8
    link: float = 450e9
    network: float = 50e9
    link_latency: float = 3e-6
    network_latency: float = 10e-6

    def compute(self, count: Count) -> float:
        """Seconds of one step without its exchange."""
        return sum(
            max(self.launch, few / self.products + many / self.wide_products, moved / self.memory)
            for few, many, moved in count.operations
        )

    def exchange(self, count: Count, world: int) -> float:
        """Seconds of its exchange, if nothing else is done meanwhile."""
        return sum(self.collective(kind, size, world) for kind, size in count.collectives)

    def collective(self, kind: str, size: int, world: int) -> float:
        """Seconds of a collective to which every process brings ``size`` bytes.

        Rings, one through each adapter of a node, which move the bytes together. A sum is a ring,
        or two passes over a tree of nodes, whichever is faster.
        """
        if world == 1 or kind == "host":  # the hosts' message is hidden behind what a GPU does
            return 0.0
        nodes = math.ceil(world / self.node)
        within = world - nodes
        rate = self.link if nodes == 1 else min(self.link, self.node * self.network)
        hops = within * self.link_latency + (nodes - 1) * self.network_latency
        ring = hops + (world - 1) * size / rate
        if kind in ("all-gather", "reduce-scatter"):
            return ring
        if kind == "ring shift":
            one = (
                (self.link_latency, self.link)
                if nodes == 1
                else (self.network_latency, self.network)
            )
            return one[0] + size / one[1]
        depth = math.ceil(math.log2(nodes)) * self.network_latency
        depth += (min(world, self.node) - 1) * self.link_latency
        if kind == "broadcast":
            return depth + size / rate
        return 2 * min(hops + (world - 1) * size / world / rate, depth + size / rate)


# ---- The tables


def amount(size: float) -> str:
    """Bytes, with three digits at most."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def predictions(machine: Machine, dtype: torch.dtype) -> list[str]:
    """Of every loss a row per quantity, a column per number of processes."""
    lines = table_head(["loss", "on every process", "", *(f"{world:,}" for world in WORLDS)])
    for name, case in CASES.items():
        counts = {world: counted(case, world, dtype) for world in WORLDS}
        rows = {
            "received": [amount(c.received(w)) for w, c in counts.items()],
            "held": [amount(c.peak) for c in counts.values()],
            "computing, ms": [milliseconds(machine.compute(c)) for c in counts.values()],
            "exchange, ms": [milliseconds(machine.exchange(c, w)) for w, c in counts.items()],
        }
        first = (f"`{name}`", case.sizes)
        for quantity, cells in rows.items():
            lines.append(row([*first, quantity, *cells]))
            first = ("", "")
    return lines


def table_head(names: list[str]) -> list[str]:
    return [row(names), row(["---"] * len(names))]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---- The check with gloo


class Recorded:
    """Calls torch.distributed's collectives, notes what they send, and can send it once more."""

    def __init__(self) -> None:
        self.collectives: list[tuple[str, int]] = []
        self.calls: list[Callable[[], Any]] = []
        self.original = {name: getattr(dist, name) for name in self.kinds()}

    @staticmethod
    def kinds() -> dict[str, tuple[str, int]]:
        """Of every function the collective, and which argument is what a process brings."""
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
        for world in CHECKED_WORLDS:
            queue = context.SimpleQueue()
            mp.spawn(check_process, (world, folder, queue), nprocs=world)
            while not queue.empty():
                name, *rest = queue.get()
                found[name, world] = tuple(rest)
    for name in CASES:
        for world in CHECKED_WORLDS:
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
    parser.add_argument("--check", action="store_true", help="Compare with gloo on this machine.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    for name, value in vars(Machine()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="See Machine.")
    values = parser.parse_args()
    machine = Machine(**{name: getattr(values, name) for name in vars(Machine())})

    if values.check:
        title = "The exchange of the losses with gloo"
        notes = [
            "Processes of one thread each; medians; the model's costs were fitted just before."
        ]
        table = checks()
    else:
        title = "The losses on many processes, by a model"
        believed = ", ".join(f"{name} {value:.4g}" for name, value in vars(machine).items())
        notes = [f"Embeddings in {values.dtype}. No GPU was asked. The model believes: {believed}."]
        table = predictions(machine, getattr(torch, values.dtype))
    text = "\n".join(
        [
            f"# {title}",
            "",
            *notes,
            "",
            f"* torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores",
            f"* command: `python {shlex.join(sys.argv)}`",
            "",
            *table,
        ]
    )
    print(text)
    if values.report is not None:
        values.report.write_text(text + "\n")


if __name__ == "__main__":
    main()
