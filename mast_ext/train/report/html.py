"""What a run leaves to look at: tables on the screen, pictures, and one HTML file that holds all.

Names of classes and factors come from data, so they are escaped wherever they meet markup.
"""

import base64
import csv
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.evaluate import LINEAR, Row, protocols
from mast_ext.train.state.run_directory import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
img { max-width: 100% } pre { background: #f5f5f5; padding: 1rem; overflow: auto }
"""


def grids(
    rows: Sequence[Row], which: Sequence[str] | None = None
) -> list[tuple[str, list[str], list]]:
    """Tables as (title, column names, rows of cells): model, part, then percentages.

    One table per protocol with a column per factor; with a single factor, one table with a column
    per protocol. A cell is None where nothing was measured.
    """
    shown = [name for name in protocols(rows) if which is None or name in which]
    factors = list(dict.fromkeys(f for row in rows for s in row.scores.values() for f in s))
    if len(factors) == 1:
        columns = [(name, factors[0]) for name in shown]
        plans = [(f"accuracy (%), {factors[0]}", shown, columns)]
    else:
        plans = [
            (f"{name}: accuracy (%) of every factor", factors, [(name, f) for f in factors])
            for name in shown
        ]
    result = []
    for title, heads, columns in plans:
        body = []
        for row in rows:
            cells = [row.scores.get(name, {}).get(factor) for name, factor in columns]
            if any(cell is not None for cell in cells):
                body.append([row.model, row.part, *cells])
        result.append((title, ["model", "representation", *heads], body))
    return result


def tables(rows: Sequence[Row], which: Sequence[str] | None = None) -> list[Table]:
    """The tables for a terminal."""
    result = []
    for title, heads, body in grids(rows, which):
        table = Table(title=escape(title), title_justify="left")
        for position, head in enumerate(heads):
            table.add_column(
                escape(head), justify="left" if position < 2 else "right", no_wrap=True
            )
        previous = None
        for model, part, *cells in body:
            same = model == previous
            if not same and previous is not None:
                table.add_section()
            previous = model
            shown_model = "" if same else escape(model)
            table.add_row(shown_model, escape(part), *(_percent(cell) for cell in cells))
        result.append(table)
    return result


def write_report(
    folder: Path,
    *,
    title: str,
    rows: Sequence[Row],
    subspaces: Subspaces | None,
    metrics: dict[str, Path],
    settings: str,
    notes: Sequence[str] = (),
    drawn: Mapping[str, Figure | None] = MappingProxyType({}),
) -> Path:
    """Writes the pictures, ``results.json`` and ``report.html`` into a folder.

    Args:
        folder: Where; made if missing.
        title: Heading of the report.
        rows: What was measured.
        subspaces: Masks to draw, if there are any.
        metrics: ``metrics.csv`` of every training, by its name.
        settings: The run's settings as YAML.
        notes: Sentences under the heading.
        drawn: Further pictures by name, where there are any.

    Returns:
        The HTML file, which needs no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Figure] = {}
    curves = {name: _read_metrics(path) for name, path in metrics.items() if path.exists()}
    if subspaces is not None:
        pictures["masks"] = draw_masks(subspaces)
        pictures["overlap"] = draw_overlap(subspaces)
        probed = grids(rows, [LINEAR])
        if probed and len(probed[0][1]) > 3:
            pictures["probes"] = draw_probes(*probed[0])
    if any(curves.values()):
        pictures["loss"] = draw_losses(curves)
    gains = {name: gain_columns(columns) for name, columns in curves.items()}
    if any(gains.values()):
        pictures["gain"] = draw_gains(curves, gains)
    if any("hard_views/iou" in columns for columns in curves.values()):
        pictures["hard_views"] = draw_hard_views(curves)
    pictures |= {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    write_text(folder / "results.json", json.dumps(results(rows, subspaces), indent=2) + "\n")

    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += [_html_table(*grid) for grid in grids(rows)]
    for name in pictures:
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    parts.append(f"<h2>Settings</h2><pre>{html.escape(settings)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def results(rows: Sequence[Row], subspaces: Subspaces | None) -> dict[str, Any]:
    """The same numbers for programs: accuracies in [0, 1], masks' dimensions and overlaps."""
    found: dict[str, Any] = {
        "rows": [{"model": r.model, "part": r.part, "accuracy": r.scores} for r in rows]
    }
    if subspaces is not None:
        found["subspaces"] = {
            "names": list(subspaces.names),
            "effective_dimensions": subspaces.effective_dimensions.tolist(),
            "overlap": subspaces.overlap.tolist(),
        }
    return found


def draw_masks(subspaces: Subspaces) -> Figure:
    """Masks as a picture, ``K`` rows; dimensions sorted by the subspace they belong to most."""
    masks = subspaces.masks.numpy()
    order = np.lexsort((-masks.max(0), masks.argmax(0)))
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(masks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(masks[:, order], aspect="auto", interpolation="nearest", vmin=0)
    dims = subspaces.effective_dimensions.tolist()
    ticks = [f"{name} ({n:.0f})" for name, n in zip(subspaces.names, dims, strict=True)]
    axes.set_yticks(range(len(ticks)), ticks)
    axes.set_xlabel("embedding dimension, sorted")
    axes.set_title("masks (effective dimensions)")
    figure.colorbar(image)
    return figure


def draw_overlap(subspaces: Subspaces) -> Figure:
    """The overlap of every pair of subspaces."""
    overlap, names = subspaces.overlap.numpy(), subspaces.names
    side = 2.2 + 0.6 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(overlap, vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(overlap):
        colour = "black" if value > 0.5 else "white"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("overlap of subspaces")
    figure.colorbar(image)
    return figure


def draw_probes(title: str, heads: Sequence[str], body: Sequence[list]) -> Figure:
    """One of `grids`' tables of several factors as a picture: what each representation knows."""
    scores = np.array([[np.nan if cell is None else cell for cell in row[2:]] for row in body])
    size = (2.5 + 1.1 * len(heads[2:]), 1.2 + 0.4 * len(body))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(scores, aspect="auto", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(scores):
        colour = "black" if value > 0.5 else "white"
        axes.text(j, i, _percent(value), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(heads) - 2), heads[2:])
    axes.set_yticks(range(len(body)), [" ".join(row[:2]) for row in body])
    axes.set_title(title)
    return figure


def draw_losses(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """The training loss of every model over its epochs."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, columns in curves.items():
        if columns:
            axes.plot(columns["epoch"], columns["loss"], label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (of each method: not comparable)")
    axes.legend()
    return figure


def gain_columns(columns: dict[str, list[float]]) -> dict[str, str]:
    """Those of EquiMod's gains among the columns of metrics, by augmentation (or ``all``)."""
    stem = "equivariance_gain"
    found = {name: name.removeprefix(stem) for name in columns if name.startswith(stem)}
    return {name: rest.removeprefix("/") or "all" for name, rest in found.items()}


def draw_gains(
    curves: dict[str, dict[str, list[float]]], gains: dict[str, dict[str, str]]
) -> Figure:
    """How much nearer EquiMod's predictions come than the plain image, by augmentation."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for model, named in gains.items():
        for column, augmentation in named.items():
            width = 2.5 if augmentation == "all" else 1.2
            label = f"{model}: {augmentation}"
            axes.plot(curves[model]["epoch"], curves[model][column], label=label, linewidth=width)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("equivariance gain (cosine)")
    axes.legend()
    return figure


def draw_hard_views(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """How far apart the chosen pairs' views are, beside the mean pair's (steps that selected)."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("iou", "IoU of the crops"), ("color", "distance of colour parameters")),
        strict=True,
    ):
        for model, columns in curves.items():
            for kind, style in (("", "-"), ("_random", "--")):
                values = columns.get(f"hard_views/{name}{kind}", [])
                points = [p for p in zip(columns["epoch"], values, strict=False) if p[1] == p[1]]
                if points:
                    text = f"{model}: {'random' if kind else 'chosen'} pairs"
                    axes.plot(*zip(*points, strict=True), style, label=text)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if axes.lines:
            axes.legend()
    return figure


def _read_metrics(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _html_table(title: str, heads: list[str], body: list) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = []
    for model, part, *cells in body:
        texts = [html.escape(model), html.escape(part), *(_percent(cell) for cell in cells)]
        lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{''.join(lines)}</table>"
