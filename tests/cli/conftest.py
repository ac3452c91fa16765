import numpy as np
import pytest
from PIL import Image

from mast_ext.cli.main import main

TINY = [
    *("--train.batch_size=8", "--train.epochs=1", "--train.accelerator=cpu"),
    *("--train.tensorboard=false", "--augment.size=16", "--evaluation.neighbors=[5]"),
    *("--mast.projector=[16,16]", "--vicreg.projector=[16,16]", "--simclr.projector=[16,16]"),
    *("--moco.projector=[16,16]", "--moco.queue=20", "--equimod.projector=[16,16]"),
    *("--barlow_twins.projector=[16,16]", "--byol.projector=[16,16]", "--byol.predictor=8"),
    *("--simsiam.projector=[16,16]", "--simsiam.predictor=8"),
    "--model.timm_args={channels: [8,8,8,16], stem_width: 4}",
]


@pytest.fixture
def tiny():
    """Options that make a training take a second."""
    return list(TINY)


@pytest.fixture
def shapes():
    return ["--data.size=16", "--data.max_images=24", "--data.max_test_images=12"]


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
