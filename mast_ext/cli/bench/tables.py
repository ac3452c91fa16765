"""What was measured as a table, on the terminal and in a Markdown file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from mast_ext.cli.errors import UsageError
from mast_ext.cli.parser import Parser, output_console
from mast_ext.train.state.run_directory import require_writable, write_text

Rows = Sequence[Sequence[str]]


def add_outputs(parser: Parser) -> None:
    """Adds the options that say where numbers go: ``--json`` and ``--report``."""
    parser.add_argument(
        "--json", action="store_true", help="Print everything as JSON in place of a table."
    )
    parser.add_argument(
        "--report",
        type=str | None,
        default=None,
        metavar="FILE.md",
        help="Write the table to this Markdown file, too, and FILE.json beside it.",
    )


def require_report(path: str | None) -> None:
    """Checks before the work whether the files of ``--report``, if given, can be written.

    Raises:
        UsageError: It has the name of the file that is written beside it.
        RunError: The file cannot be written.
    """
    if path is not None and Path(path).suffix == ".json":
        raise UsageError(f"--report must not end in .json, which is written beside it, got {path}")
    require_writable(path)


def put_out(
    values: Namespace,
    title: str,
    notes: Sequence[str],
    command: str,
    heads: Sequence[str],
    tables: Mapping[str, Rows],
    document: Mapping[str, Any],
) -> None:
    """Prints and writes what the options of `add_outputs` ask for.

    Args:
        values: The command line.
        title: Of the page, and of a table without a heading.
        notes: One sentence each.
        command: The command line as text, which is written to the file alone.
        heads: Of the columns.
        tables: Rows by the heading above them; "" for none.
        document: The same as JSON, with all numbers.

    Raises:
        RunError: A file cannot be written.
    """
    text = json.dumps(document, indent=1) + "\n"
    if values.json:
        print(text, end="")
    else:
        console = output_console()
        for heading, rows in tables.items():
            print_table(console, heads, rows, heading or title)
        print_notes(console, notes)
    if values.report is not None:
        path = Path(values.report)
        write_markdown(path, title, [*notes, f"command: `{command}`"], heads, tables)
        write_text(path.with_suffix(".json"), text)


def print_table(console: Console, heads: Sequence[str], rows: Rows, title: str = "") -> None:
    """Prints a table, whose first column is of names and all others of numbers."""
    table = Table(title=title or None, title_justify="left", title_style="bold")
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Prints what the numbers depend on, one sentence a line."""
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def write_markdown(
    path: Path,
    title: str,
    notes: Sequence[str],
    heads: Sequence[str],
    tables: Mapping[str, Rows],
) -> None:
    """Writes notes and tables, all with the same heads, as Markdown.

    Args:
        path: The file.
        title: Of the page.
        notes: One sentence each.
        heads: Of the columns.
        tables: Rows by the heading above them; "" for none.

    Raises:
        RunError: The file cannot be written.
    """
    lines = [f"# {title}", "", *(f"* {note}" for note in notes)]
    for heading, rows in tables.items():
        lines += ["", f"## {heading}"] if heading else []
        lines += ["", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    write_text(path, "\n".join(lines) + "\n")
