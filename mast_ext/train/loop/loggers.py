"""Where rows of metrics go beside ``metrics.csv``: loggers of Lightning, by `TrainConfig.logger`.

TensorBoard's writes into the run directory, and so does MLflow's unless ``MLFLOW_TRACKING_URI``
names a server. W&B's sends to its server; with ``WANDB_MODE=offline`` it writes into the run
directory.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mast_ext.distributed import rank
from mast_ext.train.config import PretrainConfig
from mast_ext.train.errors import RunError
from mast_ext.train.state.run_directory import RunDirectory

PROJECT = "mast_ext"
"""The project of W&B, and the experiment of MLflow, where their variables name no other."""


def require_loggers(config: PretrainConfig, path: str) -> None:
    """Checks before anything is made that the loggers can write into a run directory.

    Raises:
        ModuleNotFoundError: A logger's package is not installed; the message says what to do.
        ValueError: TensorBoard or MLflow cannot write under this name.
    """
    for name in config.train.loggers:
        if name != "csv" and not _is_installed(name):
            raise ModuleNotFoundError(
                f"train.logger {name} needs the package {name}, not installed here:"
                f" pip install {name}"
            )
    if "tensorboard" in config.train.loggers:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"train.logger must be csv in the run directory {path}: TensorBoard takes no"
                " names that are not UTF-8"
            ) from error
    if "mlflow" in config.train.loggers and not os.environ.get("MLFLOW_TRACKING_URI"):
        absolute = str(Path(path).resolve())
        if odd := sorted(set("?#") & set(absolute)):
            raise ValueError(
                f"train.logger mlflow takes no ? or # in the name of a run directory, which have a"
                f" meaning in the addresses of its databases: {absolute} has {' and '.join(odd)}"
            )


def _is_installed(package: str) -> bool:
    """Whether it can be imported. A folder of its name, as W&B makes one, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


@contextmanager
def open_loggers(
    config: PretrainConfig, run: RunDirectory, steps: int = 0
) -> Iterator[list[Logger]]:
    """The loggers of a training, which have its settings, and are closed at the end.

    Args:
        config: The settings.
        run: Where the training writes.
        steps: After which it goes on. What TensorBoard has of later ones no longer counts.

    Raises:
        RunError: W&B or MLflow does not start.
    """
    loggers: list[Logger] = []
    status = 1
    try:
        for name in config.train.loggers if rank() == 0 else ():
            if name != "csv":
                loggers.append(_start(name, config, run, steps))
        yield loggers
        status = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # the next training is to have a run of its own
                logger.experiment.finish(exit_code=status)


def _start(name: str, config: PretrainConfig, run: RunDirectory, steps: int) -> Logger:
    title = "/".join(run.path.resolve().parts[-2:])
    try:
        logger = _make(name, run.path, title, steps)
        logger.log_hyperparams(config.to_dict())
    except Exception as error:  # their errors have no base in common
        raise RunError(f"train.logger {name} does not start: {error}") from error
    return logger


def _make(name: str, path: Path, title: str, steps: int) -> Logger:
    if name == "tensorboard":
        folder = path / "tensorboard"
        return TensorBoardLogger(
            folder, name="", version="", default_hp_metric=False, purge_step=steps + 1
        )
    if name == "wandb":
        return WandbLogger(title, path, project=os.environ.get("WANDB_PROJECT", PROJECT))
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path.resolve()}/mlflow.db"
    return MLFlowLogger(experiment, run_name=title, tracking_uri=address)
