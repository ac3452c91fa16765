"""The page of runs whose directories hold this and that."""

import base64
import csv
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from matplotlib.colors import to_rgb

from mast_ext.methods import Subspaces
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.evaluate import LINEAR, Row
from mast_ext.train.evaluation.views import HardViewExamples, PairUncertainty
from mast_ext.train.loop.callbacks import MetricsFile
from mast_ext.train.report.figures import (
    COLORS,
    GRAY,
    INK,
    POINTS,
    Line,
    Marks,
    draw_accuracies,
    draw_lines,
    draw_masks,
    draw_overlap,
)
from mast_ext.train.report.html import keep_foreign, write_report
from mast_ext.train.report.record import (
    Measurements,
    compared_rows,
    differing_settings,
    read_metrics,
    read_runs,
    save_measurements,
)
from mast_ext.train.report.tables import grids, rank_grids, results, tables

NASTY = "<script>alert('$x_1$')</script>[bold]&"
MANY = [
    Row("mast", "backbone", {LINEAR: {"hue": 0.5, NASTY: 0.25}, "k-NN 20": {"hue": 0.4, NASTY: 0}}),
    Row("mast", "subspace crop", {LINEAR: {"hue": 0.125, NASTY: 1.0}}),
    Row("chance", "", {LINEAR: {"hue": 0.1, NASTY: 0.2}}),
]
ONE = [
    Row("mast", "backbone", {LINEAR: {"class": 0.5}, "k-NN 20": {"class": 0.4}}),
    Row("chance", "", {LINEAR: {"class": 0.1}}),
]
MASKS = torch.tensor([[1.0, 1, 1, 1, 1, 0, 0.25, 0], [1, 1, 0, 1, 1, 1, 1, 1]])
SUBSPACES = Subspaces(("hue", NASTY), MASKS, torch.tensor([[1, 0.2], [0.2, 1]]))
UNCERTAINTY = PairUncertainty(*np.float32([[0.5, 0, 1], [0.1, 0.3, 0.2], [1, 3, 2]]))
EXAMPLES = HardViewExamples(
    np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3),
    np.array([[True, True, False], [False, True, True]]),
    np.float32([0.25, 0.5]),
)
ALL = Measurements(MANY, [f"a note {NASTY}"], SUBSPACES, UNCERTAINTY, EXAMPLES)

NUMBERS = ("loss", "lr", "gradient_norm", "views_per_second", "rankme/embedding", "lidar/backbone")
SPECIAL = ("equivariance_gain", "equivariance_gain/flip", "hard_views/iou", "hard_views/iou_random")


def test_a_table_per_protocol():
    (_, heads, body), (_, _, neighbors) = grids(MANY)
    assert heads == ["model", "representation", "hue", NASTY]
    assert body[1] == ["mast", "subspace crop", 0.125, 1.0]
    assert neighbors == [["mast", "backbone", 0.4, 0]]
    assert len(grids(MANY, [LINEAR])) == 1


def test_one_table_for_one_factor():
    ((_, heads, body),) = grids(ONE)
    assert heads == ["model", "representation", LINEAR, "k-NN 20"]
    assert body == [["mast", "backbone", 0.5, 0.4], ["chance", "", 0.1, None]]


@pytest.mark.parametrize("rows", [MANY, ONE, []])
def test_terminal_tables_have_a_row_each(rows):
    for table, grid in zip(tables(rows), grids(rows), strict=True):
        assert table.row_count == len(grid[2])


def test_ranks_have_a_table_of_their_own():
    rows = [*ONE, Row("mast", NASTY, {LINEAR: {"class": 0.5}}, 12.3456, 64)]
    assert grids(rows)[0][2][2] == ["mast", NASTY, 0.5, None]
    ((_, heads, body),) = rank_grids(rows)
    assert heads == ["model", "representation", "RankMe", "dimensions"]
    assert body == [["mast", NASTY, "12.3", "64"]]
    assert [table.row_count for table in tables(rows)] == [3, 1]
    found = results(rows, None)["rows"]
    assert found[2]["rankme"] == 12.3456 and found[2]["dimensions"] == 64
    assert found[0].keys() == {"model", "part", "accuracy"}


