"""``mast-ext bench ops``: operators and losses beside lightly and plain PyTorch.

The same workloads and rules as of the project's own benchmarks (`mast_ext.benchmarks`).
"""

import importlib.util
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from mast_ext.benchmarks.environment import environment
from mast_ext.benchmarks.harness import MODES, Case, Result, Workload, race
from mast_ext.benchmarks.ops import workloads
from mast_ext.benchmarks.rates import Rates, measure_rates
from mast_ext.benchmarks.roofline import KINDS, Point, draw
from mast_ext.cli.bench.tables import add_outputs, put_out, require_report
from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import Overview, shows_help
from mast_ext.cli.parser import Parser, build, canonical, parse, settings_parser
from mast_ext.train.launch import resolve_device
from mast_ext.train.state.run_directory import replacing, require_writable
from mast_ext.train.suggestions import did_you_mean, similar

HEADS = ("contestant", "ms, memory held", "times ours", "GB/s", "GFLOP/s", "of the machine")


@dataclass(frozen=True)
class OpsConfig:
    """What is measured.

    Attributes:
        cases: Of every operator its ``first`` sizes, or ``all`` that the project measures.
        mode: The loss alone (``forward``), with gradients (``step``; the forward pass of operators
            that have none), or ``both``.
        rounds: Calls of each contestant that are timed.
        seconds: For all calls of a contestant; of slow ones fewer are timed, three at least.
        compile: Whether rivals compiled by torch.compile take part, which takes a while.
        memory: Whether memory is measured, too, which on the CPU takes a process each time.
        accelerator: Where; ``auto`` takes a GPU when there is one.
    """

    cases: Literal["first", "all"] = "first"
    mode: Literal["forward", "step", "both"] = "step"
    rounds: int = 15
    seconds: float = 2.0
    compile: bool = False
    memory: bool = False
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise ValueError(f"rounds must be at least 3, got {self.rounds}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


@dataclass(frozen=True)
class Race:
    """The contestants of a workload at some sizes, ours first."""

    workload: Workload
    case: Case
    mode: str
    results: list[Result]

    @property
    def title(self) -> str:
        """Operator, sizes and mode."""
        return f"{self.name}, {self.mode}"

    @property
    def name(self) -> str:
        """Operator and sizes."""
        return " ".join([self.workload.name, *(f"{name}={n}" for name, n in self.case.items())])


def main(arguments: Sequence[str]) -> int:
    """Measures operators, and prints a table. Returns the exit status."""
    parser = make_parser()
    if shows_help(parser, Overview(), arguments):
        return 0
    values = parse(parser, canonical(arguments))
    if values.list:
        for name, workload in workloads().items():
            print(f"{name:<32}{', '.join(workload.cases[0])}")
        return 0
    sizes = {name: n for name in _size_names() if (n := getattr(values, name)) is not None}
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} must be at least 1, got {size}")
    others = ("operators", "list", "json", "report", "plot", *_size_names())
    if values.plot is not None and _kind(values.plot) not in KINDS:
        raise UsageError(f"--plot must end in .{', .'.join(KINDS)}, got {values.plot}")
    config: OpsConfig = build(parser, values, OpsConfig, *others)
    chosen = choose(values.operators, sizes)
    if values.plot is not None and not any(_is_drawn(each, config.mode) for each in chosen):
        raise UsageError("--plot draws whole steps whose least work is known: none was chosen")
    require_report(values.report)
    require_writable(values.plot)
    device = resolve_device(config.accelerator).type
    console = Console(stderr=True)
    dtype = next(iter(chosen)).dtype_on(device)
    rates = measure_rates(device, [dtype])
    races = measure(chosen, sizes, config, device, console)
    command = " ".join(["mast-ext", "bench", "ops", *arguments])
    notes = _notes(config, rates, device, dtype)
    tables = {each.title: _rows(each, rates, dtype) for each in races}
    document = _document(config, races, rates, device, dtype, command)
    put_out(values, "Operators beside their rivals", notes, command, HEADS, tables, document)
    if values.plot is not None:
        points = [point for each in races for point in _points(each, dtype)]
        with replacing(Path(values.plot)) as partial:
            draw(points, rates, dtype, partial, _kind(values.plot))
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = settings_parser(
        "bench ops",
        "Times operators and losses beside lightly (if it is installed) and plain PyTorch. All get"
        " the same tensors, and must agree on the result before any is timed.",
        OpsConfig,
    )
    parser.usage = "mast-ext bench ops [OPERATOR ...] [options]"
    parser.add_argument(
        "operators", nargs="*", type=str, default=[], help="Which; all by default. See --list."
    )
    parser.add_argument("--list", action="store_true", help="Print operators and their sizes.")
    for name in _size_names():
        parser.add_argument(
            f"--{name}",
            type=int | None,
            default=None,
            metavar="N",
            help="Size in place of the operator's own.",
        )
    add_outputs(parser)
    parser.add_argument(
        "--plot",
        type=str | None,
        default=None,
        metavar="FILE.svg",
        help="Draw what is reached beside what the machine could (also .png, .pdf).",
    )
    return parser


def _kind(plot: str) -> str:
    return Path(plot).suffix[1:].lower()


def _size_names() -> list[str]:
    names = {name: None for workload in workloads().values() for name in workload.cases[0]}
    return list(names)


