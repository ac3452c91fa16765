"""The speed that operators were designed for, beside the model's and the measured one.

Targets of forward and backward in bfloat16 on an H200; written to benchmarks/results/gpu-targets.md
by __main__.py.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.chips import H200
from benchmarks.gpu_model.measured import RESULTS
from benchmarks.gpu_model.model import CONSTANTS, predict, text_of, work_of
from benchmarks.gpu_model.resources import AllResources, find

HEAD = """\
# Design targets of GPU kernels

Forward and backward in bfloat16 on an H200 (selection: forward). *Predicted* is the model's sum of
our kernels (gpu-model.md), of which those that it does not model count as a launch each; *measured*
is of gpu-h200.md (rivals, CUDA graphs) and gpu-h200-kernels.md (times of all kernels, PyTorch's
matrix products among them). The floor is the time that a copy of as many bytes
as inputs, outputs and gradients have takes, the rate of products that of large ones, both measured
beside the kernels. –: the model does not say. `tests/emulation/test_launch_counts.py` has the
numbers of launches, of which at most 6 were aimed at for each loss. NT-Xent, Barlow Twins and
VICReg were measured with 9, 11 and 16 launches of small batches, and have 6 now.

| step | target | predicted | measured | |
|---|---|---:|---:|---|
"""
PRODUCTS = re.compile("nvjet|gemm|cutlass|xmma")  # kernels of PyTorch's products
GRAPH = "mast_ext, CUDA graph"


@dataclass(frozen=True)
class Step:
    """A step of which there is a target.

    Attributes:
        operator: Of benchmarks/ops, by its name there.
        case: Its sizes.
        race: Its name in gpu-h200.json.
        backward: Whether the backward pass is part of it.
    """

    operator: str
    case: dict[str, int]
    race: str
    backward: bool = True


@dataclass(frozen=True)
class Target:
    """What a step was designed to reach.

    Attributes:
        of: Which step.
        goal: In words.
        reached: Whether a value reaches it.
        unit: A format of values.
        predicted: The value by the microseconds of all kernels, if these tell it.
        measured: The value by the measurements, None if there is none.
    """

    of: Step
    goal: str
    reached: Callable[[float], bool]
    unit: str
    predicted: Callable[[float, "Measurements"], float] | None
    measured: Callable[["Measurements"], float | None]

    def cell(self, value: float | None) -> str:
        return "–" if value is None else self.unit.format(value)


@dataclass(frozen=True)
class Measurements:
    """What was measured of one step.

    Attributes:
        rates: Bytes per second of a copy, operations per second of products, by name.
        kernels: Of kernel_times.py: with elements, operations, and kernels and their times.
        milliseconds: Medians by contestant.
    """

    rates: Mapping[str, float]
    kernels: Mapping[str, Any] | None
    milliseconds: Mapping[str, float]

    def microseconds(self, only: re.Pattern[str] = re.compile("")) -> float | None:
        """Microseconds of all kernels whose name matches."""
        if self.kernels is None:
            return None
        return sum(count * us for name, count, us in self.kernels["kernels"] if only.search(name))

    def times(self, rival: str, ours: str = "mast_ext") -> float | None:
        """How many times as long a rival takes."""
        if rival not in self.milliseconds:
            return None
        return self.milliseconds[rival] / self.milliseconds[ours]

    def floor(self) -> float | None:
        """Microseconds in which all that must be moved is copied."""
        if self.kernels is None:
            return None
        return 1e6 * 2 * self.kernels["elements"] / self.rates["copy"]

    def of_products(self) -> float | None:
        """Microseconds of all operations, by large products."""
        if self.kernels is None:
            return None
        return 1e6 * self.kernels["operations"] / self.rates["bfloat16"]


def share(of: Callable[[Measurements], float | None], step: Step, percent: int) -> Target:
    """At least such a share of a limit."""

    def value(microseconds: float | None, known: Measurements) -> float | None:
        least = of(known)
        return None if least is None or microseconds is None else 100 * least / microseconds

    what = "the floor" if of is Measurements.floor else "the rate of products"
    return Target(
        step,
        f"≥ {percent} % of {what}",
        lambda found: found >= percent,
        "{:.0f} %",
        lambda microseconds, known: value(microseconds, known) or 0,
        lambda known: value(known.microseconds(), known),
    )


def faster(step: Step, rival: str, times: float, ours: str = "mast_ext") -> Target:
    """At least so many times as fast as a rival."""
    return Target(
        step,
        f"≥ {times:g}× {rival}" + (", in a CUDA graph" if ours == GRAPH else ""),
        lambda found: found >= times,
        "{:.1f}×",
        None,
        lambda known: known.times(rival, ours),
    )


def within(step: Step, microseconds: float) -> Target:
    """At most so long, all kernels together."""
    return Target(
        step,
        f"≤ {microseconds:g} us of kernels",
        lambda found: found <= microseconds,
        "{:.0f} us",
        lambda found, known: found,
        lambda known: known.microseconds(),
    )


def graph_within(step: Step, microseconds: float) -> Target:
    """At most so long in a CUDA graph."""
    return Target(
        step,
        f"≤ {microseconds:g} us in a CUDA graph",
        lambda found: found <= microseconds,
        "{:.0f} us",
        None,
        lambda known: 1e3 * known.milliseconds[GRAPH] if GRAPH in known.milliseconds else None,
    )


def beside_products(step: Step, times: float) -> Target:
    """At most so many times as long as the products in it."""

    def value(known: Measurements) -> float | None:
        own, products = known.microseconds(), known.microseconds(PRODUCTS)
        return own / products if own and products else None

    return Target(
        step,
        f"≤ {times:g}× its products by PyTorch",
        lambda found: found <= times,
        "{:.1f}×",
        None,
        value,
    )


PAIRS = {"views": 8, "batch": 4096, "dim": 2048, "subspaces": 16}
LARGE = {"batch": 1024, "dim": 8192}
SMALL = {"batch": 256, "dim": 128}
SIMILARITY = Step("subspace_similarity", PAIRS, "subspace_similarity")
NLL = Step("subspace_nll", PAIRS, "subspace_nll")
SELECTION = Step(
    "select_hard_pairs_nt_xent",
    {"views": 4, "batch": 1024, "dim": 128},
    "select_hard_pairs_nt_xent",
    backward=False,
)
PROTOTYPES = Step(
    "prototype_cross_entropy",
    {"teachers": 2, "students": 10, "batch": 64, "prototypes": 65536},
    "DINOLoss, IBOTPatchLoss",
)

TARGETS = [
    share(Measurements.floor, SIMILARITY, 60),
    faster(SIMILARITY, "GEMM form", 20),
    share(Measurements.floor, NLL, 60),
    faster(NLL, "GEMM form", 20),
    share(Measurements.of_products, Step("ntxent", {"batch": 32768, "dim": 256}, "NTXentLoss"), 45),
    *(
        faster(Step("contrastive_logsumexp", case, "contrastive_logsumexp"), "eager", 3)
        for case in (
            {"views": 2, "batch": 1024, "dim": 512, "subspaces": 8},
            {"views": 2, "batch": 1024, "dim": 2048, "subspaces": 16},
        )
    ),
    faster(SELECTION, "matmul per pair", 30),
    faster(SELECTION, "matmul per pair", 30, GRAPH),
    within(PROTOTYPES, 88),
    faster(Step("variance_covariance", LARGE, "VICRegLoss"), "lightly", 8),
    beside_products(Step("variance_covariance", LARGE, "VICRegLoss"), 1.4),
    beside_products(Step("cross_correlation_penalty", LARGE, "BarlowTwinsLoss"), 1.4),
    *(
        graph_within(Step(operator, SMALL, race), 20)
        for operator, race in (
            ("ntxent", "NTXentLoss"),
            ("variance_covariance", "VICRegLoss"),
            ("cross_correlation_penalty", "BarlowTwinsLoss"),
            ("negative_cosine_similarity", "NegativeCosineSimilarity"),
        )
    ),
]


def predicted(step: Step, launches: list[dict[str, Any]], resources: AllResources) -> float | None:
    """Microseconds of all kernels on an H200; a kernel without a prediction is a launch."""
    key = (step.operator, step.case, "bfloat16")
    found = [s for s in launches if (s["operator"], s["case"], s["dtype"]) == key]
    if not found:
        return None
    total = 0.0
    for launch in found[0]["launches"]:
        own = find(resources, launch["kernel"], H200.architecture)
        each = predict(launch, own, work_of(found[0], launch), H200).microseconds
        total += launch["count"] * (1e6 * CONSTANTS.launch if each is None else each)
    return total


def measurements(step: Step, results: Path = RESULTS) -> Measurements:
    """What the files in benchmarks/results say of a step."""
    times = json.loads((results / "gpu-h200-kernels.json").read_text())
    races = json.loads((results / "gpu-h200.json").read_text())["races"]
    mode = "forward + backward" if step.backward else "forward"
    key = (step.operator, step.case, "bfloat16", mode)
    found = [s for s in times["steps"] if (s["operator"], s["case"], s["dtype"], s["mode"]) == key]
    raced = [r for r in races if (r["operator"], r["case"], r["mode"]) == (step.race, *key[1::2])]
    medians = {
        each["name"]: statistics.median(each["milliseconds"])
        for race in raced
        for each in race["results"]
    }
    return Measurements(times["rates"], found[0] if found else None, medians)


def rows(launches: list[dict[str, Any]], resources: AllResources) -> Iterator[str]:
    """The rows of the table."""
    for target in TARGETS:
        known = measurements(target.of)
        by_model = None
        if target.predicted and (found := predicted(target.of, launches, resources)) is not None:
            by_model = target.predicted(found, known)
        found = target.measured(known)
        verdict = "" if found is None else "reached" if target.reached(found) else "missed"
        name = f"{target.of.race}, {text_of(target.of.case)}"
        cells = [name, target.goal, target.cell(by_model), target.cell(found), verdict]
        yield f"| {' | '.join(cells)} |"


def targets_table(launches: list[dict[str, Any]], resources: AllResources) -> str:
    """The page as Markdown."""
    return HEAD + "\n".join(rows(launches, resources)) + "\n"
