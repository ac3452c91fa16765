"""The tables of hard views and EquiMod: their statistics, and one made as a user makes it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gains(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "train"))
    import gains

    return gains


def folder_of_images(path, *, classes=2, train=20, test=10):
    numbers = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in range(classes):
            (path / split / f"class{kind}").mkdir(parents=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(path / split / f"class{kind}" / f"{i:03}.png")
    return path


def mean_and_error(t, count):
    """Differences with this t statistic."""
    spread = np.linspace(-1, 1, count)
    error = spread.std(ddof=1) / count**0.5
    return list(spread + t * error)


@pytest.mark.parametrize(
    ("count", "t", "p"),  # from tables of Student's distribution
    [(2, 12.706, 0.05), (3, 4.303, 0.05), (5, 2.776, 0.05), (5, 4.604, 0.01), (11, 1.372, 0.2)],
)
def test_p_is_students(gains, count, t, p):
    points = mean_and_error(t, count)
    assert gains.paired_p(points) == pytest.approx(p, rel=1e-3)
    assert gains.paired_p([-each for each in points]) == pytest.approx(p, rel=1e-3)


def test_p_of_equal_differences(gains):
    assert gains.paired_p([0.0, 0.0]) == 1
    assert gains.paired_p([0.5, 0.5]) == 0


def test_rates_are_tried_until_the_best_lies_between_others(gains):
    assert gains.next_rates({}) == list(gains.RATES)
    assert gains.next_rates({4e-3: 0.3, 8e-3: 0.4}) == [1.6e-2]
    assert gains.next_rates({4e-3: 0.4, 8e-3: 0.3}) == [2e-3]
    assert gains.next_rates({4e-3: 0.3, 8e-3: 0.4, 1.6e-2: 0.2}) == []


@pytest.mark.parametrize("option", ["--hard_views.views=4", "--equimod.weight=1"])
@pytest.mark.parametrize("method", ["simclr", "byol", "dino"])
def test_plain_runs_of_equal_forwards_are_as_long_as_the_programs_baseline(gains, method, option):
    from forwards import config_of

    from mast_ext.data import open_source
    from mast_ext.train.pretrain import plan

    treatment = gains.Treatment((option,), against_forwards=True)
    options = ["--train.batch_size=4", "--train.epochs=20"]
    found = dict(gains.treatments_of(method, {"it": treatment}, options))
    assert list(found) == ["plain", "it", "plain, forwards of it"]
    equal = found["plain, forwards of it"]
    assert equal == gains.Treatment((), length=equal.length)
    config = config_of([f"--method={method}", option, f"--baseline={method}", *options])
    trained, baseline = plan(config, open_source("shapes", "train", max_images=8))
    assert trained.steps < baseline.steps == round(equal.length * trained.steps)


def test_what_a_method_does_not_take_is_left_out(gains):
    treatments = {"a": gains.Treatment(("--a=1",), unfit=("dino",)), "b": gains.Treatment(())}
    assert [name for name, _ in gains.treatments_of("dino", treatments, [])] == ["plain", "b"]


def test_a_table_says_which_rates_were_tuned(gains):
    rates = dict([gains.named_rate("simclr=0.032"), ("byol", 0.008)])
    tuned, given = gains.rate_notes(rates, ["byol"], 4)
    assert tuned.startswith("Learning rates, chosen") and tuned.endswith("4 epochs: byol 0.008.")
    assert given == "Learning rates, as given: simclr 0.032."
    assert list(gains.rate_notes({"byol": 0.008}, ["byol"], 4)) == [tuned]


def test_held_out_images_are_training_images_once(gains, tmp_path):
    images = folder_of_images(tmp_path / "images")
    folder = gains.held_out(images, tmp_path / "made")
    found = {
        split: {each.resolve() for each in (folder / split).rglob("*.png")}
        for split in ("train", "test")
    }
    assert not found["train"] & found["test"]
    assert found["train"] | found["test"] == set((images / "train").rglob("*.png"))
    assert len(found["test"]) == 4  # of each class every tenth
    assert gains.held_out(images, folder) == folder


def test_runs_of_other_options_are_refused(gains, tmp_path):
    import runs

    run = tmp_path / "run"
    runs._refuse_others(run, ["--a=typo"])
    runs._refuse_others(run, ["--a=1"])  # the first has left no run
    run.mkdir()
    runs._refuse_others(run, ["--a=1"])
    with pytest.raises(SystemExit, match=r"other options \(--a=1, --a=2\)"):
        runs._refuse_others(run, ["--a=2"])


def planned(runs, seed=0, options=("--a=1",)):
    return runs.Planned("simclr plain", seed, f"simclr_plain-{seed}-4", options)


@pytest.fixture
def scores(gains, monkeypatch):
    """The module of the score file, for runs whose accuracy is their seed's tenth."""
    import scores

    def scores_of(run):
        linear = int(run.name.split("-")[1]) / 10
        return scores.Scores({"linear": linear}, {"hue": 0.5}, {"loss": 2.5})

    monkeypatch.setattr(scores, "scores_of", scores_of)
    return scores


