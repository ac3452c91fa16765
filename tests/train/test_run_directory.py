import os
import pathlib
import subprocess
import sys

import pytest

from mast_ext.train.errors import RunError
from mast_ext.train.state.run_directory import RunDirectory, require_writable, write_text


def test_numbers_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [RunDirectory.create(None, "mast-shapes").path.as_posix() for _ in range(3)]
    assert paths == [f"runs/mast-shapes-{n}" for n in (1, 2, 3)]
    assert (tmp_path / paths[0] / "checkpoints").is_dir()


def test_two_runs_at_the_same_moment_have_a_number_each(tmp_path, monkeypatch):
    """Another process makes the directory between our look and our making."""
    monkeypatch.chdir(tmp_path)
    make = pathlib.Path.mkdir

    def late(path, *arguments, **options):
        if path.name == "x-1":
            make(path)
        make(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", late)
    assert RunDirectory.create(None, "x").path.name == "x-2"


def test_a_numbered_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunDirectory.create(None, "x").remove()
    assert list((tmp_path / "runs").iterdir()) == []


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from mast_ext.train.state.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_trains_in_a_directory(tmp_path):
    run = RunDirectory.create(str(tmp_path / "run"), "x")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(run.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"another process trains in {run.path}"), run.locked():
            pass
        other.kill()
        other.wait()
        with run.locked():  # the other has died, and its lock with it
            pass


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/x.json", "no such file or directory"), ("folder", "is a directory"), ("file/x", "not")],
)
def test_what_cannot_be_written_is_told_before(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"cannot write .*{name}: {reason}"):
        require_writable(None, tmp_path / name)
    require_writable(tmp_path / "new.json", tmp_path / "file")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "folder"]


def test_takes_an_empty_directory(tmp_path):
    assert RunDirectory.create(str(tmp_path), "x").path == tmp_path


def test_remove_leaves_what_was_there_before(tmp_path):
    (tmp_path / "old").mkdir()
    for name, stays in (("old", True), ("new", False)):
        RunDirectory.create(str(tmp_path / name), "x").remove()
        assert (tmp_path / name).exists() is stays
    assert list((tmp_path / "old").iterdir()) == []


@pytest.mark.parametrize("was_there", [True, False])
def test_remove_leaves_the_listing_that_a_message_names(tmp_path, was_there):
    """Alone, and the next run may take its place."""
    path = tmp_path / "run"
    if was_there:
        path.mkdir()
    run = RunDirectory.create(str(path), "x")
    run.save_config({"seed": 1})
    write_text(run.start, "weights")
    write_text(run.nonfinite_batch, "3\n")
    run.remove()
    assert set(path.iterdir()) == {run.nonfinite_batch, run.start}
    again = RunDirectory.create(str(path), "x")
    assert list(path.iterdir()) == [again.checkpoints]
    again.remove()
    assert path.exists() and list(path.iterdir()) == []


def test_refuses_an_existing_run(tmp_path):
    run = RunDirectory.create(str(tmp_path / "run"), "x")
    with pytest.raises(RunError, match="exists and is not empty: choose another --out"):
        RunDirectory.create(str(run.path), "x")
    run.save_config({"seed": 1})
    with pytest.raises(RunError, match=f"continue it with --resume {run.path}"):
        RunDirectory.create(str(run.path), "x")
    assert run.load_config() == {"seed": 1}


def test_refuses_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot make the run directory .*file/run"):
        RunDirectory.create(str(tmp_path / "file" / "run"), "x")
    assert (tmp_path / "file").read_text() == "in the way"


def test_open_needs_a_run(tmp_path):
    with pytest.raises(RunError, match="is not a run directory: it has no config.yaml"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "- a list", ""])
def test_refuses_a_damaged_config(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match="config.yaml"):
        RunDirectory.open(tmp_path).load_config()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunError, match=f"cannot write {path}: disk full"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_files_are_utf_8_in_any_locale(tmp_path):
    """As a plain C locale is, without Python's own correction of it."""
    program = (
        "from pathlib import Path; from mast_ext.train.state import run_directory as files;"
        "run = files.RunDirectory(Path('.'));"
        "files.write_text(run.config, 'path: \\u03c1\\u2212');"
        "assert run.load_config() == {'path': '\\u03c1\\u2212'}"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, **ascii_only}, check=True
    )
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "path: \u03c1\u2212"


def test_what_is_not_unicode_is_written_escaped(tmp_path):
    """Bytes of a file's name as such, and half of a pair of surrogates, which JSON may hold."""
    write_text(tmp_path / "file.txt", os.fsdecode(b"caf\xe9/") + "\u03c1\ud83d")
    assert (tmp_path / "file.txt").read_text(encoding="utf-8") == "caf\\xe9/\u03c1\\ud83d"


def test_settings_of_older_runs_keep_their_values(tmp_path):
    run = RunDirectory(tmp_path)
    run.config.write_text("seed: 1\nevaluation: {neighbours: [3], temperature: 0.1}\n")
    assert run.load_config() == {"seed": 1, "evaluation": {"neighbors": [3], "temperature": 0.1}}


@pytest.mark.parametrize(("old", "new"), [("true", "tensorboard"), ("false", "csv")])
def test_loggers_of_older_runs_stay(tmp_path, old, new):
    run = RunDirectory(tmp_path)
    run.config.write_text(f"train: {{epochs: 2, tensorboard: {old}}}\n")
    assert run.load_config() == {"train": {"epochs": 2, "logger": new}}


def test_anchors_and_merges_are_no_repetition(tmp_path):
    run = RunDirectory(tmp_path)
    run.config.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert run.load_config() == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}