def choose(names: Sequence[str], sizes: Collection[str]) -> list[Workload]:
    """The workloads of these names, or of all if there are none, that have these sizes.

    Raises:
        UsageError: There is none of a name, or one that was asked for has no such size.
    """
    known = workloads()
    for name in names:
        if name not in known:
            hint = did_you_mean(similar(name, known))
            raise UsageError(f"there is no operator {name!r}{hint} (mast-ext bench ops --list)")
        if missing := [size for size in sizes if size not in known[name].cases[0]]:
            has = ", ".join(known[name].cases[0])
            raise UsageError(f"{name} has no size {missing[0]}: it has {has}")
    found = [known[name] for name in names or known]
    found = [each for each in found if set(sizes) <= each.cases[0].keys()]
    if not found:
        raise UsageError(f"no operator has all of the sizes {', '.join(sizes)}")
    return found


def _is_drawn(workload: Workload, mode: str) -> bool:
    """Whether the least work of one of the modes is known, beside which it can be drawn."""
    return workload.least is not None and not (workload.backward and mode == "forward")


def measure(
    chosen: Sequence[Workload], sizes: Case, config: OpsConfig, device: str, console: Console
) -> list[Race]:
    """Races all contestants of the workloads.

    Raises:
        DisagreementError: A contestant's result is not ours.
    """
    found = []
    with console.status("") as status:
        for workload in chosen:
            cases = list(workload.cases)
            cases += workload.gpu_cases if device == "cuda" else ()
            if sizes or config.cases == "first":
                cases = [{**cases[0], **sizes}]
            modes = {"forward": MODES[:1], "step": MODES[1:], "both": MODES}[config.mode]
            for case in cases:
                for mode in modes if workload.backward else MODES[:1]:
                    status.update(f"{workload.name} {case}, {mode}")
                    results = race(
                        workload,
                        case,
                        mode,
                        device,
                        config.rounds,
                        config.seconds,
                        compiled=config.compile,
                        memory=config.memory,
                    )
                    found.append(Race(workload, case, mode, results))
    return found


def _rows(each: Race, rates: Rates, dtype: torch.dtype) -> list[tuple[str, ...]]:
    rows = []
    work = each.workload.least_work(each.case, each.mode, dtype)
    for result in each.results:
        seconds = result.median / 1e3
        reached = ["", "", ""]
        if work is not None:
            moved, operations = work
            share = rates.least_seconds(moved, operations, dtype) / seconds
            products = f"{operations / seconds / 1e9:.3g}" if operations else ""
            reached = [f"{moved / seconds / 1e9:.3g}", products, f"{100 * share:.3g} %"]
        ratio = result.median / each.results[0].median
        held = "" if result.peak_bytes is None else f", {result.peak_bytes / 2**20:.1f} MB"
        rows.append((result.name, f"{result.median:.3g}{held}", f"{ratio:.2g}", *reached))
    return rows


def _points(each: Race, dtype: torch.dtype) -> list[Point]:
    work = each.workload.least_work(each.case, each.mode, dtype)
    if work is None:
        return []
    return [
        Point(each.name, result.name, result is each.results[0], result.median / 1e3, *work)
        for result in each.results
        if result.name in each.workload.contestants
    ]


def _notes(config: OpsConfig, rates: Rates, device: str, dtype: torch.dtype) -> list[str]:
    """What the numbers are, and what they depend on."""
    found = environment()
    name = str(dtype).removeprefix("torch.")
    cached = f", {rates.cached_copy / 1e9:.3g} in caches" if device == "cpu" else ""
    lightly = importlib.util.find_spec("lightly") is not None
    return [
        f"medians of at most {config.rounds} calls in turn, {name}; all contestants agree on the"
        " result",
        "GB/s and GFLOP/s: of the bytes that must be moved and the matrix products that must be"
        " done at least; of the machine: the time that these take by PyTorch's copy"
        f" ({rates.copy / 1e9:.3g} GB/s{cached}) and product"
        f" ({rates.products[dtype] / 1e9:.4g} GFLOP/s), by the time that was measured",
        "rivals: plain PyTorch"
        + (", lightly" if lightly else "; lightly is not installed")
        + (", compiled ones" if config.compile else "; none compiled (--compile)"),
        f"{found['gpu'] if device == 'cuda' else found['cpu']}, {found['threads']} threads, load"
        f" {os.getloadavg()[0]:.1f} at the end; Python {platform.python_version()},"
        f" torch {torch.__version__}",
    ]


def _document(
    config: OpsConfig,
    races: Sequence[Race],
    rates: Rates,
    device: str,
    dtype: torch.dtype,
    command: str,
) -> dict[str, Any]:
    return {
        "environment": environment(),
        "command": command,
        "settings": asdict(config),
        "rates": {
            "copy_bytes_per_second": rates.copy,
            "cached_copy_bytes_per_second": rates.cached_copy,
            "product_operations_per_second": rates.products[dtype],
        },
        "races": [
            {
                "operator": each.workload.name,
                "device": device,
                "mode": each.mode,
                "case": each.case,
                "least": each.workload.least_work(each.case, each.mode, dtype),
                "results": [asdict(result) for result in each.results],
            }
            for each in races
        ],
    }
