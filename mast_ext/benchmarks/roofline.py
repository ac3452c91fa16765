"""A picture of what contestants reach beside what the machine could (Williams et al. 2009)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mast_ext.benchmarks.rates import Rates

KINDS = ("svg", "png", "pdf")


@dataclass(frozen=True)
class Point:
    """A contestant's step.

    Attributes:
        workload: What was measured, with its sizes.
        contestant: Who.
        ours: Whether it is mast_ext.
        seconds: Of a step.
        moved: Bytes that the step must move at least.
        operations: Of the matrix products that it is made of.
    """

    workload: str
    contestant: str
    ours: bool
    seconds: float
    moved: int
    operations: int


def draw(points: Sequence[Point], rates: Rates, dtype: torch.dtype, path: Path, kind: str) -> None:
    """Draws operations per second over operations per byte, and bytes per second of the others.

    The others are workloads that need no matrix product. Filled marks are mast_ext's.

    Args:
        points: What was measured.
        rates: What the machine reaches.
        dtype: In which products were measured.
        path: The file to write.
        kind: Of the file, one of `KINDS`.
    """
    with_products = [point for point in points if point.operations]
    without = [point for point in points if not point.operations]
    names = list(dict.fromkeys(point.workload for point in points))
    palette = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    panels = [each for each in (with_products, without) if each]
    lines = len({point.workload for point in without})
    heights = [max(4.0, 0.2 * len(names))] * bool(with_products) + [1.2 + 0.25 * lines] * bool(
        without
    )
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for own, chosen in zip(axes, panels, strict=True):
        (_roofline if chosen is with_products else _bandwidths)(own, chosen, rates, dtype, colors)
    figure.savefig(path, format=kind)


def _roofline(
    axes: Any, points: Sequence[Point], rates: Rates, dtype: torch.dtype, colors: dict[str, Any]
) -> None:
    intensity = [point.operations / point.moved for point in points]
    peak = rates.products[dtype]
    ridge = peak / rates.copy
    x = np.geomspace(min(*intensity, ridge) / 3, max(*intensity, ridge) * 3, 200)
    axes.plot(x, np.minimum(peak, x * rates.copy), color="black", label="copy and product")
    if rates.cached_copy != rates.copy:
        roof = np.minimum(peak, x * rates.cached_copy)
        axes.plot(x, roof, color="black", linestyle=":", label="copy in caches")
    for point, at in zip(points, intensity, strict=True):
        _mark(axes, at, point.operations / point.seconds, point, colors)
    for name in {point.workload for point in points}:  # a line from the slowest to the fastest
        same = [i for i, point in enumerate(points) if point.workload == name]
        reached = [points[i].operations / points[i].seconds for i in same]
        axes.vlines(intensity[same[0]], min(reached), max(reached), colors=colors[name], lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("operations of matrix products per byte that must be moved")
    axes.set_ylabel(f"operations per second ({str(dtype).removeprefix('torch.')})")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)


def _bandwidths(
    axes: Any, points: Sequence[Point], rates: Rates, dtype: torch.dtype, colors: dict[str, Any]
) -> None:
    names = list(dict.fromkeys(point.workload for point in points))
    axes.axvline(rates.copy, color="black")
    if rates.cached_copy != rates.copy:
        axes.axvline(rates.cached_copy, color="black", linestyle=":")
    for point in points:
        _mark(axes, point.moved / point.seconds, names.index(point.workload), point, colors)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("bytes per second of those that must be moved (lines: copies)")


def _mark(axes: Any, x: float, y: float, point: Point, colors: dict[str, Any]) -> None:
    color = colors[point.workload]
    axes.plot(
        x,
        y,
        marker="o" if point.ours else "s",
        color=color,
        markerfacecolor=color if point.ours else "none",
        markersize=7 if point.ours else 5,
        linestyle="none",
        label=point.workload if point.ours else None,
    )
