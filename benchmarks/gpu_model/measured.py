"""Measured times of kernels: benchmarks/results/gpu-CHIP-kernels of benchmarks/kernel_times.py."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_model.chips import CHIPS, Chip
from benchmarks.gpu_model.model import short, text_of
from benchmarks.gpu_model.resources import ROOT

RESULTS = ROOT / "benchmarks" / "results"
STEP = re.compile(r"\| (?P<sizes>(?:\w+=\d+ )+)(?P<dtype>\w+), forward")
KERNEL = re.compile(r"(\d+) × ([\d.]+) `([^`]*)`")

# Kernels that do more work than those of their name did when they were measured.
CHANGED = {("variance_covariance", "moments"), ("mast", "combine_with_differences")}

# Microseconds of a launch by operator, sizes, dtype and kernel, without types.
Times = dict[tuple[str, str, str, str], float]


def measured(results: Path = RESULTS) -> dict[Chip, Times]:
    """The times of every chip that has a file, a .json or a .md.

    Where there are both, of the .json: a .md has only the kernels that take longest of a step.
    """
    found = {}
    for chip in CHIPS:
        path = results / f"gpu-{chip.name.lower().replace(' ', '-')}-kernels.json"
        if path.exists():
            found[chip] = _means(_of_json(path.read_text()))
        elif (path := path.with_suffix(".md")).exists():
            found[chip] = _means(_of_markdown(path.read_text()))
    return found


# Key, launches, and microseconds of each.
_Launches = Iterator[tuple[tuple[str, str, str, str], float, float]]


def _of_json(text: str) -> _Launches:
    for step in json.loads(text)["steps"]:
        for kernel, count, microseconds in step["kernels"]:
            key = (step["operator"], text_of(step["case"]), step["dtype"], short(kernel))
            yield key, count, microseconds


def _of_markdown(text: str) -> _Launches:
    operator = ""
    for line in text.splitlines():
        if line.startswith("## "):
            operator = line.removeprefix("## ")
        if step := STEP.match(line):
            for count, microseconds, kernel in KERNEL.findall(line):
                key = (operator, step["sizes"].strip(), step["dtype"], short(kernel))
                yield key, float(count), float(microseconds)


def _means(launches: _Launches) -> Times:
    counts: dict[tuple[str, str, str, str], float] = defaultdict(float)
    sums: dict[tuple[str, str, str, str], float] = defaultdict(float)
    for key, count, microseconds in launches:
        counts[key] += count
        sums[key] += count * microseconds
    return {key: sums[key] / counts[key] for key in sums if (key[0], key[-1]) not in CHANGED}
