"""Figures of runs: their metrics, masks, accuracies, and views as the trained networks see them.

Each has one pair of axes or a narrow grid, so that it can be read on a telephone, and colors that
are legible on white and on black (see `mast_ext.train.report.html`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torchmetrics.functional import spearman_corrcoef

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.views import HardViewExamples, PairUncertainty
from mast_ext.train.state.text import READABLE

INK = "#1b1f24"
"""Text and axes. In a dark page it becomes light."""

GRAY = "#7d8590"
"""What is beside the point: zero, networks without training."""

COLORS = (
    *("#2f7fc1", "#d0722a", "#2f9e5f", "#c94f7c", "#8f6fd0", "#a0785a", "#1f95a3", "#8a8f2a"),
)
"""Of lines, one after the other; then again with another kind of line."""

STYLES = ("-", "--", ":", "-.")

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#8b929a",
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters as letters: lighter, and in the reader's fonts
    "svg.hashsalt": "mast_ext",  # the same figure has the same bytes
}
"""matplotlib's settings for these figures, for drawing and saving."""

WIDTH = 4.2
"""Inches: about what a telephone shows without making letters smaller."""

POINTS = 200
"""Points of a line, at most: of more rows, neighbors are averaged."""


@dataclass(frozen=True)
class Line:
    """A line of a figure.

    Attributes:
        label: What the legend calls it.
        x: ``[N]``.
        y: ``[N]``, NaN where there is no point.
        number: Says its color and kind: lines of one training have the same in all figures.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    number: int

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Those that are finite, neighbors averaged so that they are no more than `POINTS`."""
        there = np.isfinite(self.y)
        x, y = self.x[there], self.y[there]
        if len(x) <= POINTS:
            return x, y
        starts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)
        counts = np.diff(np.append(starts, len(x)))
        return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


@dataclass(frozen=True)
class Marks:
    """Accuracies of one representation.

    Attributes:
        model: What it is of.
        part: Which representation it is; empty for chance.
        scores: Accuracies in [0, 1], None where there is none.
        number: Says the color, as that of a `Line`; None for what was not trained.
    """

    model: str
    part: str
    scores: Sequence[float | None]
    number: int | None


def draw_lines(
    lines: Sequence[Line],
    label: str,
    *,
    until: float,
    from_zero: bool = False,
    zero_line: bool = False,
) -> Figure:
    """Lines over epochs.

    Args:
        lines: What to draw; they have finite points.
        label: Of the vertical axis.
        until: Where the horizontal axis ends, to be the same in several figures.
        from_zero: Whether the vertical axis begins at 0.
        zero_line: Whether 0 is marked.
    """
    figure, axes = _figure(2.5, [line.label for line in lines])
    handles: list[Line2D] = []
    for line in lines:
        x, y = line.points()
        marker = "." if len(x) < 30 else None
        handles += axes.plot(x, y, marker=marker, label=line.label, linewidth=1.5)
        handles[-1].set(**_look(line.number))
    if zero_line:
        axes.axhline(0, color=GRAY, linewidth=0.8)
    if from_zero:
        top = max(line.points()[1].max() for line in lines)
        axes.set_ylim(0, 1.08 * top if top > 0 else 1)
    axes.set_xlim(0, 1.02 * until)
    axes.set_xlabel("epoch")
    axes.set_ylabel(_short(label))
    _legend(figure, handles)
    return figure


def draw_accuracies(heads: Sequence[str], marks: Sequence[Marks]) -> Figure:
    """Accuracies as marks on lines, one line for each of ``heads``.

    Args:
        heads: What was predicted, or by which protocol.
        marks: Of every representation.
    """
    models = list(dict.fromkeys(mark.model for mark in marks))
    parts = list(dict.fromkeys(mark.part for mark in marks if mark.part))
    shapes = {"": "|", **dict(zip(parts, "oDs^v", strict=False))}
    colors = {mark.model: _mark_color(mark.number) for mark in marks}
    legend = [(color, "s", model) for model, color in colors.items()]
    legend += [(INK, shapes.get(part, "o"), part) for part in parts]
    height = 0.8 + len(heads) * (0.15 + 0.1 * len(models))
    figure, axes = _figure(height, [label for _, _, label in legend])
    rows = np.arange(len(heads))
    for mark in marks:
        values = [np.nan if score is None else 100 * score for score in mark.scores]
        # Models stand a little above each other, so that equal ones can be told apart.
        shift = 0.7 * ((models.index(mark.model) + 0.5) / len(models) - 0.5)
        (drawn,) = axes.plot(values, rows + shift, color=colors[mark.model], markersize=5.5)
        drawn.set(linestyle="", marker=shapes.get(mark.part, "o"))
    axes.set_yticks(rows, [_short(head) for head in heads])
    axes.set_ylim(len(heads) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%)")
    _legend(
        figure,
        [Line2D([], [], color=c, marker=m, linestyle="", label=label) for c, m, label in legend],
    )
    return figure


