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
    parser.add_argument("RUN", nargs="+", help="A run directory.")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"The page; by default RUN/report/{PAGE} for one run, report.html here for several.",
    )
    values = parser.parse_args(list(arguments))
    runs = [Path(run) for run in values.RUN]
    if values.out is not None:
        out = Path(values.out)
    else:
        out = RunDirectory.open(runs[0]).report / PAGE if len(runs) == 1 else Path("report.html")
    print(f"report: {write_report(runs, out)}")
    return 0
