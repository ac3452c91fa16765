"""Launches that were measured on some chip and that the model predicts."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_model.chips import Chip
from benchmarks.gpu_model.measured import Times
from benchmarks.gpu_model.model import CONSTANTS, Constants, predict, short, text_of, work_of
from benchmarks.gpu_model.resources import AllResources, Resources, find
from benchmarks.gpu_model.work import Work


@dataclass(frozen=True)
class Point:
    """A launch and its measured time.

    Attributes:
        operator: Of which it is a part.
        name: Kernel, operator, sizes and dtype.
        chip: On which it was measured.
        launch: As record_launches.py has it.
        resources: On that chip.
        work: Of the launch.
        microseconds: As measured.
    """

    operator: str
    name: str
    chip: Chip
    launch: dict[str, Any]
    resources: Resources
    work: Work
    microseconds: float

    def ratio(self, constants: Constants = CONSTANTS) -> float:
        """Measured over predicted."""
        found = predict(self.launch, self.resources, self.work, self.chip, constants)
        assert found.microseconds is not None  # there is work
        return self.microseconds / found.microseconds

    def error(self, constants: Constants = CONSTANTS) -> float:
        """The logarithm of the ratio, the larger over the smaller."""
        return abs(math.log(self.ratio(constants)))


def points_of(
    steps: list[dict[str, Any]],
    resources: AllResources,
    times: dict[Chip, Times],
) -> list[Point]:
    """The launches in steps of record_launches.py that were measured and have a prediction."""
    found = []
    for step in steps:
        operator, size, dtype = step["operator"], text_of(step["case"]), step["dtype"]
        for launch in step["launches"]:
            kernel, work = short(launch["kernel"]), work_of(step, launch)
            for chip, of_chip in times.items():
                seen = of_chip.get((operator, size, dtype, kernel))
                if seen is None or work is None:
                    continue
                own = find(resources, launch["kernel"], chip.architecture)
                name = f"`{kernel}` of {operator}, {size} {dtype}"
                found.append(Point(operator, name, chip, launch, own, work, seen))
    return found


def factors(errors: list[float]) -> tuple[float, float]:
    """How far off predictions are: by a factor in the median, and at most for nine in ten."""
    errors = sorted(errors)
    return math.exp(statistics.median(errors)), math.exp(errors[(len(errors) - 1) * 9 // 10])
