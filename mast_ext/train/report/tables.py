"""Tables of what was measured: for a terminal, and as plain numbers for programs.

Names of classes and factors come from data, so they are escaped where they meet markup.
"""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.evaluate import Row, protocols


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


def rank_grids(rows: Sequence[Row]) -> list[tuple[str, list[str], list]]:
    """One more table like those of `grids`, of ranks: cells are texts. None without ranks."""
    body = [
        [row.model, row.part, f"{row.rankme:.1f}", str(row.dimensions)]
        for row in rows
        if row.rankme is not None
    ]
    title = "RankMe: how many dimensions training images use"
    heads = ["model", "representation", "RankMe", "dimensions"]
    return [(title, heads, body)] if body else []


def tables(rows: Sequence[Row], which: Sequence[str] | None = None) -> list[Table]:
    """The tables for a terminal."""
    result = []
    for title, heads, body in [*grids(rows, which), *rank_grids(rows)]:
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
    """The same numbers for programs: accuracies in [0, 1], ranks, masks and their overlaps."""
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
    if row.rankme is not None:
        found |= {"rankme": row.rankme, "dimensions": row.dimensions}
    return found


def shown(cell: float | str | None) -> str:
    """A cell of a table: a text as it is, a fraction as a percentage."""
    return cell if isinstance(cell, str) else percent(cell)


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit; empty for None."""
    return "" if value is None else f"{100 * value:.1f}"
