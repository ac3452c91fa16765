"""How long every CUDA kernel of a step takes, beside the least that the device could take.

    python benchmarks/kernel_times.py [--operators ntxent ...] [--report FILE.md]

A step is forward and backward of our contestant of every workload (forward alone, where
there is no gradient). PyTorch's profiler times the kernels, after a sweep over a buffer larger than
the L2 cache. The least is what it takes to move the inputs, results and gradients once each way, or
to do the matrix products that the operator is made of, at the rates that a copy and a product of
PyTorch's reach here (ours of float32 are made of parts of 16 bits, and may be faster than that); a
launch takes about 2 us besides. FILE.json has all kernels, FILE.md the five that take longest of
each step.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mast_ext.benchmarks.harness import L2_SWEEP_BYTES, Case, Workload, step_of
from mast_ext.benchmarks.ops import workloads
from mast_ext.benchmarks.rates import measure_rates, seconds_of

STEPS = 3  # in which the profiler looks
SHOWN = 5  # kernels of a step in the table


def kernels_of(step: Callable[[], object], device: str) -> list[tuple[str, float, float]]:
    """Name, launches per step and microseconds per launch, the longest in sum first."""
    sweep = torch.empty(L2_SWEEP_BYTES if device == "cuda" else 1, dtype=torch.int8, device=device)
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            sweep.zero_()
            step()
        if cuda:
            torch.cuda.synchronize()
    rows = []
    for event in found.key_averages():
        total = event.self_device_time_total if cuda else event.self_cpu_time_total
        if total and "FillFunctor<signed char>" not in event.key:  # the sweep
            rows.append((event.key, event.count / STEPS, total / event.count))
    return sorted(rows, key=lambda row: -row[1] * row[2])


def short(kernel: str) -> str:
    """A kernel's name without namespaces and arguments."""
    name = re.sub(r"^void |(\(anonymous namespace\)|<unnamed>)::", "", kernel)
    name = re.sub(r"\b(mast_ext|at|native|kernels|c10)::", "", name)
    template = re.match(r"\w+(::\w+)*<[^()]*>(?=\()", name)
    return (template.group() if template else name.split("(")[0])[:70]


def compact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps with short names of kernels, their numbers rounded to a hundredth."""
    return [
        row
        | {
            "kernels": [
                (short(kernel), round(n, 2), round(us, 2)) for kernel, n, us in row["kernels"]
            ]
        }
        for row in rows
    ]


def measure(
    name: str, workload: Workload, case: Case, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    inputs = workload.make_inputs(case, device, dtype)
    ours = next(iter(workload.contestants.values()))
    if isinstance(ours, torch.nn.Module):
        ours.to(device)
    mode = "forward + backward" if workload.backward else "forward"
    step = step_of(ours, inputs, mode)
    host, _ = seconds_of(step, device)
    least = workload.least(**case) if workload.least else None
    return {
        "operator": name,
        "case": case,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": mode,
        "host_us": host * 1e6,
        "elements": least[0] if least else None,
        "operations": least[1] if least else None,
        "kernels": kernels_of(step, device),
    }


def table(rate: dict[str, float], rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """All steps as Markdown."""
    lines = [
        "# Times of kernels",
        "",
        *(f"* {name}: {value}" for name, value in environment.items()),
        f"* a copy: {rate['copy'] / 1e12:.2f} TB/s read and written; products: "
        f"bfloat16 {rate['bfloat16'] / 1e12:.0f}, float32 {rate['float32'] / 1e12:.1f} TFLOP/s",
        "",
        "Microseconds per step. *Least*: the time to move what must be moved, or for the matrix "
        "products, whichever is longer (benchmarks/kernel_times.py). *Host*: how long the calls "
        "keep the host, which a GPU that is busy hides, and a CUDA graph takes away.",
    ]
    operator = None
    for row in rows:
        if row["operator"] != operator:
            operator = row["operator"]
            lines += ["", f"## {operator}", "", "| size | least | kernels | host | the longest |"]
            lines += ["|---" * 5 + "|"]
        total = sum(count * microseconds for _, count, microseconds in row["kernels"])
        launches = sum(count for _, count, _ in row["kernels"])
        size = " ".join(f"{name}={value}" for name, value in row["case"].items())
        longest = "; ".join(
            f"{count:.0f} × {microseconds:.1f} `{short(kernel)}`"
            for kernel, count, microseconds in row["kernels"][:SHOWN]
        )
        floor = "–"
        if row["elements"] is not None:
            bytes_moved = row["elements"] * (4 if row["dtype"] == "float32" else 2)
            floor_us = 1e6 * max(bytes_moved / rate["copy"], row["operations"] / rate[row["dtype"]])
            floor = f"{floor_us:.1f} ({100 * floor_us / total:.0f} %)"
        lines.append(
            f"| {size} {row['dtype']}, {row['mode']} | {floor} | {total:.0f} in {launches:.0f} "
            f"| {row['host_us']:.0f} | {longest} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operators", nargs="*", help="names of workloads")
    parser.add_argument("--report", type=Path, help="FILE.md; FILE.json goes beside it")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--smallest", action="store_true", help="only the first of all cases")
    options = parser.parse_args()
    device = options.device
    found = measure_rates(device, [torch.bfloat16, torch.float32])
    products = {str(dtype).removeprefix("torch."): x for dtype, x in found.products.items()}
    rate = {"copy": found.copy, **products}
    environment = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if device == "cuda":
        environment["gpu"] = torch.cuda.get_device_name()
    rows = []
    for name, workload in workloads().items():
        if options.operators and name not in options.operators:
            continue
        cases = workload.cases + list(workload.gpu_cases if device == "cuda" else ())
        for dtype in (torch.bfloat16, torch.float32):
            for case in cases[:1] if options.smallest else cases:
                rows.append(measure(name, workload, case, dtype, device))
                print(name, case, dtype, flush=True)
                if options.report:
                    options.report.write_text(table(rate, rows, environment))
                    document = {"environment": environment, "rates": rate, "steps": compact(rows)}
                    options.report.with_suffix(".json").write_text(json.dumps(document))
    if not options.report:
        print(table(rate, rows, environment))


if __name__ == "__main__":
    main()
