"""What a report of runs says, section by section: sentences, tables, figures with captions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import yaml
from matplotlib.figure import Figure

from mast_ext.train.evaluation.evaluate import LINEAR
from mast_ext.train.report.figures import (
    Line,
    Marks,
    draw_accuracies,
    draw_chosen_views,
    draw_lines,
    draw_masks,
    draw_overlap,
    draw_uncertainty,
)
from mast_ext.train.report.record import (
    RunRecord,
    TrainingRecord,
    compared_rows,
    differing_settings,
)
from mast_ext.train.report.tables import grids, rank_grids, shown

GAIN = "equivariance_gain"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        figure: What is drawn.
        caption: What it shows, for a person who sees it for the first time.
        alt: What it shows, for a person who does not see it.
    """

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What stands there.
        share: A fraction in [0, 1] that shades it; None for no shade.
        best: Whether it is the best of its column.
    """

    text: str
    share: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: Its heading; empty for none.
        heads: Names of the columns.
        groups: Rows under a heading each (empty for none): their first cell names the row.
        note: A sentence under it.
    """

    title: str
    heads: Sequence[str]
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[Cell]]]]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        text: Sentences under the heading.
        grids: Its tables.
        pictures: Its figures.
        listings: Long texts that are folded up, by their titles.
    """

    title: str
    text: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    listings: Sequence[tuple[str, str]] = field(default=())


def sections(runs: Sequence[RunRecord]) -> list[Section]:
    """The sections that have something to show, in their order on the page."""
    made = [make(runs) for make in SECTIONS]
    return [s for s in made if s.text or s.grids or s.pictures or s.listings]


def title(runs: Sequence[RunRecord]) -> str:
    """The heading of the page."""
    if len(runs) == 1:
        return f"{runs[0].trainings[0].method} on {runs[0].settings['data'].get('name')}"
    return f"Comparison of {len(runs)} runs"


def _overview(runs: Sequence[RunRecord]) -> Section:
    rows = []
    for run in runs:
        for training in run.trainings:
            loss, speed = (training.columns.get(n) for n in ("loss", "views_per_second"))
            state = "finished" if run.measured else "not finished"
            epochs = f"{training.done:.4g}"
            # A finished one may have a little less than was asked for: steps are whole.
            if run.measured is None and training.done < training.epochs * 0.9999:
                epochs += f" of {training.epochs:.4g}"
            cells = [
                training.method,
                str(run.settings["data"].get("name")),
                state,
                epochs,
                "" if loss is None else f"{loss[-1]:.4g}",
                "" if speed is None else f"{np.nanmedian(speed):,.0f}",
            ]
            rows.append((training.label, [Cell(cell) for cell in cells]))
    heads = ["training", "method", "images", "state", "epochs", "last loss", "views per second"]
    note = "Views per second: the median over training; a view is one augmented image."
    notes: list[str] = []
    for run in runs:
        own = [*run.missing, *(run.measured.notes if run.measured else ())]
        prefix = "" if len(runs) == 1 else f"{run.label}: "
        notes += [prefix + sentence.removeprefix(prefix) for sentence in own]
    return Section("Overview", notes, [Grid("", heads, [("", rows)], note)])


def _accuracy(runs: Sequence[RunRecord]) -> Section:
    rows = compared_rows(runs)
    tables = grids(rows)
    if not tables:
        return Section("Accuracy")
    text = [
        "How much of what is known about the test images a simple classifier reads off the frozen"
        " representation: a linear one (linear probe), or a vote of the nearest training images"
        " (k-NN). The best of each column is bold.",
        "“backbone” is what one keeps after training, “embedding” is what the loss sees. “chance”"
        " always says the most frequent class.",
    ]
    if any(row.part.startswith("subspace") for row in rows):
        text.append(
            "A subspace holds those dimensions of the embedding that the masks make invariant to an"
            " augmentation, or that they free to keep what it changes."
        )
    pictures = []
    _, heads, body = grids(rows, [LINEAR])[0] if len(tables) > 1 else tables[0]
    numbers = {each.label: number for number, each in enumerate(_trainings(runs))}
    marks = [
        Marks(model if model in numbers else model.split(" (")[0], part, cells, numbers.get(model))
        for model, part, *cells in body
        if not part.startswith("subspace")
    ]
    if any(mark.number is not None for mark in marks):
        caption = (
            "Accuracy of backbone and embedding; further right is better. Gray are networks without"
            " training, and chance."
        )
        if len(tables) > 1:
            caption = f"{LINEAR}: {caption[:1].lower()}{caption[1:]}"
        alt = "Accuracies as marks, the numbers of the first table above."
        pictures.append(Picture(draw_accuracies(heads[2:], marks), caption, alt))
    return Section("Accuracy", text, [_scored(*table) for table in tables], pictures)


def _scored(title: str, heads: Sequence[str], body: Sequence[Sequence]) -> Grid:
    """One of the tables of `grids`, the best of each column marked."""
    columns = list(zip(*(row[2:] for row in body), strict=True))
    best = [shown(max((x for x in c if x is not None), default=None)) for c in columns]
    groups: dict[str, list[tuple[str, list[Cell]]]] = {}
    for model, part, *cells in body:
        texts = [shown(cell) for cell in cells]
        made = [
            Cell(text, cell, bool(text) and text == top)
            for text, cell, top in zip(texts, cells, best, strict=True)
        ]
        groups.setdefault(model, []).append((part or "always the same", made))
    return Grid(title, ["representation", *heads[2:]], list(groups.items()))


def _curves(runs: Sequence[RunRecord]) -> Section:
    trainings, until = _trainings(runs), _last_epoch(runs)
    pictures: list[Picture] = []
    for method in dict.fromkeys(each.method for each in trainings):
        same = [each for each in trainings if each.method == method]
        pictures += _lines(
            trainings,
            "loss",
            f"loss of {method}",
            f"Training loss of {method}. Losses of different methods cannot be compared.",
            until=until,
            only=same,
        )
    for column, label, caption in (
        ("lr", "learning rate", "Learning rate: warm-up, then half a cosine."),
        ("gradient_norm", "gradient norm", "Euclidean norm of all gradients, before clipping."),
        (
            "views_per_second",
            "views per second",
            "Throughput of training. Dips are often other programs on the same machine.",
        ),
    ):
        pictures += _lines(trainings, column, label, caption, until=until, from_zero=True)
    text = (
        ["Longer runs are drawn as means of neighboring rows of metrics.csv."] if pictures else []
    )
    return Section("Training curves", text, pictures=pictures)


def _ranks(runs: Sequence[RunRecord]) -> Section:
    trainings, until = _trainings(runs), _last_epoch(runs)
    pictures: list[Picture] = []
    for measure, name, meaning in (
        ("rankme", "RankMe", "dimensions in use"),
        ("lidar", "LiDAR", "dimensions in which images differ by more than their views do"),
    ):
        for part in ("embedding", "backbone"):
            pictures += _lines(
                trainings,
                f"{measure}/{part}",
                f"{name} of the {part}",
                f"{name} of the {part}: {meaning}.",
                until=until,
                from_zero=True,
            )
    tables = [
        Grid(title, heads[1:], _by_model(body))
        for title, heads, body in rank_grids(compared_rows(runs))
    ]
    text = []
    if pictures or tables:
        text = [
            "How many dimensions the representations of some training images use, told without"
            " labels. A fall towards 1 is collapse: all images become alike. More is not always"
            " better; compare runs of one width."
        ]
    return Section("Dimensions in use", text, tables, pictures)


def _masks(runs: Sequence[RunRecord]) -> Section:
    pictures = []
    for run in runs:
        if run.measured is None or (subspaces := run.measured.subspaces) is None:
            continue
        freed = ", ".join(
            f"{name} frees {count:.0f}"
            for name, count in zip(subspaces.names, subspaces.freed.tolist(), strict=True)
        )
        caption = (
            "Masks: bright where a dimension ignores the augmentation, dark where it is free to"
            " keep what the augmentation changes."
        )
        alt = f"Masks of {subspaces.masks.shape[1]} dimensions: {freed}."
        pictures.append(Picture(draw_masks(subspaces), _of(runs, run, caption), alt))
        caption = (
            "Overlap: how much the freed dimensions of two augmentations have in common, from 0"
            " (none) to 1 (all)."
        )
        pairs = [
            f"{first} and {second} {subspaces.overlap[i, j]:.2f}"
            for i, first in enumerate(subspaces.names)
            for j, second in enumerate(subspaces.names)
            if i < j
        ]
        alt = f"Overlaps: {', '.join(pairs)}."
        pictures.append(Picture(draw_overlap(subspaces), _of(runs, run, caption), alt))
    text = ["MAST learns one mask per augmentation over the dimensions of the embedding."]
    return Section("Masks", text if pictures else [], pictures=pictures)


def _gains(runs: Sequence[RunRecord]) -> Section:
    pictures, until = [], _last_epoch(runs)
    for training in _trainings(runs):
        lines = [
            Line(name.removeprefix(GAIN).removeprefix("/") or "all", *_xy(training, name), number)
            for number, name in enumerate(gain_columns(training))
        ]
        lines = [line for line in lines if len(line.points()[0])]
        if lines:
            pictures.append(
                Picture(
                    draw_lines(lines, "gain (cosine)", until=until, zero_line=True),
                    f"{training.label}: gain by the augmentation that was applied.",
                    f"Lines over epochs: {_ends(lines)}.",
                )
            )
    text = [
        "EquiMod predicts how an augmentation moves the embedding. Its gain is how much nearer the"
        " prediction comes to the augmented image's embedding than the plain image's does: above 0"
        " it has learned something."
    ]
    return Section("Gain of EquiMod", text if pictures else [], pictures=pictures)


def _hard_views(runs: Sequence[RunRecord]) -> Section:
    pictures, until = [], _last_epoch(runs)
    for name, label, meaning in (
        ("iou", "IoU of the crops", "how much of the image the two crops share"),
        ("color", "distance of colors", "how differently the two views' colors were changed"),
    ):
        lines: list[Line] = []
        for training in _trainings(runs):
            for kind, pair in (("", "chosen"), ("_random", "random")):
                column = f"hard_views/{name}{kind}"
                if column in training.columns:
                    label_of = f"{training.label}: {pair}"
                    lines.append(Line(label_of, *_xy(training, column), len(lines)))
        lines = [line for line in lines if len(line.points()[0])]
        if lines:
            pictures.append(
                Picture(
                    draw_lines(lines, label, until=until, from_zero=True),
                    f"Chosen pairs beside random ones: {meaning}.",
                    f"Lines over epochs: {_ends(lines)}.",
                )
            )
    for run in runs:
        if run.measured is not None and run.measured.examples is not None:
            examples = run.measured.examples
            options = run.settings.get("hard_views", {})
            by_chance = options.get("strategy") == "softmax" or options.get("fraction", 1) < 1
            caption = (
                "Views of one image in each row; framed are those that the trained networks find"
                " hardest to match"
                f"{', or that chance gave in place of them' if by_chance else ''}."
                " IoU: how much of the image their crops share."
            )
            channels = len(run.settings.get("augment", {}).get("mean", ()))
            if channels > 3:
                caption += (
                    f" Of the images' {channels} channels the first three are shown, as red, green"
                    " and blue."
                )
            count, views = examples.chosen.shape
            alt = f"{count} rows of {views} augmented views, two framed in each row."
            pictures.append(Picture(draw_chosen_views(examples), _of(runs, run, caption), alt))
    text = ["Of several views of an image a pair that the networks find hard is trained on."]
    return Section("Hard views", text if pictures else [], pictures=pictures)


def _uncertainty(runs: Sequence[RunRecord]) -> Section:
    pictures = []
    for run in runs:
        if run.measured is None or run.measured.uncertainty is None:
            continue
        for against, words in (
            ("crop_iou", "how much of the image both crops share"),
            ("color_distance", "how differently their colors were changed"),
        ):
            figure, correlation = draw_uncertainty(run.measured.uncertainty, against)
            count = len(run.measured.uncertainty.log_variance)
            caption = (
                f"Uncertainty of pairs of views against {words}; Spearman's rank correlation"
                f" {correlation:+.2f}."
            )
            alt = f"Scatter plot of {count} pairs, rank correlation {correlation:+.2f}."
            pictures.append(Picture(figure, _of(runs, run, caption), alt))
    text = [
        "Each point is a pair of views: the higher, the less alike it is expected to be, and the"
        " less it counts in training."
    ]
    return Section("Uncertainty", text if pictures else [], pictures=pictures)


def _settings(runs: Sequence[RunRecord]) -> Section:
    listings = [
        ("All settings" if len(runs) == 1 else f"All settings of {run.label}", _as_yaml(run))
        for run in runs
    ]
    if len(runs) == 1:
        return Section("Settings", listings=listings)
    differing = differing_settings(runs)
    if not differing:
        return Section("Settings", ["The runs have the same settings."], listings=listings)
    rows = [
        (name, [Cell("not used" if cell is None else cell) for cell in cells])
        for name, cells in differing
    ]
    grid = Grid("Settings that differ", ["setting", *(run.label for run in runs)], [("", rows)])
    return Section("Settings", [], [grid], listings=listings)


SECTIONS: Sequence[Callable[[Sequence[RunRecord]], Section]] = (
    *(_overview, _accuracy, _curves, _ranks, _masks),
    *(_gains, _hard_views, _uncertainty, _settings),
)


def gain_columns(training: TrainingRecord) -> list[str]:
    """EquiMod's gains among the columns of metrics."""
    return [name for name in training.columns if name.partition("/")[0] == GAIN]


