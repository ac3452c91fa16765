"""Numbers and tables in Markdown."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def amount(size: float) -> str:
    """Bytes, with three digits at most."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2g}" if seconds < 0.0095 else f"{1000 * seconds:,.0f}"


def table_head(names: list[str]) -> list[str]:
    return [row(names), row(["---"] * len(names))]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_table(title: str, notes: Sequence[str], table: Sequence[str], to: Path | None) -> None:
    """Prints a table with what it was made by, and writes it to a file, too."""
    text = "\n".join(
        [
            f"# {title}",
            "",
            *notes,
            "",
            f"* torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores",
            f"* command: `python {shlex.join(sys.argv)}`",
            "",
            *table,
        ]
    )
    print(text)
    if to is not None:
        to.write_text(text + "\n")
