"""How long a launch should take, and what limits it.

A launch takes Constants.launch, and besides the longest of what it needs of each unit, at shares of
the makers' figures. An SM computes as fast as it has warps, up to some number; those that are done
wait for the one that is given the most blocks. How many of these it holds at once (the waves of the
table) matters only by the number of its warps. Global memory is as fast as there are threads to
wait for it. Latencies inside of a block, caches and the mix of instructions are not modelled.
"""

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_model.chips import Chip
from benchmarks.gpu_model.resources import Resources
from benchmarks.gpu_model.work import WORK, Work

SPECIAL_PER_CLOCK = 16  # of an SM, by the programming guide
LATENCY = 0.8e-6  # s, of global memory


@dataclass(frozen=True)
class Constants:
    """What the model assumes of all kernels and chips, chosen by measured times (calibrate.py).

    Attributes:
        launch: Seconds from start to end of a kernel with nearly nothing to do.
        memory: Share of the maker's bandwidth that kernels reach; a copy by PyTorch reaches 0.9.
        tensor: Share of the maker's figure that each warp of an SM adds: by mma.sync, which on
            Hopper cannot reach the figure, with what feeds it.
        simple: The same for multiply-adds: loads, conversions and addresses take the other
            instructions.
        special: The same for SPECIAL_PER_CLOCK.
        full_warps: Warps of an SM beyond which more are no faster.
        in_flight: Bytes that a thread waits for at a time: with LATENCY, by Little's law, the rate
            of a chip that is not full.
    """

    launch: float = 3e-6
    memory: float = 0.6
    tensor: float = 0.03
    simple: float = 0.015
    special: float = 0.015
    full_warps: float = 32
    in_flight: float = 48


CONSTANTS = Constants()


@dataclass(frozen=True)
class Prediction:
    """Of one launch: blocks that an SM holds, waves, microseconds, and what limits it."""

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


def work_of(step: dict[str, Any], launch: dict[str, Any]) -> Work | None:
    """What one of the launches of a step has to do, if that is known: its kernel's share."""
    kernel = short(launch["kernel"])
    formula = WORK.get((step["operator"], kernel))
    if formula is None:
        return None
    work = formula(step["case"], 4 if step["dtype"] == "float32" else 2)
    count = sum(each["count"] for each in step["launches"] if short(each["kernel"]) == kernel)
    return Work(*(part / count for part in (work.moved, work.tensor, work.simple, work.special)))


def predict(
    launch: dict[str, Any],
    resources: Resources,
    work: Work | None,
    chip: Chip,
    constants: Constants = CONSTANTS,
) -> Prediction:
    """Predicts a launch of record_launches.py.

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
    busiest = -(-launch["blocks"] // chip.sms)  # blocks, one after the other or at once
    warps = min(fit, busiest) * -(-launch["threads"] // 32)
    # Warps that work in an SM, on average of all of them.
    working = launch["blocks"] / (chip.sms * busiest) * min(warps, constants.full_warps)
    threads = launch["threads"] * min(launch["blocks"], fit * chip.sms)
    rates = {
        "memory": min(constants.memory * chip.memory, threads * constants.in_flight / LATENCY),
        "tensor": constants.tensor * chip.tensor / 2 * working,
        "float32": constants.simple * chip.simple / 2 * working,
        "special": constants.special * SPECIAL_PER_CLOCK * chip.sms * chip.clock * working,
    }
    needs = (work.moved, work.tensor, work.simple, work.special)
    seconds = {name: need / rate for (name, rate), need in zip(rates.items(), needs, strict=True)}
    limiter = max(seconds, key=seconds.__getitem__)
    name = "launch" if seconds[limiter] < constants.launch else limiter
    return Prediction(fit, waves, 1e6 * (constants.launch + seconds[limiter]), name)
