"""The report of a run: one HTML file that holds tables, figures and settings.

Names of classes and factors come from data, so they are escaped where they meet markup.
"""

import base64
import csv
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.evaluate import LINEAR, Row
from mast_ext.train.report.figures import (
    draw_gains,
    draw_hard_views,
    draw_losses,
    draw_masks,
    draw_overlap,
    draw_probes,
    draw_ranks,
    gain_columns,
)
from mast_ext.train.report.tables import grids, rank_grids, results, shown
from mast_ext.train.state.run_directory import make_folder, replacing, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
img { max-width: 100% } pre { background: #f5f5f5; padding: 1rem; overflow: auto }
"""


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
        folder: Where; made if missing, in a folder that exists.
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
    make_folder(folder)
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
    if any("rankme/embedding" in columns for columns in curves.values()):
        pictures["ranks"] = draw_ranks(curves)
    gains = {name: gain_columns(columns) for name, columns in curves.items()}
    if any(gains.values()):
        pictures["gain"] = draw_gains(curves, gains)
    if any("hard_views/iou" in columns for columns in curves.values()):
        pictures["hard_views"] = draw_hard_views(curves)
    pictures |= {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in pictures.items():
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, dpi=110, format="png")
    write_text(folder / "results.json", json.dumps(results(rows, subspaces), indent=2) + "\n")

    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += [_html_table(*grid) for grid in [*grids(rows), *rank_grids(rows)]]
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


def _read_metrics(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def _html_table(title: str, heads: list[str], body: list) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = []
    for model, part, *cells in body:
        texts = [html.escape(model), html.escape(part), *map(shown, cells)]
        lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{''.join(lines)}</table>"
