"""Chooses the model's constants by the measured times, and says how well others are predicted."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, replace

from benchmarks.gpu_model.model import CONSTANTS, Constants
from benchmarks.gpu_model.points import Point, factors

CHOICES: dict[str, list[float]] = {
    "launch": [1e-6, 1.5e-6, 2e-6, 2.5e-6, 3e-6, 4e-6, 5e-6, 6e-6],
    "memory": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "tensor": [0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08],
    "simple": [0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04],
    "special": [0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04],
    "full_warps": [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64],
    "in_flight": [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256],
}
# Where searches start among the choices: not at model.py's constants, which know all times.
STARTS = (0.25, 0.5, 0.75)
MOST_ROUNDS = 10  # of a search, in which each constant is chosen in turn


def mean_error(points: list[Point], constants: Constants) -> float:
    """The mean logarithm of the factor by which predictions are off; calibration minimizes it."""
    return statistics.mean(point.error(constants) for point in points)


def calibrate(points: list[Point]) -> Constants:
    """The constants with the least error of those that searches from several starts find."""
    return min((search(points, at) for at in STARTS), key=lambda found: mean_error(points, found))


def search(points: list[Point], start: float) -> Constants:
    """Chooses one constant after the other until none changes; `start` is a share of choices."""
    found = Constants(**{name: of[int(start * len(of))] for name, of in CHOICES.items()})
    for _ in range(MOST_ROUNDS):
        before = found
        for name, values in CHOICES.items():
            tried = [replace(found, **{name: value}) for value in values]
            found = min(tried, key=lambda constants: mean_error(points, constants))
        if found == before:
            break
    return found


def at_ends(constants: Constants) -> list[str]:
    """Names of constants that are the smallest or the largest of their choices."""
    chosen = asdict(constants)
    return [name for name, values in CHOICES.items() if chosen[name] in (values[0], values[-1])]


def left_out(points: list[Point]) -> dict[str, list[float]]:
    """Errors of every operator by constants of the others."""
    found = {}
    for operator in dict.fromkeys(point.operator for point in points):
        constants = calibrate([point for point in points if point.operator != operator])
        found[operator] = [p.error(constants) for p in points if p.operator == operator]
    return found


def report(points: list[Point]) -> Iterable[str]:
    """Lines that say how well times are predicted, and which constants predict them best."""
    chips = list(dict.fromkeys(point.chip for point in points))
    by_chip = {chip: [point for point in points if point.chip == chip] for chip in chips}
    errors_of = left_out(points)
    yield "Factors: in the median, and at most for nine in ten."
    yield "Each operator by constants of the others:"
    for operator, errors in errors_of.items():
        median, most = factors(errors)
        yield f"  {operator}: {median:.2f}, {most:.2f} of {len(errors)} launches"
    median, most = factors([error for errors in errors_of.values() for error in errors])
    yield f"  all: {median:.2f}, {most:.2f} of {len(points)} launches"
    if len(chips) > 1:
        yield "Each chip by constants of another:"
    for source in chips:
        constants = calibrate(by_chip[source])
        for chip in chips:
            median, most = factors([point.error(constants) for point in by_chip[chip]])
            yield f"  {chip.name} by {source.name}'s times: {median:.2f}, {most:.2f}"
    constants = calibrate(points)
    yield f"The best found for all: {constants}"
    for name in at_ends(constants):
        yield f"  {name} is at an end of its choices"
    if constants != CONSTANTS:
        gain = mean_error(points, CONSTANTS) - mean_error(points, constants)
        yield f"  not those of model.py, whose mean factor is {math.exp(gain):.3f} times as large"
