"""Tables of what was measured: for a terminal, and as plain numbers for programs.

Names of classes and factors come from data, so they are escaped where they meet markup.
"""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.augmentations import PLACE
from mast_ext.train.evaluation.evaluate import Row, Scores, protocols

Sheet = tuple[str, list[str], list]
"""Title, column names, rows of cells: model, representation, then numbers."""


def grids(rows: Sequence[Row], which: Sequence[str] | None = None) -> list[Sheet]:
    """Tables of accuracies, in percent.

    One table per protocol with a column per factor; with a single factor, one table with a column
    per protocol. A cell is None where nothing was measured.
    """
    shown = [name for name in protocols(rows) if which is None or name in which]
    factors = list(dict.fromkeys(f for row in rows for s in row.scores.values() for f in s))
    scores = [row.scores for row in rows]
    return _tables_of_scores(rows, scores, "accuracy", shown, factors)


def mean_class_grids(rows: Sequence[Row], factors: Sequence[str]) -> list[Sheet]:
    """Tables like those of `grids`, of the mean accuracy of classes of these factors."""
    if not factors:
        return []
    scores = [row.mean_class for row in rows]
    return _tables_of_scores(rows, scores, "mean accuracy of classes", protocols(rows), factors)


def augmentation_grids(rows: Sequence[Row]) -> list[Sheet]:
    """Two more tables, of what representations know of augmentations, where it was measured."""
    measured = [row for row in rows if row.augmentations]
    names = list(dict.fromkeys(name for row in measured for name in row.augmentations))
    title = "two views of an image differ by how much? R² (%)"
    result = []
    for what, of_place in (("place", True), ("color", False)):
        columns = [name for name in names if (name in PLACE) == of_place]
        body = [
            [row.model, row.part, *(row.augmentations.get(name) for name in columns)]
            for row in measured
        ]
        if columns:
            result.append((f"{title}, {what}", ["model", "representation", *columns], body))
    return result


def _tables_of_scores(
    rows: Sequence[Row],
    scores: Sequence[Scores],
    what: str,
    shown: Sequence[str],
    factors: Sequence[str],
) -> list[Sheet]:
    if len(factors) == 1:
        columns = [(name, factors[0]) for name in shown]
        plans = [(f"{what} (%), {factors[0]}", shown, columns)] if shown else []
    else:
        plans = [
            (f"{name}: {what} (%) of every factor", factors, [(name, f) for f in factors])
            for name in shown
        ]
    result = []
    for title, heads, columns in plans:
        body = []
        for row, found in zip(rows, scores, strict=True):
            cells = [found.get(name, {}).get(factor) for name, factor in columns]
            if any(cell is not None for cell in cells):
                body.append([row.model, row.part, *cells])
        result.append((title, ["model", "representation", *heads], body))
    return result


def rank_grids(rows: Sequence[Row]) -> list[Sheet]:
    """One more table like those of `grids`, of ranks: cells are texts. None without ranks."""
    body = [
        [row.model, row.part, f"{row.rankme:.1f}", str(row.dimensions)]
        for row in rows
        if row.rankme is not None
    ]
    title = "RankMe: how many dimensions training images use"
    heads = ["model", "representation", "RankMe", "dimensions"]
    return [(title, heads, body)] if body else []


def tables(
    rows: Sequence[Row], which: Sequence[str] | None = None, unbalanced: Sequence[str] = ()
) -> list[Table]:
    """The tables for a terminal.

    Args:
        rows: What was measured.
        which: Protocols to show; by default all.
        unbalanced: Factors of which the mean accuracy of classes is shown, too.
    """
    result = []
    for title, heads, body in [
        *grids(rows, which),
        *mean_class_grids(rows, unbalanced),
        *augmentation_grids(rows),
        *rank_grids(rows),
    ]:
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
            table.add_row(shown_model, escape(part), *map(shown, cells))
        result.append(table)
    return result


def results(rows: Sequence[Row], subspaces: Subspaces | None) -> dict[str, Any]:
    """The same numbers for programs: fractions of 1, ranks, masks and their overlaps."""
    found: dict[str, Any] = {"rows": [_result(row) for row in rows]}
    if subspaces is not None:
        found["subspaces"] = {
            "names": list(subspaces.names),
            "masks": [[round(x, 4) for x in mask] for mask in subspaces.masks.tolist()],
            "freed_dimensions": subspaces.freed.tolist(),
            "overlap": subspaces.overlap.tolist(),
        }
    return found


def _result(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"model": row.model, "part": row.part, "accuracy": row.scores}
    if row.mean_class:
        found["mean_class_accuracy"] = row.mean_class
    if row.augmentations:
        found["augmentation_r2"] = row.augmentations
    if row.rankme is not None:
        found |= {"rankme": row.rankme, "dimensions": row.dimensions}
    return found


def shown(cell: float | str | None) -> str:
    """A cell of a table: a text as it is, a fraction as a percentage."""
    return cell if isinstance(cell, str) else percent(cell)


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit; empty for None."""
    return "" if value is None else f"{round(100 * value, 1) + 0.0:.1f}"  # not "-0.0"