def draw_masks(subspaces: Subspaces) -> Figure:
    """Masks as a picture, a row per augmentation.

    Dimensions are sorted by the augmentation that frees them; those that none frees come first.
    """
    masks = subspaces.masks.numpy()
    freed = 1 - masks
    owner = np.where(freed.max(0) > 0.5, 1 + freed.argmax(0), 0)
    order = np.lexsort((freed.max(0), owner))
    figure, axes = _figure(1.2 + 0.35 * len(masks))
    image = axes.imshow(masks[:, order], aspect="auto", interpolation="none", vmin=0, vmax=1)
    counts = zip(subspaces.names, subspaces.freed.tolist(), strict=True)
    axes.set_yticks(range(len(masks)), [f"{_short(name)}\nfrees {n:.0f}" for name, n in counts])
    axes.set_xlabel("dimension of the embedding, sorted")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes)
    return figure


def draw_overlap(subspaces: Subspaces) -> Figure:
    """How much the freed dimensions of every pair of augmentations have in common."""
    overlap, names = subspaces.overlap.numpy(), [_short(name) for name in subspaces.names]
    figure, axes = _figure(min(WIDTH, 1.4 + 0.5 * len(names)))
    axes.imshow(overlap, vmin=0, vmax=1, interpolation="none")
    for (i, j), value in np.ndenumerate(overlap):
        color = "black" if value > 0.5 else "white"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    return figure


def draw_chosen_views(examples: HardViewExamples) -> Figure:
    """Views of images, a row per image. Those that were chosen have a frame.

    Beside a row stands the overlap (IoU) of the chosen views' crops.
    """
    count, views = examples.chosen.shape
    side = WIDTH / (views + 0.5)
    figure = Figure(figsize=(WIDTH, count * side), layout="constrained")
    grid = figure.subplots(count, views, squeeze=False)
    for i, j in np.ndindex(grid.shape):
        axes = grid[i, j]
        axes.imshow(examples.images[i, j], interpolation="none")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=bool(examples.chosen[i, j]), color="#e0245e", linewidth=3)
        if j == 0:
            axes.set_ylabel(f"IoU {examples.crop_iou[i]:.2f}", fontsize=8)
    return figure


def draw_uncertainty(uncertainty: PairUncertainty, against: str) -> tuple[Figure, float]:
    """Uncertainty of pairs against how far apart their views are made.

    Args:
        uncertainty: Of pairs.
        against: ``crop_iou`` or ``color_distance``.

    Returns:
        The figure, and Spearman's rank correlation of the two.
    """
    label = {
        "crop_iou": "overlap of the two crops (IoU)",
        "color_distance": "distance of the two colors (standard deviations)",
    }[against]
    x, y = getattr(uncertainty, against), uncertainty.log_variance
    figure, axes = _figure(2.5)
    axes.scatter(x, y, s=5, alpha=0.6, color=COLORS[0], linewidths=0)
    axes.set_xlabel(label)
    axes.set_ylabel("log-variance of the pair")
    return figure, float(spearman_corrcoef(torch.from_numpy(y), torch.from_numpy(x)))


def _mark_color(number: int | None) -> str:
    return GRAY if number is None else COLORS[number % len(COLORS)]


def _look(number: int) -> dict[str, str]:
    style = STYLES[number // len(COLORS) % len(STYLES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": style}


def _figure(height: float, labels: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, of this height without the legend of these labels."""
    figure = Figure(figsize=(WIDTH, height + 0.19 * len(labels)), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Under the axes, where it hides nothing, however many lines there are."""
    labels = [_short(str(handle.get_label())) for handle in handles]
    figure.legend(handles, labels, loc="outside lower left", fontsize=8.5, labelspacing=0.25)


def _short(label: str, most: int = 48) -> str:
    """A label that fits into a figure: its middle is left out. What it says is no mathematics.

    What is not Unicode is escaped, and characters are left out that XML, of which figures are made,
    does not allow.
    """
    text = label.encode(errors=READABLE).decode()
    text = "".join(c for c in text if c >= " " and c not in "\ufffe\uffff")
    half = most // 2
    text = text if len(text) <= most else f"{text[: half - 1]}…{text[-half:]}"
    return text.replace("$", r"\$")
