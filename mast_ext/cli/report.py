"""``mast-ext report``: a page of one run, or one that compares several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mast_ext.cli.errors import UsageError
from mast_ext.train.report.html import PAGE, write_report
from mast_ext.train.state.run_directory import RunDirectory


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (options: {self.prog} --help)")


def main(arguments: Sequence[str]) -> int:
    """Writes the page and says where. Returns the exit status."""
    parser = Parser(
        prog="mast-ext report",
        description="Writes one HTML page of a run, finished or not, or one that compares several:"
        " accuracy, curves, ranks, masks, hard views, settings.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A run directory.")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"The page; by default RUN/report/{PAGE} for one run, report.html here for several.",
    )
    values = parser.parse_args(arguments)
    out = values.out
    if out is None:
        one = len(values.runs) == 1
        out = RunDirectory.open(values.runs[0]).report / PAGE if one else Path("report.html")
    print(f"report: {write_report(values.runs, out)}")
    return 0
