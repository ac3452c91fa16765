"""``mast-ext report``: a page of one run, or one that compares several."""

from collections.abc import Sequence
from pathlib import Path

from mast_ext.cli.parser import Parser
from mast_ext.train.report.html import PAGE, write_report
from mast_ext.train.state.run_directory import RunDirectory


def main(arguments: Sequence[str]) -> int:
    """Writes the page and says where. Returns the exit status."""
    parser = Parser(
        prog="mast-ext report",
        description="Writes one HTML page of a run, finished or not, or one that compares several:"
        " accuracy, curves, ranks, masks, hard views, settings.",
        allow_abbrev=False,
    )
    parser.add_argument("RUN", nargs="+", type=Path, help="A run directory.")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"The page; by default RUN/report/{PAGE} for one run, report.html here for several.",
    )
    values = parser.parse_args(list(arguments))
    out = values.out
    if out is None:
        one = len(values.RUN) == 1
        out = RunDirectory.open(values.RUN[0]).report / PAGE if one else Path("report.html")
    print(f"report: {write_report(values.RUN, out)}")
    return 0
