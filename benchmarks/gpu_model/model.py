"""How long a launch should take, and what limits it.

A launch takes LAUNCH, and besides the longest of what it needs of each unit, at shares of the
makers' figures. Units of an SM are idle where it has no block: the last wave of blocks counts as a
whole one, and few warps fill them in part. Global memory is as fast as there are threads to wait
for it. Latencies inside of a block, caches and the mix of instructions are not modelled.
"""

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_model.chips import Chip
from benchmarks.gpu_model.resources import Resources
from benchmarks.gpu_model.work import WORK, Work

# The same for all kernels, chosen by the times measured on an H100 (calibrate.py).
LAUNCH = 4e-6  # s: from its start to the end, of a kernel with nearly nothing to do
MEMORY = 0.6  # of the maker's figure; a copy by PyTorch reaches 0.9
TENSOR = 0.25  # by mma.sync, which on Hopper cannot reach the figure, with what feeds it
SIMPLE = 0.15  # of multiply-adds: loads, conversions and addresses take the other instructions
SPECIAL = 0.2
SPECIAL_PER_CLOCK = 16  # of an SM, by the programming guide
# Bytes that a thread waits for at a time, and for how long: by Little's law the rate of a chip that
# is not full.
IN_FLIGHT = 32
LATENCY = 0.8e-6  # s
FULL_WARPS = 8  # of an SM: fewer leave arithmetic units waiting


@dataclass(frozen=True)
class Prediction:
    """Of one launch: blocks that an SM holds, waves, microseconds, and by what."""

    blocks_per_sm: int
    waves: float
    microseconds: float | None
    limiter: str


def short(kernel: str) -> str:
    """A kernel's name without namespaces, types and arguments."""
    name = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split("[<(]", name)[0].split("::")[-1]


def text_of(case: dict[str, int]) -> str:
    """A case as in the tables of measured times."""
    return " ".join(f"{name}={value}" for name, value in case.items())


def work_of(operator: str, case: dict[str, int], dtype: str, launch: dict[str, Any]) -> Work | None:
    """What one of the launches of a step has to do, if that is known."""
    formula = WORK.get((operator, short(launch["kernel"])))
    if formula is None:
        return None
    work, count = formula(case, 4 if dtype == "float32" else 2), launch["count"]
    return Work(*(part / count for part in (work.moved, work.tensor, work.simple, work.special)))


def predict(
    launch: dict[str, Any], resources: Resources, work: Work | None, chip: Chip
) -> Prediction:
    """Of a launch, as record_launches.py has them.

    Raises:
        ValueError: No SM of the chip holds a block.
    """
    shared = resources.static_shared + launch["shared"]
    fit = chip.blocks_per_sm(launch["threads"], resources.registers, shared)
    if fit == 0:
        raise ValueError(f"no block of {launch['kernel']} fits an SM of {chip.name}")
    waves = launch["blocks"] / (fit * chip.sms)
    if work is None:
        return Prediction(fit, waves, None, "")
    # The busiest SM's share of the blocks, beside that of an even division.
    busiest = -(-launch["blocks"] // chip.sms)
    warps = min(fit, busiest) * -(-launch["threads"] // 32)
    busy = launch["blocks"] / (chip.sms * busiest) * min(1, warps / FULL_WARPS)
    threads = launch["threads"] * min(launch["blocks"], fit * chip.sms)
    rates = {
        "memory": min(MEMORY * chip.memory, threads * IN_FLIGHT / LATENCY),
        "tensor": TENSOR * chip.tensor / 2 * busy,
        "float32": SIMPLE * chip.simple / 2 * busy,
        "special": SPECIAL * SPECIAL_PER_CLOCK * chip.sms * chip.clock * busy,
    }
    needs = (work.moved, work.tensor, work.simple, work.special)
    seconds = {name: need / rate for (name, rate), need in zip(rates.items(), needs, strict=True)}
    limiter = max(seconds, key=seconds.__getitem__)
    name = "launch" if seconds[limiter] < LAUNCH else limiter
    return Prediction(fit, waves, 1e6 * (LAUNCH + seconds[limiter]), name)
