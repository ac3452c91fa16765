import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mast_ext
from mast_ext.cli.main import main
from mast_ext.methods import METHODS

TINY = [
    *("--train.batch_size=8", "--train.epochs=1", "--train.accelerator=cpu"),
    *("--train.logger=csv", "--augment.size=16", "--evaluation.neighbors=[5]"),
    "--model.timm_args={channels: [8,8,8,16], stem_width: 4}",
]


SMALL = {"projector": [16, 16], "predictor": 8, "queue": 20}
METHOD_SETTINGS = {
    name: {f.name: SMALL[f.name] for f in fields(method.Options) if f.name in SMALL}
    for name, method in METHODS.items()
}
METHOD_SETTINGS["equimod"] = {"projector": [16, 16]}
TINY.insert(0, f"--config={json.dumps(METHOD_SETTINGS)}")  # of all methods, as a file has them


@pytest.fixture
def tiny():
    """Options that make a training take a second."""
    return list(TINY)


SHAPES = ["--data.size=16", "--data.max_images=24", "--data.max_test_images=12"]


@pytest.fixture
def shapes():
    return list(SHAPES)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The directory of a small run of MAST without a baseline, to be read only."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = [*TINY, *SHAPES, "--method=mast", "--baseline=none", f"--out={run}"]
    assert main(["pretrain", *options]) == 0
    return run


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A run of SimCLR whose backbone timm can build, and its export for timm, to be read only."""
    run = tmp_path_factory.mktemp("exported") / "run"
    options = ["--method=simclr", "--baseline=none", "--model.small_images=false"]
    options += ["--augment.mean=[0.5,0.4,0.3]", "--augment.std=[0.2,0.2,0.3]", f"--out={run}"]
    assert main(["pretrain", *TINY, *SHAPES, *options]) == 0
    assert main(["export", str(run), "--format=timm"]) == 0
    return run


SIX_STEPS = [*TINY, *SHAPES, "--train.epochs=2", "--train.checkpoint_every=2"]


@pytest.fixture(scope="session")
def six_steps(tmp_path_factory):
    """Options of a run of MAST and its baseline, and the directory of it, to be read only."""
    run = tmp_path_factory.mktemp("six_steps") / "run"
    assert main(["pretrain", *SIX_STEPS, f"--out={run}"]) == 0
    return list(SIX_STEPS), run


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs the program in an empty directory: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def start(tmp_path):
    """Starts Python as a process of its own in a folder, an empty one by default."""

    @contextmanager
    def run(*arguments, folder=tmp_path, **variables):
        environment = {**os.environ, "PYTHONPATH": str(Path(mast_ext.__file__).parents[1])}
        environment |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1", **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *map(str, arguments)]
        with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
            yield process

    return run


@pytest.fixture
def stop_at(start, tmp_path):
    """Runs the program until a step (from 0) begins in all its processes, and sends it a signal."""

    def run(step, number, *arguments, processes=1, name="run"):
        package = Path(mast_ext.__file__).parents[1]
        path = os.pathsep.join([str(Path(__file__).parent / "pause"), str(package)])
        folder = tmp_path / f"{name}-paused"
        folder.mkdir()
        program = ["-m", "mast_ext.cli.main", *arguments, f"--out={tmp_path / name}"]
        # Convolutions sum in another order on another number of threads: one process has as many as
        # this one, so that its bits can be compared with those of a run in here.
        threads = str(torch.get_num_threads() if processes == 1 else 1)
        variables = {"PAUSE_AT": str(step), "PYTHONPATH": path, "OMP_NUM_THREADS": threads}
        with start(*program, folder=folder, **variables) as process:
            while len(list(folder.glob("paused-*"))) < processes and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(number)
            out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    """Two classes that differ in color, 12 training and 4 test images each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for channel, name in ((0, "<b>red</b>"), (2, "blue")):
            place = tmp_path / "images" / split / name.replace("/", "_")
            place.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 80, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"