def test_results_hold_masks():
    found = results([], SUBSPACES)["subspaces"]
    assert found["freed_dimensions"] == [2.75, 1.0]
    assert torch.equal(torch.tensor(found["masks"]), MASKS)


def write_run(folder, *, measured=None, rows=5, columns=NUMBERS, settings=None, baseline=None):
    """A run directory as a run would leave it, with rows of metrics and what was measured."""
    values = {
        "method": "mast",
        "seed": 0,
        "data": {"name": "shapes"},
        "mast": {"uncertainty": True},
        "vicreg": {"covariance": 1.0},
        "equimod": {"weight": 0.0, "temperature": 0.2},
        "hard_views": {"views": 0, "every": 1},
        "train": {"epochs": 5.0},
        **(settings or {}),
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    if rows:
        numbers = ([1 / (i + k) for k in range(len(columns))] for i in range(1, rows + 1))
        with (folder / "metrics.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["step", "epoch", *columns])
            table.writerows([10 * i, i, *row] for i, row in enumerate(numbers, 1))
    if measured is not None:
        save_measurements(folder / "report", measured)
    if baseline is not None:
        write_run(folder / "baseline", settings={"method": baseline})
    return folder


@pytest.fixture
def make_run(tmp_path):
    return lambda name, **options: write_run(tmp_path / name, **options)


class Page(HTMLParser):
    """What is in a page, and whether its elements nest."""

    VOID = {"meta", "img", "link", "br"}

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.ids, self.links, self.tags = [], [], [], [], []
        self.headings, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def svg(self, number):
        kind, _, data = self.images[number]["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        return base64.b64decode(data).decode()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run that has everything that a report may show, and a page of it."""
    settings = {"hard_views": {"views": 3, "every": 1}, "equimod": {"weight": 1.0}, "x": NASTY}
    columns = NUMBERS + SPECIAL
    rows = [*(replace(row, model="mast+equimod+hard") for row in MANY[:2]), MANY[2]]
    measured = replace(ALL, rows=rows)
    folder = tmp_path_factory.mktemp("full") / "run"
    options = {"columns": columns, "settings": settings, "baseline": "vicreg"}
    write_run(folder, measured=measured, **options)
    return folder, Page(write_report([folder], folder / "report" / "index.html"))


def test_page_stands_alone(full):
    """It fetches nothing, every link leads into it, every picture is there and is told in words."""
    _, page = full
    assert "script" not in page.tags and "http" not in page.source
    assert "@import" not in page.source and "url(" not in page.source
    assert page.links and {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    for number, image in enumerate(page.images):
        assert len(image["alt"]) > 20
        root = ElementTree.fromstring(page.svg(number))
        references = re.findall(r'href="([^"]{10})', page.svg(number))
        assert all(r.startswith(("#", "data:image")) for r in references)
        assert float(root.get("width").removesuffix("pt")) <= 4.2 * 72
    assert page.tags.count("figcaption") == len(page.images)


def test_page_shows_all_there_is(full):
    _, page = full
    assert page.headings == [
        "mast+equimod+hard on shapes",
        *("Overview", "Accuracy", "Training curves", "Dimensions in use", "Masks"),
        *("Gain of EquiMod", "Hard views", "Uncertainty", "Settings"),
    ]
    # accuracy; two losses, three other curves; ranks; masks, overlap; gain; IoU, views; uncertainty
    assert len(page.images) == 1 + 5 + 2 + 2 + 1 + 2 + 2
    for text in (f"a note {NASTY}", NASTY, "hue frees 3", "Spearman's rank correlation -0.50"):
        assert text in page.text or any(text in image["alt"] for image in page.images)
    assert f"x: {NASTY}" in page.text  # the settings


def test_the_best_of_each_column_is_marked(full):
    _, page = full
    found = re.findall(r'<td class="best"[^>]*>([^<]*)</td>', page.source)
    assert found == ["50.0", "100.0", "40.0", "0.0"]


def test_the_same_run_gives_the_same_page(full, tmp_path):
    folder, page = full
    again = write_report([folder], tmp_path / "other" / "again.html")
    assert again.read_text() == page.source


def test_measurements_are_read_as_written(make_run):
    ((found),) = read_runs([make_run("run", measured=ALL)])
    assert list(found.measured.rows) == MANY and list(found.measured.notes) == list(ALL.notes)
    assert torch.equal(found.measured.subspaces.masks, MASKS)
    assert found.measured.subspaces.names == SUBSPACES.names
    for name in ("uncertainty", "examples"):
        for field, values in vars(getattr(ALL, name)).items():
            assert np.array_equal(getattr(getattr(found.measured, name), field), values)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_run_that_is_not_finished(make_run, rows):
    """What is there is shown, what is missing is said; a row that is being written is left out."""
    folder = make_run("young", rows=rows)
    if rows:
        with (folder / "metrics.csv").open("a") as file:
            file.write("30,3,0.")
    page = Page(write_report([folder], folder / "report.html"))
    assert "This run is not finished." in page.text and "not there yet" in page.text
    assert ("epoch 2 of 5" in page.text) == bool(rows)
    assert ("no rows of metrics yet" in page.text) == (not rows)
    assert len(page.images) == (6 if rows else 0)


@pytest.mark.parametrize(("measured", "shown"), [(None, "5 of 5.3"), (ALL, "5")])
def test_epochs_of_a_finished_run_are_those_done(make_run, measured, shown):
    """Steps are whole: 5.3 epochs may be a little more than these."""
    folder = make_run("run", measured=measured, settings={"train": {"epochs": 5.3}})
    page = Page(write_report([folder], folder / "report.html"))
    assert f">{shown}</td>" in page.source


def test_a_run_of_an_earlier_version(make_run):
    """Its results lack the masks, which the page says."""
    folder = make_run("old", measured=ALL, rows=0, settings={"hard_views": {"views": 3}})
    path = folder / "report" / "results.json"
    path.write_text(path.read_text().replace('"masks"', '"forgotten"'))
    (folder / "report" / "hard_views.npz").unlink()
    page = Page(write_report([folder], folder / "report.html"))
    assert "did not store its masks and examples of hard views" in page.text
    assert "Masks" not in page.headings and "Accuracy" in page.headings


def test_runs_are_compared(make_run):
    """Methods with their own losses, one axis for all; the settings that differ; a young run."""
    others = [Row("untrained", "backbone", {LINEAR: {"hue": 0.3}}, 5.0, 64), MANY[2]]
    first = make_run("a", measured=replace(ALL, rows=[*MANY[:2], *others]), baseline="vicreg")
    row = Row("vicreg", "backbone", {LINEAR: {"hue": 0.75}})
    chance = Row("chance", "", {LINEAR: {"hue": 0.1}})
    settings = {"method": "vicreg", "seed": 1, "vicreg": {"covariance": 2.0}, "out": "b"}
    second = make_run("b", measured=Measurements([row, others[0], chance]), settings=settings)
    young = make_run("c", rows=2, settings={"mast": {"uncertainty": False}})
    runs = read_runs([first, second, young])
    assert [run.label for run in runs] == ["a", "b", "c"]
    assert [t.label for run in runs for t in run.trainings] == ["a", "a, baseline vicreg", "b", "c"]
    names = [(row.model, row.part) for row in compared_rows(runs)]
    assert names == [
        *(("a", "backbone"), ("a", "subspace crop"), ("b", "backbone"), ("untrained", "backbone")),
        *(("chance (a)", ""), ("chance (b)", "")),
    ]
    assert differing_settings(runs) == [
        ("method", ["mast", "vicreg", "mast"]),
        ("seed", ["0", "1", "0"]),
        ("mast.uncertainty", ["true", None, "false"]),
        ("vicreg.covariance", ["1.0", "2.0", None]),
    ]
    page = Page(write_report([first, second, young], first.parent / "report.html"))
    assert page.headings[0] == "Comparison of 3 runs"
    losses = [image["alt"] for image in page.images[1:3]]
    assert "a from 1 to 0.2; c from 1 to 0.5" in losses[0]
    assert "a, baseline vicreg from 1 to 0.2; b from 1 to 0.2" in losses[1]
    assert "c: This run is not finished." in page.text and "not used" in page.text
    assert len({image["src"] for image in page.images}) == len(page.images)


def test_runs_of_one_name_are_told_apart(make_run):
    folders = [make_run(name) for name in ("x/run", "y/run", "other")]
    assert [run.label for run in read_runs(folders)] == ["x/run", "y/run", "other"]


def test_equal_runs_have_equal_settings(make_run):
    page = Page(
        write_report([make_run("a", rows=0), make_run("b", rows=0)], make_run("c") / "report.html")
    )
    assert "The runs have the same settings." in page.text


def test_refuses_what_is_no_run(make_run, tmp_path):
    run, out = make_run("run", measured=ALL), tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is not a run directory: it has no config.yaml"):
        write_report([run, tmp_path / "empty"], out)
    (tmp_path / "empty" / "config.yaml").write_text("version: 2\n")
    with pytest.raises(RunError, match="its config.yaml is of something else"):
        write_report([tmp_path / "empty"], out)
    with pytest.raises(RunError, match="given twice"):
        write_report([run, run.parent / "empty" / ".." / "run"], out)
    (run / "report" / "hard_views.npz").write_bytes(b"PK damaged")
    with pytest.raises(RunError, match="hard_views.npz is damaged"):
        write_report([run], out)
    (run / "report" / "results.json").write_text("{}")
    with pytest.raises(RunError, match=r"results.json is damaged \(KeyError\)"):
        write_report([run], out)
    (run / "metrics.csv").write_text("step,epoch\n1,one\n")
    with pytest.raises(RunError, match="metrics.csv is damaged"):
        write_report([run], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"equimod": None}, "config.yaml: equimod must be a mapping of settings, got None"),
        ({"hard_views": {"views": "no"}}, "hard_views.views must be a number, got 'no'"),
        ({"train": {"epochs": None}}, "train.epochs must be a number, got None"),
        ({"model": "resnet18"}, "model must be a mapping of settings, got 'resnet18'"),
        ({"model": {"timm_args": None}}, "model.timm_args must be a mapping, got None"),
    ],
)
def test_refuses_odd_settings(make_run, settings, message):
    run = make_run("run", settings=settings)
    (run / "start.safetensors").touch()
    with pytest.raises(RunError, match=message):
        write_report([run], run / "page.html")


def test_runs_of_other_settings_are_compared(make_run):
    """One of which has none of EquiMod or hard views."""
    first, second = make_run("a"), make_run("b")
    (second / "config.yaml").write_text(
        "{method: mast, data: {name: shapes}, train: {epochs: 5.0}}"
    )
    names = [name for name, _ in differing_settings(read_runs([first, second]))]
    assert {"equimod.weight", "hard_views.views"} <= set(names)


@pytest.mark.parametrize("damage", ["empty", "bits"])
def test_damaged_examples_are_one_sentence(make_run, damage):
    run = make_run("run", measured=ALL)
    path = run / "report" / "hard_views.npz"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7) if damage == "bits" else [0]:
        spoiled = bytearray(whole)
        spoiled[at] ^= 0x55
        path.write_bytes(spoiled if damage == "bits" else b"")
        try:
            read_runs([run])
        except RunError as error:
            assert "hard_views.npz is damaged" in str(error)
        else:
            assert damage == "bits"


