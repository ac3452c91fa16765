"""What losses exchange, hold and compute on up to 4,096 processes: counted, and times predicted.

    python benchmarks/scaling/predict.py --report benchmarks/results/scaling.md

runs losses (`cases.py`) as one of many processes would, on tensors that have a shape and no values:
the others are taken to hold what it holds. What it sends, the most it holds at a time and its
operations are counted from that run (`counting.py`). The times are a model's: of every operation
the longer of its arithmetic and of its memory traffic, of every collective latency and bandwidth
(`Machine`). Arithmetic is that of matrix products; of decompositions only memory traffic counts. No
GPU has been asked.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import CASES
from counting import Count, counted
from tables import amount, milliseconds, row, table_head, write_table

WORLDS = (1, 8, 64, 512, 4096)


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


def predictions(machine: Machine, dtype: torch.dtype) -> list[str]:
    """The table: for every loss a row per quantity, a column per number of processes."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    for name, value in vars(Machine()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="See Machine.")
    values = parser.parse_args()
    machine = Machine(**{name: getattr(values, name) for name in vars(Machine())})
    believed = ", ".join(f"{name} {value:.4g}" for name, value in vars(machine).items())
    notes = [f"Embeddings in {values.dtype}. No GPU was asked. The model believes: {believed}."]
    table = predictions(machine, getattr(torch, values.dtype))
    write_table("The losses on many processes, by a model", notes, table, values.report)


if __name__ == "__main__":
    main()
