"""Memory of every operator and its rivals on the CPU, forward and backward, as a table.

    python benchmarks/memory.py --report benchmarks/results/cpu-memory.md

Each number is of a process of its own (`mast_ext.benchmarks.peak_memory`): peak bytes beyond the
inputs, of the last size of every operator, or of all with ``--all``. Times are not taken, so that
the machine need not be idle.
"""

import argparse
import platform
import shlex
import sys
from pathlib import Path

import torch

from mast_ext.benchmarks.harness import MODES, Case, Workload, peak_bytes
from mast_ext.benchmarks.ops import workloads


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    parser.add_argument("--all", action="store_true", help="Of all sizes, not of the last alone.")
    parser.add_argument("--operators", nargs="+", default=[*workloads()], choices=[*workloads()])
    values = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory on the CPU is measured on Linux only")
    lines = [
        "# Memory on the CPU",
        "",
        "Peak MB beyond the inputs, forward and backward, float32; in brackets relative to ours.",
        "",
        f"* torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()},"
        f" {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"* command: `python {shlex.join(sys.argv)}`",
        "",
        "| operator | size | mast_ext | rivals |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in values.operators:
        workload = workloads()[name]
        if not workload.backward:
            continue
        for case in workload.cases if values.all else workload.cases[-1:]:
            lines.append(row_of(workload, case))
            print(lines[-1], flush=True)
    if values.report is not None:
        values.report.write_text("\n".join(lines) + "\n")


def row_of(workload: Workload, case: Case) -> str:
    """What the contestants hold that are not compiled."""
    found = {}
    for contestant in workload.contestants:
        if not contestant.startswith("torch.compile"):
            held = peak_bytes(workload, case, MODES[-1], "cpu", contestant, lambda: None)
            assert held is not None  # on Linux
            found[contestant] = held / 1e6
    ours, *rivals = found
    cells = [f"{each}: {found[each]:.1f} ({found[each] / found[ours]:.1f}×)" for each in rivals]
    size = " ".join(f"{key}={value}" for key, value in case.items())
    return f"| `{workload.name}` | {size} | {found[ours]:.1f} | {', '.join(cells)} |"


if __name__ == "__main__":
    main()