@pytest.mark.parametrize("name", ["chance", "untrained", "starting weights"])
def test_a_run_may_be_called_as_what_is_not_trained(make_run, name):
    first, second = make_run(name, measured=ALL), make_run("other", measured=ALL)
    runs = read_runs([first, second])
    assert runs[0].label == f"{first.parent.name}/{name}"
    models = [row.model for row in compared_rows(runs)]
    assert models == [runs[0].label] * 2 + ["other"] * 2 + ["chance"]


def test_labels_that_no_figure_can_hold(make_run):
    """Bytes of a name that are not UTF-8, and characters that XML does not allow."""
    runs = [make_run(name, measured=ALL) for name in (os.fsdecode(b"caf\xe9"), "bell\x07\x1b")]
    page = Page(write_report(runs, runs[0].parent / "page.html"))
    for number in range(len(page.images)):
        ElementTree.fromstring(page.svg(number))
    assert "caf\\xe9" in page.svg(0) and "bell" in page.svg(0)


def test_replaces_reports_only(make_run, tmp_path):
    run, out = make_run("run", rows=0), tmp_path / "page.html"
    first = write_report([run], out).read_text()
    assert write_report([run], out).read_text() == first
    out.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(RunError, match="page.html is not a report of mast-ext and is left alone"):
        write_report([run], out)
    assert "mine" in out.read_text()
    with pytest.raises(RunError, match="must be a file, but .* is a directory"):
        write_report([run], tmp_path)


