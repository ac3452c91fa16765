"""The programs in examples/, at small sizes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images in two classes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir()
        for i in range(6):
            pixels = random.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def output_of(*command):
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses_in(output):
    return [float(number) for number in re.findall(r"loss ([-\d.]+)", output)]


SMALL = ("--epochs", 2, "--batch-size", 4, "--size", 32)


@pytest.mark.parametrize(
    ("program", "options"), [("simclr.py", ()), ("hard_views.py", ("--views", 3))]
)
def test_trains_on_an_image_folder(program, options, folder):
    output = output_of(EXAMPLES / program, "--data", folder, *SMALL, "--workers", 0, *options)
    assert len(losses_in(output)) == 2
    assert np.isfinite(losses_in(output)).all()


def test_mast_leaves_a_backbone_that_loads(folder, tmp_path):
    from mast_ext.models import load_backbone

    weights = tmp_path / "backbone.safetensors"
    output = output_of(EXAMPLES / "mast_on_a_folder.py", folder, *SMALL, "--out", weights)
    assert len(losses_in(output)) == 2
    assert "invariance" in output and "covariance" in output
    backbone, spec = load_backbone(weights)
    assert spec.name == "resnet_small"
    assert backbone.num_features == 128


def test_the_loss_does_not_depend_on_the_number_of_processes():
    found = []
    for processes in (1, 2):
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
        options = ("--steps", 2, "--batch-size", 16, "--images", 64)
        found.append(losses_in(output_of(*torchrun, EXAMPLES / "distributed_simclr.py", *options)))
    alone, together = found
    assert len(alone) == 2
    assert together == pytest.approx(alone, abs=2e-4)


@pytest.mark.slow
def test_walkthrough(tmp_path):
    """It checks itself what it says, and ends with an error if something does not hold."""
    output = output_of(EXAMPLES / "walkthrough.py", "--out", tmp_path / "walkthrough")
    for said in (
        "no step is missing, none was done twice",
        "both runs end with the same weights, bit for bit",
        "timm's model gives the features of the run",
        "mast-ext replay ends with status 0",
    ):
        assert f"✓ {said}" in output
    assert "Traceback" not in output
