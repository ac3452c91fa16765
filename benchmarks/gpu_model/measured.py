"""The times of kernels in benchmarks/results/gpu-h100-kernels.md."""

import re
from pathlib import Path

from benchmarks.gpu_model.model import short

STEP = re.compile(r"\| (?P<sizes>(?:\w+=\d+ )+)(?P<dtype>\w+), forward")
KERNEL = re.compile(r"(\d+) × ([\d.]+) `([^`]*)`")


def measured(path: Path) -> dict[tuple[str, str, str, str], float]:
    """Microseconds of a launch by operator, sizes, dtype and kernel, without types."""
    found: dict[tuple[str, str, str, str], float] = {}
    operator = ""
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            operator = line.removeprefix("## ").replace(", ", "_")
        if step := STEP.match(line):
            for _, microseconds, kernel in KERNEL.findall(line):
                key = (operator, step["sizes"].strip(), step["dtype"], short(kernel))
                found.setdefault(key, float(microseconds))
    return found