def test_what_is_no_report_is_kept_under_another_name(make_run, tmp_path):
    out = tmp_path / "page.html"
    assert keep_foreign(out) is None
    write_report([make_run("run", rows=0)], out)
    assert keep_foreign(out) is None and out.exists()
    for number in (1, 2):
        out.write_text(f"mine {number}")
        kept = keep_foreign(out)
        assert kept.name == f"page-{number}.html" and kept.read_text() == f"mine {number}"
    out.mkdir()
    assert keep_foreign(out).is_dir() and not out.exists()


def test_metrics_of_no_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == {}
    for text in ("", "step,ep", "step,epoch,loss\n", "step,epoch,loss\n1,2"):
        path.write_text(text)
        assert read_metrics(path) == {}


@pytest.mark.parametrize("torn", ["20,2,0.", "20,2,1e-", "20,2,1"])
def test_a_row_without_an_end_is_not_read(tmp_path, torn):
    """It has all its cells, but the last one may lack digits."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,epoch,loss\r\n10,1,0.5\r\n" + torn.encode())
    assert {name: column.tolist() for name, column in read_metrics(path).items()} == {
        "step": [10],
        "epoch": [1],
        "loss": [0.5],
    }
    MetricsFile(path, resume_at=20)
    assert path.read_text() == "step,epoch,loss\n10,1,0.5\n"


def test_rows_of_other_columns_keep_those_before(tmp_path):
    """As after a resume with other settings: with `train.rank_every` 0 there are no ranks."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss,rank\n10,1,0.5,3\n30,3,9,9\n")
    file = MetricsFile(path, resume_at=20)
    file.append({"step": 20, "epoch": 2, "loss": 0.25})
    file.append({"step": 30, "epoch": 3, "new": 1, "loss": 0.125})
    columns = read_metrics(path)
    assert list(columns) == ["step", "epoch", "loss", "rank", "new"]
    assert columns["loss"].tolist() == [0.5, 0.25, 0.125]
    np.testing.assert_equal(columns["rank"], [3, np.nan, np.nan])
    np.testing.assert_equal(columns["new"], [np.nan, np.nan, 1])


