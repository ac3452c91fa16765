"""`mast-ext bench data`: a table of all renderers, on the screen and in a file."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mast_ext

QUICK = ["--images=8", "--batch-size=4", "--rounds=1", "--workers=1", "--augment.size=16"]


def test_table_of_all_renderers(folder, tmp_path):
    """As a process of its own, because the peers fork."""
    out = tmp_path / "table.md"
    command = [sys.executable, "-m", "mast_ext.cli.main", "bench", "data", folder, *QUICK]
    done = subprocess.run(
        [*command, f"--out={out}"],
        env={**os.environ, "PYTHONPATH": str(Path(mast_ext.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 images (folder, 16×16, in memory for ours" in done.stdout
    names = ["torchvision v2 (PIL), DataLoader", "mast-ext, torchvision"]
    if importlib.util.find_spec("lightly"):
        names.append("lightly SimCLRTransform, DataLoader")
    if importlib.util.find_spec("nvidia.dali"):
        names += ["mast-ext, dali, exact, cpu", "mast-ext, dali, fused, cpu"]
    text = out.read_text()
    for name in names:
        assert name in done.stdout
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        rate, _, cpu, ratio = cells.strip("| ").split(" | ")[1:]
        assert float(rate) > 0 and float(cpu) > 0
        assert ratio == "1.0" or name != names[0]
    assert f"command: `mast-ext bench data {folder}" in text


WRONG = [
    ([], "bench takes what to measure: mast-ext bench data"),
    (["loss"], "bench takes what to measure: mast-ext bench data"),
    (["data"], r"bench data needs a folder of images \(or --name shapes\)"),
    (["data", "--views=0", "--name=shapes"], "views must be at least 1, got 0"),
    (["data", "x", "--speed=1"], "there is no option --speed"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_command_line(call, arguments, message):
    status, out, err = call("bench", *arguments)
    assert status in (1, 2) and out == ""
    assert re.search(message, err)


def test_missing_folder(call):
    status, _, err = call("bench", "data", "nowhere")
    assert (status, err) == (1, "mast-ext: image folder nowhere does not exist\n")


def test_help(call):
    for arguments in (["-h"], ["data", "--help"]):
        status, out, err = call("bench", *arguments)
        assert (status, err) == (0, "") and out.startswith("usage: mast-ext bench data")
