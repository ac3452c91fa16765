"""What every launch of a step needs of a GPU and how it fills one, without a GPU.

    python tests/emulation/build.py
    python benchmarks/gpu_model.py --report benchmarks/results/gpu-model.md

The emulator (tests/emulation) says what our contestant of every workload launches, at the sizes of
a GPU too, since launches are written down and not run. The compiler's report of a CUDA build says
what a kernel needs: registers and shared memory. From both follows how many thread blocks are in
flight at once; from launches, `Workload.least` and published rates, how long a step may take and
what takes most of it. Measured times (benchmarks/kernel_times.py) stand beside it where there are
any, and the table says how far they are from that.

FILE.json has what tests/emulation/test_gpu_model.py compares with.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EMULATED = ROOT / "build" / "emulation"
REPORTS = "build/*/CMakeFiles/mast_ext_cuda*.dir/csrc/kernels/**/*.ptxas"
MEASURED = ROOT / "benchmarks" / "results" / "gpu-h100-kernels.md"

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Chip:
    """A GPU, by its maker's data sheet and the CUDA programming guide's table of limits.

    Attributes:
        name: What it is called.
        architecture: Whose code it runs here; 8.9 runs that of 8.0.
        processors: Streaming multiprocessors (SMs).
        shared: Bytes of shared memory of an SM.
        threads: Most of an SM.
        blocks: Most of an SM.
        bandwidth: Bytes per second of its memory.
        products: Operations per second of dense bfloat16 products.
    """

    name: str
    architecture: str
    processors: int
    shared: int
    threads: int
    blocks: int
    bandwidth: float
    products: float

    def blocks_per_processor(self, threads: int, registers: int, shared: int) -> int:
        """Thread blocks of a kernel that an SM holds at once."""
        warps = -(-threads // 32)
        of_registers = 65536 // (-(-registers * 32 // 256) * 256) // 4 * 4 // warps
        of_shared = self.shared // (-(-shared // 128) * 128 + 1024)  # a kilobyte is the system's
        return min(of_registers, of_shared, self.threads // (32 * warps), self.blocks)


CHIPS = (
    Chip("H100 SXM", "sm_90a", 132, 228 << 10, 2048, 32, 3.35e12, 989e12),
    Chip("A100 SXM 80 GB", "sm_80", 108, 164 << 10, 2048, 32, 2.04e12, 312e12),
    Chip("RTX 4090", "sm_80", 128, 100 << 10, 1536, 24, 1.01e12, 165e12),
)
H200 = replace(CHIPS[0], name="H200", bandwidth=4.8e12)  # the same SMs

# Fitted by eye to the steps that were measured on an H100 (see `errors`): a launch of a small
# kernel, and by how much kernels of ours exceed the least time.
LAUNCH_SECONDS, OVER_MEMORY, OVER_PRODUCTS = 2.5e-6, 2.0, 3.5

Least = tuple[int, int] | None
"""Bytes that a step moves at least, and operations of its products."""


@dataclass(frozen=True)
class Launch:
    """One of a step's launches: the kernel's full name, and its shape."""

    kernel: str
    blocks: int
    threads: int
    dynamic_shared: int


@dataclass(frozen=True)
class Needs:
    """What the compiler says a kernel needs: registers of a thread, bytes of static memory."""

    registers: int
    shared: int


@dataclass(frozen=True)
class Row:
    """Equal launches of a step.

    Attributes:
        operator: The workload's name.
        case: Its sizes.
        kernel: Name with template arguments.
        launches: How many.
        blocks: Thread blocks of each.
        threads: Of a block.
        registers: Of a thread, by architecture.
        shared: Bytes of a block, static and dynamic.
        per_processor: Blocks that an SM holds at once, by chip.
        in_flight: Blocks that a chip holds at once, by chip.
    """

    operator: str
    case: str
    kernel: str
    launches: int
    blocks: int
    threads: int
    registers: dict[str, int]
    shared: int
    per_processor: dict[str, int]
    in_flight: dict[str, int]


Step = tuple[str, str, Least, list[Row]]
"""Operator, case, least work, launches."""


def needs_of_kernels() -> dict[tuple[str, str], Needs]:
    """By full name and architecture, from the compiler's reports; empty without a CUDA build."""
    entries = [
        entry for path in sorted(ROOT.glob(REPORTS)) for entry in ENTRY.finditer(path.read_text())
    ]
    names = "\n".join(entry["name"] for entry in entries)
    plain = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    found = {}
    for entry, name in zip(entries, plain.stdout.splitlines(), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        needs = Needs(int(entry["registers"]), int(shared[1]) if shared else 0)
        found[full_name(name), entry["architecture"]] = needs
    return found


def full_name(demangled: str) -> str:
    """The same for both compilers, which name what has no name differently."""
    return re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", demangled)


def short_name(kernel: str) -> str:
    """Without parameters and the namespaces that all share."""
    name = re.sub(r"\b(mast_ext|kernels|c10)::", "", kernel.removeprefix("void "))
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def record() -> Iterator[tuple[str, str, Least, list[Launch]]]:
    """Operator, case, least bytes and operations, and launches of every workload's step."""
    library = EMULATED / "libmast_ext.so"
    if not library.exists():
        sys.exit("there is no build of the emulated kernels: python tests/emulation/build.py")
    os.environ["MAST_EXT_LIBRARY"] = str(library)  # read when mast_ext is imported
    import torch

    from mast_ext.benchmarks.harness import MODES, step_of
    from mast_ext.benchmarks.ops import workloads
    from mast_ext.losses.common import variance_covariance

    variance_covariance.counts_calls = lambda x: True  # type: ignore[assignment]  # as on a GPU
    symbols = {}
    command = ["nm", "--demangle", EMULATED / "libemulated_kernels.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        place, _, symbol = line.partition(" ")
        if place:
            symbols[int(place, 16)] = full_name(symbol[2:])
    with tempfile.TemporaryDirectory() as folder:
        for name, workload in workloads().items():
            ours = next(iter(workload.contestants.values()))
            mode = MODES[1] if workload.backward else MODES[0]
            for number, case in enumerate([*workload.cases, *workload.gpu_cases]):
                inputs = workload.make_inputs(case, "cpu", torch.bfloat16)
                file = Path(folder) / f"{name}{number}"
                os.environ["EMULATE_RECORD"] = str(file)
                try:
                    step_of(ours, inputs, mode)()
                finally:
                    del os.environ["EMULATE_RECORD"]
                launches = []
                for line in file.read_text().splitlines():
                    place_, x, y, z, threads, dynamic = map(int, line.split())
                    launches.append(Launch(symbols[place_], x * y * z, threads, dynamic))
                least = workload.least_work(case, mode, torch.bfloat16)
                sizes = " ".join(f"{key}={value}" for key, value in case.items())
                yield name, sizes, least, launches


def rows_of(
    operator: str, case: str, launches: list[Launch], needs: dict[tuple[str, str], Needs]
) -> Iterator[Row]:
    for launch, count in Counter(launches).items():
        of = {chip.name: needs[launch.kernel, chip.architecture] for chip in CHIPS}
        shared = launch.dynamic_shared + max(each.shared for each in of.values())
        per = {
            chip.name: chip.blocks_per_processor(
                launch.threads,
                of[chip.name].registers,
                launch.dynamic_shared + of[chip.name].shared,
            )
            for chip in CHIPS
        }
        held = {c.name: min(launch.blocks, per[c.name] * c.processors) for c in CHIPS}
        registers = {chip.architecture: of[chip.name].registers for chip in CHIPS}
        yield Row(
            operator,
            case,
            short_name(launch.kernel),
            count,
            launch.blocks,
            launch.threads,
            registers,
            shared,
            per,
            held,
        )


def least_seconds(chip: Chip, least: tuple[int, int]) -> tuple[float, float]:
    """To move a step's bytes, and to do its products, by published rates."""
    return least[0] / chip.bandwidth, least[1] / chip.products


def expected(chip: Chip, launches: int, least: tuple[int, int]) -> tuple[float, str]:
    """Seconds that the kernels of a step may take, and what takes most of them."""
    moving, multiplying = least_seconds(chip, least)
    parts = {
        "launches": LAUNCH_SECONDS * launches,
        "memory": OVER_MEMORY * moving,
        "products": OVER_PRODUCTS * multiplying,
    }
    # Copies run beside products: the longer one counts.
    shorter = min(parts["memory"], parts["products"])
    return sum(parts.values()) - shorter, max(parts, key=parts.__getitem__)


def measured() -> dict[tuple[str, str], tuple[float, int]]:
    """Microseconds and launches of a step on an H100, bfloat16, by operator and case."""
    found, operator = {}, ""
    for line in MEASURED.read_text().splitlines():
        if line.startswith("## "):
            operator = line[3:]
        row = re.match(
            r"\| (?P<case>.*) bfloat16, .*?\| .*? \| (?P<time>[\d.]+) in (?P<launches>\d+) ", line
        )
        if row:
            found[operator, row["case"]] = float(row["time"]), int(row["launches"])
    return found


def errors(steps: Sequence[Step]) -> list[float]:
    """Of what was measured relative to what was expected of as many launches, in order."""
    times, ratios = measured(), []
    for name, case, least, _ in steps:
        if least is not None and (name, case) in times:
            time, launches = times[name, case]
            ratios.append(1e-6 * time / expected(CHIPS[0], launches, least)[0])
    return sorted(max(ratio, 1 / ratio) for ratio in ratios)


def markdown(steps: Sequence[Step]) -> Iterator[str]:
    yield "# How launches fill a GPU\n"
    chips = ", ".join(f"{chip.name} ({chip.processors} SMs)" for chip in CHIPS)
    yield (
        "Found without a GPU by benchmarks/gpu_model.py, for bfloat16. *Blocks*: thread blocks of a"
        " launch × threads of each; *registers* of a thread (sm_90a / sm_80); *shared*: bytes of a"
        f" block; then blocks in flight at once, and in brackets how many an SM holds, on {chips}."
        "\n"
    )
    off = errors(steps)
    yield (
        "*Least*: microseconds in which a step's inputs, results and gradients could be moved once,"
        " or its products be done, by published rates, whichever is longer. *Expected* of our"
        f" kernels: {1e6 * LAUNCH_SECONDS:g} us for each launch and {OVER_MEMORY:g} times the least"
        f" to move or {OVER_PRODUCTS:g} times that of products, whichever is longer; and what of"
        " these three is most."
        " *Measured*: all kernels of the step on an H100, PyTorch's included (gpu-h100-kernels.md,"
        f" which names their version). Of {len(off)} steps, with the launches they had, half were"
        f" within a factor of {statistics.median(off):.2f} of what is expected, nine of ten within"
        f" {off[len(off) * 9 // 10]:.1f}, and the worst was {off[-1]:.1f} times off: float32"
        " arithmetic on masks is not in it.\n"
    )
    times, operator = measured(), ""
    for name, case, least, rows in steps:
        if name != operator:
            yield f"## {name}\n"
            operator = name
        launches, said = sum(row.launches for row in rows), []
        if least is not None:
            for chip in (*CHIPS, H200):
                floor = max(least_seconds(chip, least))
                seconds, most = expected(chip, launches, least)
                said.append(
                    f"{chip.name} at least {1e6 * floor:.3g}, expected {1e6 * seconds:.3g} ({most})"
                )
        if (name, case) in times:
            said.append(f"measured {times[name, case][0]:g} in {times[name, case][1]} launches")
        yield f"**{case}**: {'; '.join([f'{launches} launches of ours', *said])}\n"
        columns = ("kernel", "launches", "blocks", "registers", "shared", *(c.name for c in CHIPS))
        yield f"| {' | '.join(columns)} |"
        yield "|---|---:|---:|---:|---:|" + "---:|" * len(CHIPS)
        for row in rows:
            held = (f"{row.in_flight[c.name]} ({row.per_processor[c.name]})" for c in CHIPS)
            registers = " / ".join(str(each) for each in row.registers.values())
            cells = (
                f"`{row.kernel}`",
                str(row.launches),
                f"{row.blocks} × {row.threads}",
                registers,
                str(row.shared),
                *held,
            )
            yield f"| {' | '.join(cells)} |"
        yield ""


def model() -> list[Step]:
    """Every step: operator, case, least work, rows."""
    needs = needs_of_kernels()
    if not needs:
        sys.exit("there is no report of a CUDA build in build/: it needs nvcc")
    return [
        (name, case, least, list(rows_of(name, case, launches, needs)))
        for name, case, least, launches in record()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="Write FILE.md and FILE.json.")
    values = parser.parse_args()
    steps = model()
    text = "\n".join(markdown(steps))
    if values.report is None:
        print(text)
        return
    values.report.write_text(text)
    found: list[dict[str, Any]] = [asdict(row) for *_, rows in steps for row in rows]
    lines = ",\n".join(json.dumps(row) for row in found)
    values.report.with_suffix(".json").write_text(f'{{"launches": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