def test_a_resumed_run_names_metrics_that_are_none(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step;epoch;loss\n10;1;0.5\n")
    with pytest.raises(RunError, match=f"{path} is damaged: .*10;1;0.5"):
        MetricsFile(path, resume_at=20)


def test_masks_are_drawn_by_who_frees_a_dimension():
    """First the dimensions that are invariant to all, then those of each augmentation."""
    axes = draw_masks(SUBSPACES).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "hue\nfrees 3" and names[1].endswith("\nfrees 1")
    drawn = torch.from_numpy(axes.images[0].get_array().data)
    assert torch.equal(drawn, MASKS[:, [0, 1, 3, 4, 6, 5, 7, 2]])
    cells = [text.get_text() for text in draw_overlap(SUBSPACES).axes[0].texts]
    assert cells == ["1.00", "0.20", "0.20", "1.00"]


def test_lines_are_drawn_through_what_is_there():
    x = np.arange(4.0)
    line = Line("_a", x, np.array([1, np.nan, 3, np.nan]), 9)
    (axes,) = draw_lines([line], "loss", until=3, from_zero=True).axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [2, 3]]
    assert axes.lines[0].get_color() == COLORS[1] and axes.lines[0].get_linestyle() == "--"
    assert axes.figure.legends[0].get_texts()[0].get_text() == "_a"


