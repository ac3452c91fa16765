"""Memory of every operator and its rivals on the CPU, forward and backward, as a table.

    python benchmarks/memory.py --report benchmarks/results/cpu-memory.md

Each number is of a process of its own (`mast_ext.benchmarks.peak_memory`): peak bytes beyond the
inputs, of the largest size of every operator. Times are not taken, so that the machine need not
be idle.
"""

import argparse
import platform
import shlex
import sys
from pathlib import Path

import torch

from mast_ext.benchmarks.harness import MODES, peak_bytes
from mast_ext.benchmarks.ops import workloads


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    parser.add_argument("--operators", nargs="+", default=[*workloads()], choices=[*workloads()])
    values = parser.parse_args()
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
        case = workload.cases[-1]
        found = {}
        for contestant in workload.contestants:
            if contestant.startswith("torch.compile"):
                continue
            bytes_ = peak_bytes(workload, case, MODES[-1], "cpu", contestant, lambda: None)
            found[contestant] = (bytes_ or 0) / 1e6
        ours, *rivals = found
        cells = [
            f"{rival}: {found[rival]:.1f} ({found[rival] / found[ours]:.1f}×)" for rival in rivals
        ]
        size = " ".join(f"{key}={value}" for key, value in case.items())
        lines.append(f"| `{name}` | {size} | {found[ours]:.1f} | {', '.join(cells)} |")
        print(lines[-1], flush=True)
    if values.report is not None:
        values.report.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
