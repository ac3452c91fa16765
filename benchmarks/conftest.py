"""Runs workloads under pytest-benchmark and writes the table of what was measured.

`pytest benchmarks/ops --report benchmarks/results/NAME.md` writes NAME.md and NAME.json.
"""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mast_ext import ops
from mast_ext.benchmarks.environment import environment
from mast_ext.benchmarks.harness import (
    SECONDS_PER_CONTESTANT,
    Case,
    Result,
    Workload,
    race,
    step_of,
)

# (operator, device, mode, case) and its contestants, in the order they ran.
RACES: list[tuple[str, str, str, Case, list[Result]]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", help="write the measured table to this Markdown file")
    parser.addoption("--rounds", type=int, default=15, help="timed calls of each contestant")
    parser.addoption(
        "--seconds",
        type=float,
        default=SECONDS_PER_CONTESTANT,
        help="for all calls of a contestant; of slow ones fewer are timed, three at least",
    )
    parser.addoption("--no-memory", action="store_true", help="no processes that measure memory")
    parser.addoption("--smallest", action="store_true", help="only the first of all cases")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--smallest"):
        return
    first: dict[tuple[object, ...], pytest.Item] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        others = item.callspec.params.keys() - {"case"}
        kind = [item.callspec.params[name] for name in sorted(others)]
        first.setdefault((item.nodeid.split("[")[0], *kind), item)
    items[:] = first.values()


@pytest.fixture
def compare(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture
) -> Callable[[Workload, str, Case, str], None]:
    """Races a workload's contestants and hands ours to pytest-benchmark's own statistics."""

    def run(workload: Workload, device: str, case: Case, mode: str) -> None:
        if device == "cuda" and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
            pytest.skip("needs a GPU and a CUDA build")
        rounds = request.config.getoption("--rounds")
        seconds = request.config.getoption("--seconds")
        memory = not request.config.getoption("--no-memory")
        results = race(workload, case, mode, device, rounds, seconds, memory=memory)
        measured = workload.measured or workload.name
        RACES.append((measured, device, mode, case, results))
        benchmark.group = f"{measured} {device} {mode}"
        benchmark.extra_info |= {result.name: result.median for result in results}
        inputs = workload.make_inputs(case, device, workload.dtype_on(device))
        step = step_of(next(iter(workload.contestants.values())), inputs, mode)
        benchmark.pedantic(step, rounds=rounds, warmup_rounds=1)

    return run


def row_of(case: Case, mode: str, results: list[Result]) -> str:
    ours = results[0].median
    cells = []
    for result in results:
        memory = "" if result.peak_bytes is None else f", {result.peak_bytes / 2**20:.1f} MB"
        ratio = "" if result is results[0] else f" ({result.median / ours:.1f}×)"
        cells.append(f"{result.median:.3g} ms{ratio}{memory}")
    sizes = " ".join(f"{name}={value}" for name, value in case.items())
    return f"| {sizes} | {mode} | " + " | ".join(cells) + " |"


def table() -> str:
    """All races of the session as Markdown, one table per operator and device."""
    lines = ["# Operators against their rivals", ""]
    lines += [f"* {name}: {value}" for name, value in environment().items() if value is not None]
    lines += [
        f"* command: `{shlex.join(['pytest', *sys.argv[1:]])}`",
        "",
        "Medians of calls taken in turn; in brackets how many times slower than ours; then the "
        "memory held beyond the inputs. How it is measured: mast_ext/benchmarks/harness.py.",
    ]
    seen: tuple[str, str, tuple[str, ...]] | None = None
    for operator, device, mode, case, results in RACES:
        names = tuple(result.name for result in results)
        if seen != (operator, device, names):
            seen = (operator, device, names)
            lines += ["", f"## {operator} on {device}", ""]
            lines += [f"| size | mode | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        lines.append(row_of(case, mode, results))
    return "\n".join(lines) + "\n"


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.getoption("--report")
    if not report or not RACES:
        return
    path = Path(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table())
    races = [
        {
            "operator": operator,
            "device": device,
            "mode": mode,
            "case": case,
            "results": [vars(result) for result in results],
        }
        for operator, device, mode, case, results in RACES
    ]
    document = {"environment": environment(), "races": races}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
