"""What the site takes from benchmarks/results: every table as a page, and plots of the races.

Sources link the tables where they lie in the repository, so that the links work there, too; the site
has them in ``results/``. ``<!-- plot: NAME -->`` becomes the plot of ``NAME.json``.
"""

import io
import json
import logging
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MODE = "forward + backward"

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
matplotlib.rcParams["svg.hashsalt"] = "mast_ext"  # the same bytes from the same numbers
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

Race = dict[str, Any]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds ``results/<name>.md`` of every table, and ``results/<name>.svg`` of every race file."""
    for path in sorted(RESULTS.glob("*.md")):
        page = File.generated(config, f"results/{path.name}", content=path.read_text())
        files.append(page)
    for path in sorted(RESULTS.glob("*.json")):
        races = races_of(json.loads(path.read_text()))
        if races:
            svg = File.generated(config, f"results/{path.stem}.svg", content=plot(races))
            files.append(svg)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links into ``benchmarks/results`` to the site's ``results``, and puts the plots in."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./benchmarks/results/", r"](\1results/", markdown)
    plot_of_races = r"![Times relative to mast_ext](results/\1.svg)"
    return re.sub(r"<!-- plot: (\S+) -->", plot_of_races, markdown)


def races_of(document: dict[str, Any]) -> list[Race]:
    """The races of a file of `make bench`, or of one of `make gpu-check`, which has them inside."""
    return (document.get("benchmarks") or document).get("races", [])


def label_of(race: Race) -> str:
    """Operator and sizes, such as ``ntxent batch=1024 dim=128``."""
    return " ".join([race["operator"], *(f"{name}={n}" for name, n in race["case"].items())])


def plot(races: list[Race]) -> str:
    """Bars of how many times slower each rival is than ours; of forward and backward if there."""
    with_backward = {race["operator"] for race in races if race["mode"] == MODE}
    shown = [r for r in races if r["mode"] == MODE or r["operator"] not in with_backward]
    figure = Figure(figsize=(9, 0.6 + 0.2 * sum(len(r["results"]) for r in shown)))
    axes = figure.subplots()
    ticks, labels, position = [], [], 0.0
    colors: dict[str, Any] = {}
    for race in shown:
        medians = {r["name"]: statistics.median(r["milliseconds"]) for r in race["results"]}
        ours, *rivals = medians
        start = position
        for name in rivals:
            ratio = medians[name] / medians[ours]
            color = colors.setdefault(name, f"C{len(colors)}")
            new = position == 0 or name not in axes.get_legend_handles_labels()[1]
            axes.barh(position, ratio - 1, 0.9, left=1, color=color, label=name if new else None)
            axes.text(max(ratio, 1) * 1.04, position, f"{ratio:.1f}×", va="center", fontsize=7)
            position += 1
        ticks.append((start + position - 1) / 2)
        labels.append(label_of(race).replace(" ", "\n", 1))
        position += 1
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.01)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to mast_ext (logarithmic; the line is mast_ext)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()
