"""Where rows of metrics go beside metrics.csv."""

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger

from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import RunError
from mast_ext.train.loop import loggers
from mast_ext.train.loop.loggers import open_loggers, require_loggers
from mast_ext.train.state.run_directory import RunDirectory


def with_logger(config, logger):
    return replace(config, train=replace(config.train, logger=logger))


def test_loggers_are_counted_once():
    assert TrainConfig(logger="csv").loggers == ("csv",)
    assert TrainConfig(logger=("wandb", "csv", "wandb")).loggers == ("wandb", "csv")
    with pytest.raises(ValueError, match="train.logger must name a logger"):
        TrainConfig(logger=())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(tiny, name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=f"train.logger {name} needs .* pip install {name}"
    ):
        require_loggers(with_logger(tiny, ("csv", name)), "run")
    require_loggers(with_logger(tiny, "csv"), "run")


def test_tensorboard_has_the_rows_and_the_settings(train_tiny, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tiny(config=with_logger(tiny, ("tensorboard", "csv")))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    at = lines[0].split(",").index("loss")
    rows = [(int(line.split(",")[0]), float(line.split(",")[at])) for line in lines[1:]]
    assert [step for step, _ in losses] == [step for step, _ in rows] == list(range(1, 9))
    assert [value for _, value in losses] == pytest.approx([value for _, value in rows])
    assert "seed: 0" in (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text()


def test_csv_is_no_more_than_metrics(train_tiny, tiny, tmp_path):
    train_tiny(config=with_logger(tiny, "csv"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"metrics.csv", "checkpoints", "backbone.safetensors"}


class Recorder(Logger):
    """What the package of W&B or MLflow would be given."""

    name, version = "recorder", "0"

    def __init__(self):
        self.rows, self.settings, self.finished = [], {}, False
        self.experiment = SimpleNamespace(finish=self.finish)

    def finish(self):
        self.finished = True

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics["loss"]))

    def log_hyperparams(self, params):
        self.settings = params


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_others_get_rows_and_settings_and_are_closed(train_tiny, tiny, tmp_path, name, monkeypatch):
    made = []

    def make(*arguments, **options):
        made.append((arguments, options, Recorder()))
        return made[-1][-1]

    class Wandb(Recorder):
        def __new__(cls, *arguments, **options):
            return make(*arguments, **options)

    monkeypatch.setattr(loggers, "MLFlowLogger", make)
    monkeypatch.setattr(loggers, "WandbLogger", make)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train_tiny(config=with_logger(tiny, name))