@pytest.mark.parametrize("count", [POINTS + 1, 3 * POINTS, 10007])
def test_long_lines_are_drawn_as_means(count):
    y = np.random.default_rng(0).normal(size=count)
    x, means = Line("a", np.arange(float(count)), y, 0).points()
    assert len(x) == POINTS and (np.diff(x) > 0).all()
    parts = np.array_split(y, POINTS)
    if count % POINTS == 0:
        assert np.allclose(means, [part.mean() for part in parts])
    assert abs(means.mean() - y.mean()) < 0.02


def test_accuracies_are_drawn():
    marks = [
        Marks("a", "backbone", [0.5, None], 2),
        Marks("a", "embedding", [0.25, 1.0], 2),
        Marks("chance", "", [0.1, 0.2], None),
    ]
    (axes,) = draw_accuracies(["hue", "shape"], marks).axes
    drawn = [line.get_xdata() for line in axes.lines]
    assert np.array_equal(drawn, [[50, np.nan], [25, 100], [10, 20]], equal_nan=True)
    assert [line.get_color() for line in axes.lines] == [COLORS[2], COLORS[2], GRAY]
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["a", "chance", "backbone", "embedding"]


@pytest.mark.parametrize("page", ["#ffffff", "#14171b"])
def test_colors_are_legible_on_white_and_on_black(full, page):
    """A contrast of 3 to 1, as WCAG 2.2 (1.4.11) asks of figures; 4.5 for text."""
    assert page in full[1].source

    def luminance(color):
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(color):
        low, high = sorted((luminance(color), luminance(page)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(color) for color in (*COLORS, GRAY)) >= 3
    ink = INK if page == "#ffffff" else "#d9dee4"
    assert contrast(ink) > 7
    for number in range(len(full[1].images)):
        svg = full[1].svg(number)
        assert INK in svg and "#d9dee4" in svg and "prefers-color-scheme: dark" in svg


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(full, tmp_path, width):
    """Every picture is drawn, and no part is wider than the window: tables scroll in their box."""
    frame = (
        f"<iframe style='width:{width}px;height:800px;border:0'></iframe><script>"
        "const frame = document.querySelector('iframe');"
        "frame.onload = () => { const page = frame.contentDocument;"
        " const drawn = [...page.images].filter(image => image.naturalWidth).length;"
        " const { scrollWidth, clientWidth } = page.documentElement;"
        " document.body.dataset.found = `${drawn} ${scrollWidth - clientWidth}`; };"
        f"frame.srcdoc = atob('{base64.b64encode(full[1].source.encode()).decode()}');</script>"
    )
    path = tmp_path / "frame.html"
    path.write_text(f"<!doctype html><body>{frame}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'data-found="(\d+) (\d+)"', done.stdout)
    assert found, done.stderr[-2000:]
    assert [int(found[1]), int(found[2])] == [len(full[1].images), 0]
