r"""Chooses the model's constants by the measured times, and says how well others are predicted.

    python -m benchmarks.gpu_model.calibrate launches.json

Prints the constants that minimize the mean |log(measured / predicted)|, and the errors for each
operator of constants that were chosen without it. launches.json is of record_launches.py.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_model import model
from benchmarks.gpu_model.chips import H100
from benchmarks.gpu_model.measured import measured
from benchmarks.gpu_model.resources import ROOT, Resources, built

CHOICES: dict[str, list[float]] = {
    "LAUNCH": [2e-6, 3e-6, 4e-6, 5e-6],
    "MEMORY": [0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "TENSOR": [0.15, 0.2, 0.25, 0.3, 0.35, 0.4],
    "SIMPLE": [0.1, 0.15, 0.2, 0.25, 0.3],
    "SPECIAL": [0.1, 0.15, 0.2, 0.25, 0.3, 0.4],
    "IN_FLIGHT": [8, 16, 24, 32],
    "FULL_WARPS": [4, 8, 12, 16],
}
ROUNDS = 3  # in which each constant is chosen in turn

Point = tuple[float, dict[str, Any], Resources, model.Work]


def points_of(steps: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """By operator: what was measured and can be predicted."""
    times = measured(ROOT / "benchmarks" / "results" / "gpu-h100-kernels.md")
    resources = built()
    found: dict[str, list[Point]] = {}
    for step in steps:
        size = model.text_of(step["case"])
        for launch in step["launches"]:
            kernel = launch["kernel"]
            seen = times.get((step["operator"], size, step["dtype"], model.short(kernel)))
            work = model.work_of(step["operator"], step["case"], step["dtype"], launch)
            if seen is not None and work is not None:
                own = resources[kernel, H100.architecture]
                found.setdefault(step["operator"], []).append((seen, launch, own, work))
    return found


def errors(points: list[Point]) -> list[float]:
    """|log(measured / predicted)| of each."""
    return [
        abs(math.log(seen / (model.predict(launch, own, work, H100).microseconds or math.nan)))
        for seen, launch, own, work in points
    ]


def calibrate(points: list[Point]) -> dict[str, float]:
    """Sets the constants, and returns them."""
    for _ in range(ROUNDS):
        for name, values in CHOICES.items():
            tried = []
            for value in values:
                setattr(model, name, value)
                tried.append((statistics.mean(errors(points)), value))
            setattr(model, name, min(tried)[1])
    return {name: getattr(model, name) for name in CHOICES}


def main() -> None:
    by_operator = points_of(json.loads(Path(sys.argv[1]).read_text()))
    others: list[float] = []
    for operator, points in by_operator.items():
        calibrate([p for name, rest in by_operator.items() if name != operator for p in rest])
        found = errors(points)
        others += found
        print(f"{operator}, left out: {math.exp(statistics.median(found)):.2f} of {len(found)}")
    print(
        f"all, left out: median factor {math.exp(statistics.median(others)):.2f}, nine in ten "
        f"within {math.exp(sorted(others)[len(others) * 9 // 10]):.2f}"
    )
    print(calibrate([point for points in by_operator.values() for point in points]))


if __name__ == "__main__":
    main()
