"""The page of runs that the program has trained."""

import os
import shutil

import pytest


def test_the_page_of_a_run_is_the_one_that_training_wrote(call, trained, tmp_path):
    status, out, err = call("report", trained, "--out=again.html")
    assert (status, out, err) == (0, "report: again.html\n", "")
    written = (trained / "report" / "index.html").read_text()
    assert (tmp_path / "again.html").read_text() == written
    assert "mast on shapes" in written and "http" not in written


def test_a_run_that_training_has_just_begun(call, trained, tmp_path):
    """The page goes where it will be when the run is finished."""
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / "run" / name).write_text((trained / name).read_text())
    status, out, _ = call("report", "run")
    assert (status, out) == (0, "report: run/report/index.html\n")
    assert "This run is not finished." in (tmp_path / "run/report/index.html").read_text()


def test_several_runs_are_compared_here(call, trained, six_steps, tmp_path):
    status, out, err = call("report", trained, six_steps[1])
    assert (status, out) == (0, "report: report.html\n"), err
    page = (tmp_path / "report.html").read_text()
    assert "Comparison of 2 runs" in page and "Settings that differ" in page
    assert "trained0/run" in page and "six_steps0/run, baseline vicreg" in page
    (tmp_path / "report.html").write_text("mine")
    status, _, err = call("report", trained, six_steps[1])
    assert status == 1 and "report.html is not a report of mast-ext and is left alone" in err


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(call, option):
    status, out, _ = call("report", option)
    assert status == 0 and "RUN" in out and "--out FILE" in out


def test_a_name_that_is_not_utf_8(call, trained, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    for file in ("config.yaml", "metrics.csv"):
        shutil.copy(trained / file, tmp_path / name / file)
    status, _, err = call("report", name, "--out", f"{name}.html")
    assert status == 0 and (tmp_path / f"{name}.html").exists(), err
    status, _, err = call("replay", name)
    assert status == 1 and "nothing to replay" in err


def test_a_page_of_a_users_own_is_kept(call, six_steps, tmp_path):
    shutil.copytree(six_steps[1], tmp_path / "run")
    page = tmp_path / "run" / "report" / "index.html"
    page.write_text("mine")
    status, out, err = call("pretrain", "--resume=run")
    assert status == 0, err
    assert "is now index-1.html" in out
    assert page.with_name("index-1.html").read_text() == "mine"
    assert "mast on shapes" in page.read_text()