def test_scores_outlive_their_runs(scores, tmp_path):
    import runs

    path = tmp_path / "scores.jsonl"
    both = [scores.ScoreFile(path), scores.ScoreFile(path)]  # of two calls at the same time
    for seed, file in enumerate(both):
        assert planned(runs, seed) not in file
        file.add(planned(runs, seed), tmp_path / f"simclr_plain-{seed}-4")
    again = scores.ScoreFile(path)
    for seed, file in enumerate(both):
        assert planned(runs, seed) in again
        assert again[planned(runs, seed)] == file[planned(runs, seed)]
    found = again[planned(runs, 1)]
    assert found.scores == scores.Scores({"linear": 0.1}, {"hue": 0.5}, {"loss": 2.5})
    assert found.machine == scores.machine()
    with pytest.raises(SystemExit, match=r"simclr_plain-0-4 of .* other options \(--a=1, --a=2\)"):
        assert planned(runs, 0, ("--a=2",)) in again


def test_a_line_that_is_cut_off_is_named(scores, tmp_path):
    import runs

    path = tmp_path / "scores.jsonl"
    scores.ScoreFile(path).add(planned(runs), tmp_path / "simclr_plain-0-4")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SystemExit, match=r"scores\.jsonl: line 1 is cut off"):
        scores.ScoreFile(path)


def test_a_table_says_where_its_runs_were_measured(gains, scores):
    def runs_on(*machines):
        none = scores.Scores({}, {}, {})
        return [scores.Measured("run", [], machine, none) for machine in machines]

    assert list(gains.machine_notes(runs_on("one", "one"))) == ["Measured on one."]
    several = list(gains.machine_notes(runs_on("one", "two", "one")))
    assert several == ["Measured on one: 2 runs; two: 1 runs."]


@pytest.mark.slow
def test_a_table_is_made_and_an_interrupted_call_goes_on(tmp_path):
    """Two seeds, all columns; a second call trains nothing, nor does one without the runs."""
    images = folder_of_images(tmp_path / "images", train=80)  # a batch is 128
    report = tmp_path / "table.md"
    command = [sys.executable, "benchmarks/train/equimod.py", "--path", str(images)]
    command += ["--methods", "simclr", "--seeds", "0", "1", "--jobs", "2", "--epochs", "1"]
    command += ["--treatments", "EquiMod", "--runs", str(tmp_path / "runs")]
    command += ["--report", str(report), "--scores", str(tmp_path / "scores.jsonl")]
    subprocess.run(command, check=True, cwd=ROOT)
    text = report.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| simclr")]
    assert len(rows) == 2 * 3
    plain, treated, equal = (row.split(" | ") for row in rows[:3])
    assert plain[1] == "plain"
    assert treated[1] == "EquiMod"
    assert equal[1] == "plain, forwards of EquiMod"
    assert re.fullmatch(r"[+-]\d+\.\d ± \d+\.\d \(p \S+\)", treated[6])
    assert plain[5].strip() == ""
    assert "| y | x | h | w |" in text.split("\n# EquiMod: what features know")[1]

    times = {
        each: each.stat().st_mtime_ns for each in (tmp_path / "runs").rglob("*") if each.is_file()
    }
    report.unlink()
    subprocess.run(command, check=True, cwd=ROOT)
    assert report.read_text() == text
    assert times == {
        each: each.stat().st_mtime_ns for each in (tmp_path / "runs").rglob("*") if each.is_file()
    }

    shutil.rmtree(tmp_path / "runs")
    subprocess.run(command, check=True, cwd=ROOT)
    assert report.read_text() == text and not (tmp_path / "runs").exists()


BUILD_ALL = """
import equimod, hard_views
from mast_ext.cli.parser import build
from mast_ext.cli.pretrain import make_parser, parse_training
from mast_ext.train.config import PretrainConfig
from mast_ext.train.networks import build_networks

for script in (equimod, hard_views):
    for method in script.METHODS:
        for treatment in script.TREATMENTS.values():
            if method not in treatment.unfit:
                options = ["--data.name=folder", "--data.path=DIR", *treatment.options]
                options.append(f"--method={method}")
                parser = make_parser()
                values = parse_training(parser, options)
                networks = build_networks(build(parser, values, PretrainConfig, "resume", "recipe"))
                print(networks.name)
"""


@pytest.mark.slow
def test_every_treatment_fits_its_methods():
    done = subprocess.run(
        [sys.executable, "-c", BUILD_ALL],
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks" / "train")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 * 2 + 6 * 11 - 1
