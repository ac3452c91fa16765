"""What the site takes from benchmarks/results: every table as a page, and plots of the races.

Sources link the tables where they lie in the repository, so that the links work there, too; the
site has them in ``results/``. ``<!-- plot: NAME -->`` becomes the plot of ``NAME.json``, and
``<!-- gains: TITLE -->`` that of all tables of ``benchmarks/train/gains.py`` with this title.
"""

import io
import json
import logging
import re
import statistics
from dataclasses import dataclass
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

GAINS = ["linear", "20-NN", "200-NN", "Δ plain", "Δ forwards"]


@dataclass(frozen=True)
class Accuracy:
    """A row of a table of gains: mean and standard deviation of the linear probe, in %."""

    method: str
    treatment: str
    mean: float
    deviation: float


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
    gains: dict[str, list[Accuracy]] = {}
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        title = text.partition("\n")[0].removeprefix("# ")
        gains.setdefault(title, []).extend(accuracies_of(text))
    for title, rows in gains.items():
        if rows:
            svg = File.generated(config, f"results/{file_of(title)}", content=plot_gains(rows))
            files.append(svg)
    return files


def file_of(title: str) -> str:
    """The plot of the gains in tables with this title."""
    return f"gains-{title.lower().replace(' ', '-')}.svg"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links into ``benchmarks/results`` to the site's ``results``, and puts the plots in."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./benchmarks/results/", r"](\1results/", markdown)
    plot_of_races = r"![Times relative to mast_ext](results/\1.svg)"
    markdown = re.sub(r"<!-- plot: (\S+) -->", plot_of_races, markdown)
    return re.sub(
        r"<!-- gains: (.+?) -->",
        lambda match: f"![Accuracy by method, plain and not](results/{file_of(match[1])})",
        markdown,
    )


def races_of(document: dict[str, Any]) -> list[Race]:
    """The races of a file of `make bench`, or of one of `make gpu-check`, which has them inside."""
    return (document.get("benchmarks") or document).get("races", [])


def label_of(race: Race) -> str:
    """Operator and sizes, such as ``ntxent batch=1024 dim=128``."""
    return " ".join([race["operator"], *(f"{name}={n}" for name, n in race["case"].items())])


def accuracies_of(text: str) -> list[Accuracy]:
    """The rows of a table of gains; none of another table."""
    rates: dict[str, str] = dict(
        each.split()
        for listed in re.findall(r"^Learning rates, .*: (.+)\.$", text, re.MULTILINE)
        for each in listed.split(", ")
    )
    found, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("#"):
            inside = False
        elif [cell for cell in cells if cell][: len(GAINS)] == GAINS:
            inside = True
        elif inside and line.startswith("|") and not cells[0].startswith("-"):
            mean, _, deviation = cells[2].partition(" ± ")
            method = f"{cells[0]}, rate {rates[cells[0]]}"
            found.append(Accuracy(method, cells[1], float(mean), float(deviation or 0)))
    return found


def plot_gains(rows: list[Accuracy]) -> str:
    """Accuracies, methods one above the other, the treatments of each side by side."""
    methods = list(dict.fromkeys(row.method for row in rows))
    treatments = list(dict.fromkeys(row.treatment for row in rows))
    figure = Figure(figsize=(8, 1 + 0.16 * len(rows)))
    axes = figure.subplots()
    for number, treatment in enumerate(treatments):
        of_it = [row for row in rows if row.treatment == treatment]
        axes.errorbar(
            [row.mean for row in of_it],
            [methods.index(row.method) + 0.7 * (number + 0.5) / len(treatments) for row in of_it],
            xerr=[row.deviation for row in of_it],
            fmt="o",
            color=f"C{number}",
            label=treatment,
        )
    axes.set_yticks([index + 0.35 for index in range(len(methods))], methods)
    for index in range(1, len(methods)):
        axes.axhline(index - 0.15, color="gray", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_xlabel("linear probe, %: mean and standard deviation over seeds")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn(figure)


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
    return drawn(figure)


def drawn(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()
