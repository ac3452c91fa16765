import json
import re

import pytest
import torch

from mast_ext.methods import Subspaces
from mast_ext.train.evaluation.evaluate import LINEAR, Row
from mast_ext.train.report.figures import draw_hard_views, draw_masks, draw_ranks, gain_columns
from mast_ext.train.report.html import write_report
from mast_ext.train.report.tables import grids, rank_grids, results, tables

NASTY = "<script>alert(1)</script>[bold]"
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


def test_ranks_have_a_table_of_their_own(tmp_path):
    rows = [*ONE, Row("mast", NASTY, {LINEAR: {"class": 0.5}}, 12.3456, 64)]
    assert grids(rows)[0][2][2] == ["mast", NASTY, 0.5, None]
    ((title, heads, body),) = rank_grids(rows)
    assert heads == ["model", "representation", "RankMe", "dimensions"]
    assert body == [["mast", NASTY, "12.3", "64"]]
    assert [table.row_count for table in tables(rows)] == [3, 1]
    found = results(rows, None)["rows"]
    assert found[2]["rankme"] == 12.3456 and found[2]["dimensions"] == 64
    assert found[0].keys() == {"model", "part", "accuracy"}
    options = {"title": "t", "subspaces": None, "metrics": {}, "settings": ""}
    page = write_report(tmp_path, rows=rows, **options).read_text()
    assert title in page and "<td>12.3</td><td>64</td>" in page


@pytest.fixture
def report(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,epoch,loss\n1,0.5,3.0\n2,1.0,2.0\n")
    return write_report(
        tmp_path / "report",
        title=f"mast on {NASTY}",
        rows=MANY,
        subspaces=SUBSPACES,
        metrics={"mast": metrics, "vicreg": tmp_path / "none.csv"},
        settings=f"path: {NASTY}",
        notes=[NASTY],
    )


def test_html_is_self_contained_and_escaped(report):
    page = report.read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert re.findall(r'src="([^"]{22})', page) == ["data:image/png;base64,"] * 4
    assert "http" not in page


def test_report_files(report):
    names = sorted(path.name for path in report.parent.iterdir())
    pictures = ["loss.png", "masks.png", "overlap.png", "probes.png"]
    assert names == [*pictures, "report.html", "results.json"]
    found = json.loads((report.parent / "results.json").read_text())
    assert found["rows"][1]["accuracy"] == {LINEAR: {"hue": 0.125, NASTY: 1.0}}
    assert found["subspaces"]["freed_dimensions"] == [2.75, 1.0]


def test_masks_are_drawn_by_who_frees_a_dimension():
    """First the dimensions that are invariant to all, then those of each augmentation."""
    axes = draw_masks(SUBSPACES).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["hue (frees 3)", f"{NASTY} (frees 1)"]
    drawn = torch.from_numpy(axes.images[0].get_array().data)
    assert torch.equal(drawn, MASKS[:, [0, 1, 3, 4, 6, 5, 7, 2]])


def test_gains_are_drawn(tmp_path):
    """By augmentation, with gaps where a batch had none of one."""
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "step,epoch,loss,equivariance,equivariance_gain,equivariance_gain/flip\n"
        "1,0.5,3.0,2.0,-0.1,nan\n2,1.0,2.0,1.0,0.2,0.3\n"
    )
    columns = {
        "loss": [],
        "equivariance": [],
        "equivariance_gain": [],
        "equivariance_gain/flip": [],
    }
    assert gain_columns(columns) == {"equivariance_gain": "all", "equivariance_gain/flip": "flip"}
    write_report(
        tmp_path / "report",
        title="t",
        rows=[],
        subspaces=None,
        metrics={"simclr+equimod": metrics},
        settings="",
    )
    names = sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert names == ["gain.png", "loss.png"]


def test_ranks_are_drawn(tmp_path):
    """Those rows that have numbers, of both parts of every model."""
    names = ("rankme/backbone", "rankme/embedding", "lidar/backbone", "lidar/embedding")
    heads = ["step", "epoch", "loss", *names]
    body = [["1", "0", "2.0", "1.5", "2.5", "3.5", "4.5"], ["2", "1", "2.0", *["nan"] * 4]]
    body.append(["3", "2", "2.0", "5", "6", "7", "8"])
    (tmp_path / "m.csv").write_text("".join(",".join(row) + "\n" for row in [heads, *body]))
    curves = {"simclr": tmp_path / "m.csv"}
    options = {"title": "t", "rows": [], "subspaces": None, "settings": ""}
    assert 'alt="ranks"' in write_report(tmp_path, metrics=curves, **options).read_text()
    columns = {name: [float(row[i]) for row in body] for i, name in enumerate(heads)}
    figure = draw_ranks({"simclr": columns, "off": {"epoch": [1.0]}})
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["simclr: embedding", "simclr: backbone"]
    assert [list(line.get_xdata()) for line in right.lines] == [[0, 2], [0, 2]]
    assert [list(line.get_ydata()) for line in right.lines] == [[4.5, 8], [3.5, 7]]
    assert "collapse" in figure.get_suptitle()


@pytest.mark.parametrize("selected", [["0.3", "nan", "0.35"], ["nan", "nan", "nan"]])
def test_hard_views_are_drawn(tmp_path, selected):
    """Chosen and random pairs, from the steps that selected (perhaps none), beside a plain run."""
    names = ("iou", "iou_random", "color", "color_random")
    heads = ["step", "epoch", "loss", *(f"hard_views/{name}" for name in names)]
    body = [[str(i), str(i), "1.0", *[value] * 4] for i, value in enumerate(selected)]
    (tmp_path / "hard.csv").write_text("".join(",".join(row) + "\n" for row in [heads, *body]))
    (tmp_path / "plain.csv").write_text("step,epoch,loss\n1,1,3.0\n")
    curves = {"simclr+hard": tmp_path / "hard.csv", "simclr": tmp_path / "plain.csv"}
    page = write_report(
        tmp_path / "report", title="t", rows=[], subspaces=None, metrics=curves, settings=""
    )
    assert 'alt="hard_views"' in page.read_text()
    columns = {
        "epoch": [0.0, 1.0, 2.0],
        **{name: [float(value) for value in selected] for name in heads[3:]},
    }
    left, right = draw_hard_views({"simclr+hard": columns, "simclr": {"epoch": [1.0]}}).axes
    drawn = 0 if selected[0] == "nan" else 2
    assert len(left.lines) == len(right.lines) == drawn
    if drawn:
        assert list(left.lines[0].get_xdata()) == [0.0, 2.0]
        labels = [line.get_label() for line in left.lines]
        assert labels == ["simclr+hard: chosen pairs", "simclr+hard: random pairs"]


def test_report_without_labels_or_masks(tmp_path):
    page = write_report(
        tmp_path, title="t", rows=[], subspaces=None, metrics={}, settings="", notes=["no labels"]
    )
    assert "no labels" in page.read_text()
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".html", ".json"]