def _trainings(runs: Sequence[RunRecord]) -> list[TrainingRecord]:
    return [training for run in runs for training in run.trainings]


def _last_epoch(runs: Sequence[RunRecord]) -> float:
    """Where the horizontal axes of all curves end."""
    return max(training.done for training in _trainings(runs))


def _by_model(body: Sequence[Sequence[str]]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    groups: dict[str, list[tuple[str, list[Cell]]]] = {}
    for model, part, *cells in body:
        groups.setdefault(model, []).append((part, [Cell(cell) for cell in cells]))
    return list(groups.items())


def _lines(
    trainings: Sequence[TrainingRecord],
    column: str,
    label: str,
    caption: str,
    *,
    until: float,
    from_zero: bool = False,
    only: Sequence[TrainingRecord] | None = None,
) -> Iterator[Picture]:
    """One figure of a column of metrics, or none where no training has numbers in it."""
    lines = [
        Line(training.label, *_xy(training, column), number)
        for number, training in enumerate(trainings)
        if column in training.columns and (only is None or training in only)
    ]
    lines = [line for line in lines if len(line.points()[0])]
    if lines:
        figure = draw_lines(lines, label, until=until, from_zero=from_zero)
        yield Picture(figure, caption, f"Lines over epochs: {_ends(lines)}.")


def _xy(training: TrainingRecord, column: str) -> tuple[np.ndarray, np.ndarray]:
    return training.columns["epoch"], training.columns[column]


def _ends(lines: Sequence[Line]) -> str:
    """Where lines begin and end, in words."""
    texts = []
    for line in lines:
        _, y = line.points()
        texts.append(f"{line.label} from {y[0]:.3g} to {y[-1]:.3g}")
    return "; ".join(texts)


def _of(runs: Sequence[RunRecord], run: RunRecord, caption: str) -> str:
    """A caption that names the run where there are several."""
    return caption if len(runs) == 1 else f"{run.label}. {caption}"


def _as_yaml(run: RunRecord) -> str:
    return yaml.safe_dump(dict(run.settings), sort_keys=False)
