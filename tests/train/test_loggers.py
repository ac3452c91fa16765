"""Where rows of metrics go beside metrics.csv."""

import csv
import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import RunError
from mast_ext.train.loop import loggers
from mast_ext.train.loop.loggers import open_loggers, require_loggers
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory


def with_logger(config, logger):
    return replace(config, train=replace(config.train, logger=logger))


def test_loggers_are_counted_once():
    assert TrainConfig(logger="csv").loggers == ("csv",)
    assert TrainConfig(logger=("wandb", "csv", "wandb")).loggers == ("wandb", "csv")
    assert TrainConfig(logger="csv, mlflow").loggers == ("csv", "mlflow")
    for wrong in ((), "", ("csv", "odd")):
        with pytest.raises(ValueError, match="train.logger must be one or more of csv, tensorb"):
            TrainConfig(logger=wrong)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(tiny, name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=f"train.logger {name} needs .* pip install {name}"
    ):
        require_loggers(with_logger(tiny, ("csv", name)), "run")
    require_loggers(with_logger(tiny, "csv"), "run")


def test_a_folder_is_no_package(tiny, tmp_path, monkeypatch):
    """As W&B makes one where a program runs."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        require_loggers(with_logger(tiny, "wandb"), "run")


def test_mlflow_takes_no_marks_of_addresses(tiny, monkeypatch):
    monkeypatch.setattr(loggers, "_is_installed", lambda _: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"mlflow takes no \? or # .*run\?#1 has # and \?"):
        require_loggers(with_logger(tiny, "mlflow"), "run?#1")
    require_loggers(with_logger(tiny, "mlflow"), "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    require_loggers(with_logger(tiny, "mlflow"), "run?#1")


class Finishing(WandbLogger):
    """Keeps with which status it is finished."""

    def __init__(self):
        self.status = []

    @property
    def experiment(self):
        return SimpleNamespace(finish=lambda exit_code: self.status.append(exit_code))

    def log_hyperparams(self, params):
        pass


def test_wandb_is_told_of_a_failure(tiny, tmp_path, monkeypatch):
    logger, run = Finishing(), RunDirectory(tmp_path)
    monkeypatch.setattr(loggers, "_make", lambda *_: logger)
    with open_loggers(with_logger(tiny, "wandb"), run):
        pass
    with pytest.raises(KeyboardInterrupt), open_loggers(with_logger(tiny, "wandb"), run):
        raise KeyboardInterrupt
    assert logger.status == [0, 1]


def losses_of(run):
    """The losses in metrics.csv, by step."""
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_rates_are_those_of_their_steps(train_tiny, tmp_path, monkeypatch):
    rates, finite = [], PretrainModule._stop_if_not_finite

    def record(module, step):
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return finite(module, step)

    monkeypatch.setattr(PretrainModule, "_stop_if_not_finite", record)
    train_tiny()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == rates
    assert b"\r" not in (tmp_path / "run" / "metrics.csv").read_bytes()


def test_tensorboard_has_the_rows_and_the_settings(train_tiny, tiny, tmp_path):
    train_tiny(config=with_logger(tiny, ("tensorboard", "csv")))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert losses == pytest.approx(losses_of(tmp_path / "run")) and len(losses) == 8
    assert "seed: 0" in (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text()


def test_steps_that_are_repeated_count_once(train_tiny, tiny, tmp_path, monkeypatch):
    """Of a training that goes on from a checkpoint before its last row."""

    def cut(module, batch, batch_idx):
        if module.trainer.global_step == 5:
            module.trainer.logger.save()
            raise KeyError

    at_epochs_ends = replace(tiny.train, checkpoint_every=100)
    config = with_logger(replace(tiny, train=at_epochs_ends), ("tensorboard", "csv"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "on_train_batch_start", cut)
        with pytest.raises(KeyError):
            train_tiny(config=config)
    assert read_checkpoint(checkpoint)["global_step"] == 3
    train_tiny(config=config, resume=checkpoint)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps = [event.step for event in found.Scalars("loss")]
    assert sorted(losses_of(tmp_path / "run")) == steps


def test_csv_is_no_more_than_metrics(train_tiny, tiny, tmp_path):
    train_tiny(config=with_logger(tiny, "csv"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"metrics.csv", "checkpoints", "backbone.safetensors"}


class Recorder(Logger):
    """Keeps what it is given."""

    name, version = "recorder", "0"

    def __init__(self):
        super().__init__()
        self.losses, self.settings = {}, {}

    def log_metrics(self, metrics, step=None):
        self.losses[step] = metrics["loss"]

    def log_hyperparams(self, params):
        self.settings = params


def test_every_logger_gets_rows_and_settings(train_tiny, tiny, tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(
        loggers, "_make", lambda name, *_: made.setdefault((name, len(made)), Recorder())
    )
    train_tiny(config=with_logger(tiny, ("wandb", "csv", "mlflow")))
    assert [name for name, _ in made] == ["wandb", "mlflow"]
    for recorder in made.values():
        assert recorder.losses == losses_of(tmp_path / "run")
        assert recorder.settings["method"] == "mast" and recorder.settings["seed"] == 0


def test_a_logger_that_does_not_start_ends_the_run(train_tiny, tiny, monkeypatch):
    def refuse(*_):
        raise OSError("no account")

    monkeypatch.setattr(loggers, "_make", refuse)
    with pytest.raises(RunError, match="train.logger wandb does not start: no account"):
        train_tiny(config=with_logger(tiny, "wandb"))


def test_wandb_without_a_network(train_tiny, tiny, tmp_path, monkeypatch):
    """One run of W&B for each training, in the directory of the run."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("run", "run/baseline"):
        train_tiny(name, config=with_logger(tiny, "wandb"))
        assert wandb.run is None
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_mlflow_without_a_server(train_tiny, tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train_tiny(config=with_logger(tiny, "mlflow"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("mast_ext")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {each.step: each.value for each in history} == losses_of(tmp_path / "run")
    assert run.data.params["method"] == "mast" and run.info.status == "FINISHED"
