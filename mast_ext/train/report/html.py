"""The report of runs: one HTML file that holds tables, figures and settings, and needs no other.

Names of classes, factors and runs come from data: Jinja escapes whatever the template prints.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from mast_ext.train.errors import RunError
from mast_ext.train.report.figures import INK, STYLE
from mast_ext.train.report.record import read_runs
from mast_ext.train.report.sections import sections, title
from mast_ext.train.state.run_directory import make_folder, named_failure, write_text

PAGE = "index.html"
"""The report of one run, in the folder ``report`` of its directory."""

GENERATOR = '<meta name="generator" content="mast-ext report">'
"""By which a page is known to be one of ours."""

DARK = f"""<style>@media (prefers-color-scheme: dark) {{
[style*="stroke: {INK}"] {{ stroke: #d9dee4 !important }}
[style*="fill: {INK}"] {{ fill: #d9dee4 !important }}
}}</style>"""
"""Makes the ink of a figure light where the page is dark."""


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Writes a page of one run, or one that compares several.

    It is made of what lies in the run directories, whether they are finished or not.

    Args:
        paths: The run directories.
        out: The page. Its folder is made if missing, in a folder that exists. An earlier report is
            replaced.

    Returns:
        ``out``.

    Raises:
        RunError: A path is not a run directory, has damaged files or is given twice; or ``out`` is
            something else than a report, or cannot be written.
    """
    _require_ours(out)
    runs = read_runs(paths)
    with matplotlib.rc_context(STYLE):
        page = _TEMPLATES.get_template("page.html").render(
            title=title(runs), sections=sections(runs), generator=GENERATOR
        )
    make_folder(out.parent)
    write_text(out, page)
    return out


def keep_foreign(out: Path) -> Path | None:
    """Renames what is in the place of a report and is none, such as a page of a user's own.

    Args:
        out: Where a report is to be written.

    Returns:
        What it is called now; None where nothing was in the way.

    Raises:
        RunError: It cannot be renamed.
    """
    if _is_free(out):
        return None
    number = 1
    while (kept := out.with_name(f"{out.stem}-{number}{out.suffix}")).exists():
        number += 1
    with named_failure(out):
        return out.rename(kept)


def _require_ours(out: Path) -> None:
    """Raises a RunError unless a path is free, or has a report that may be replaced."""
    if out.is_dir():
        raise RunError(f"--out must be a file, but {out} is a directory")
    if not _is_free(out):
        raise RunError(f"{out} is not a report of mast-ext and is left alone: choose another --out")


def _is_free(out: Path) -> bool:
    """Whether nothing is at a path, or a report that may be replaced."""
    if not out.exists():
        return True
    if out.is_dir():
        return False
    with out.open(encoding="utf-8", errors="replace") as file:
        return GENERATOR in file.read(1000)


def as_svg(figure: Figure) -> str:
    """A figure as the address of an image that holds it: SVG that follows the page's scheme."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same bytes tomorrow
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    head, tag, rest = file.getvalue().partition("<svg")
    end = rest.index(">") + 1
    svg = tag + rest[:end] + DARK + rest[end:]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


_TEMPLATES = Environment(
    loader=PackageLoader("mast_ext.train.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["svg"] = as_svg
