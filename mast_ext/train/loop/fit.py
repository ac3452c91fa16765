"""Trains networks in a run directory, from their initial weights or a checkpoint."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import nn

from mast_ext.augment import ViewLoader
from mast_ext.augment.parameters import COLUMNS
from mast_ext.distributed import rank, world_size
from mast_ext.models import save_backbone, sync_batch_norm
from mast_ext.train.config import PretrainConfig, TrainConfig
from mast_ext.train.errors import NonFiniteError, RunError
from mast_ext.train.launch import ExternalLaunch, resolve_device
from mast_ext.train.loop.callbacks import Metrics, ProgressBar
from mast_ext.train.loop.checkpoints import Checkpoints, signals_restored
from mast_ext.train.loop.loader import BatchStream
from mast_ext.train.loop.loggers import open_loggers
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.ranks import EmbeddingRanks
from mast_ext.train.networks import Networks, image_format
from mast_ext.train.state.checkpoint import (
    AtomicCheckpointIO,
    check_belongs,
    check_weights,
    read_checkpoint,
)
from mast_ext.train.state.run_directory import RunDirectory, named_failure, write_text


@dataclass(frozen=True)
class Training:
    """One training: the method's own, or its baseline's.

    Attributes:
        config: Its settings.
        networks: What is trained, changed in place.
        loader: Its views.
        steps: How many steps it takes, those before a checkpoint included.
    """

    config: PretrainConfig
    networks: Networks
    loader: ViewLoader
    steps: int

    @property
    def name(self) -> str:
        """The method's name, with what goes around it."""
        return self.networks.name

    @property
    def forwards(self) -> int:
        """Images that go through the backbone, or its teacher, in all processes together."""
        images = self.config.train.batch_size * self.networks.forwards(self.loader, self.steps)
        return round(images)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to continue from it."""
        return {
            "method": self.name,
            "backbone": dataclasses.asdict(self.networks.spec),
            "images": len(self.loader.source),
            "batch_size": self.config.train.batch_size,
            "seed": self.config.seed,
            "steps": self.steps,
        }


def fit(
    training: Training,
    run: RunDirectory,
    *,
    resume: Path | None = None,
    console: Console,
    watching: Sequence[Callback] = (),
    profiler: Profiler | None = None,
) -> PretrainModule:
    """Trains and writes the backbone's weights.

    Of several processes (see `mast_ext.train.launch`) all call this; the first one writes.

    Args:
        training: What to train, and how.
        run: Where checkpoints, metrics and the weights go.
        resume: A checkpoint to go on from.
        console: Where a progress bar is drawn.
        watching: Callbacks that look at the training and change nothing.
        profiler: Is told when parts of a step begin and end.

    Raises:
        CheckpointError: The checkpoint is damaged, not ours, or of another run.
        Interrupted: A signal stopped training; the last checkpoint has the step it names.
        RunError: The loss or gradient became NaN or infinite, or a file cannot be written.
    """
    config, networks = training.config, training.networks
    if world_size() > 1 and config.train.sync_batchnorm:
        for network in (networks.backbone, networks.method):
            sync_batch_norm(network, resolve_device(config.train.accelerator))
    module = PretrainModule(
        networks,
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=len(training.loader),
        total_steps=training.steps,
    )
    steps = 0 if resume is None else _steps_done(resume, training, module)
    with _quiet_lightning(), open_loggers(config, run, steps) as loggers:
        callbacks = [*_callbacks(training, run, console), *watching]
        trainer = _trainer(config.train, run, callbacks, loggers, training.steps, profiler)
        stream = BatchStream(training.loader, trainer, config.train.accumulate)
        try:
            with signals_restored():
                trainer.fit(module, stream, ckpt_path=resume)
        except NonFiniteError as error:
            raise _describe(error, training, run) from error
        except RuntimeError as error:
            if "parameters that were not used" not in str(error):
                raise
            raise RunError(_name_unused_weights(module)) from error
    if rank() == 0:
        with named_failure(run.backbone):
            images = image_format(config.augment)
            save_backbone(module.backbone, networks.spec, run.backbone, images)
        with named_failure(run.nonfinite_batch):  # of a step that was finite when it was repeated
            run.nonfinite_batch.unlink(missing_ok=True)
    return module


def _steps_done(path: Path, training: Training, module: PretrainModule) -> int:
    """The steps that a checkpoint has, which goes out of memory again: Lightning reads its own.

    Raises:
        CheckpointError: It is damaged, not ours, or of another run.
    """
    checkpoint = read_checkpoint(path)
    check_belongs(checkpoint, training.identity, path)
    check_weights(checkpoint["state_dict"], module.state_dict(), path)
    return checkpoint["global_step"]


def _callbacks(training: Training, run: RunDirectory, console: Console) -> list[Callback]:
    """What follows each step, in this order: see `mast_ext.train`."""
    train, steps_per_epoch = training.config.train, len(training.loader)
    ranks = None
    if train.rank_every:
        ranks = EmbeddingRanks(
            training.loader.source,
            training.config.augment,
            batch_size=train.batch_size,
            seed=training.config.seed,
            every=train.rank_every,
        )
    callbacks: list[Callback] = [
        Metrics(run.metrics, every=train.log_every, steps_per_epoch=steps_per_epoch, ranks=ranks),
        Checkpoints(
            run,
            identity=training.identity,
            seed=training.config.seed,
            steps_per_epoch=steps_per_epoch,
            every=train.checkpoint_every,
        ),
    ]
    if rank() == 0 and (
        train.progress == "on" or (train.progress == "auto" and console.is_terminal)
    ):
        callbacks.append(ProgressBar(training.name, train.batch_size, console))
    return callbacks


def _trainer(
    train: TrainConfig,
    run: RunDirectory,
    callbacks: list[Callback],
    loggers: list[Logger],
    total_steps: int,
    profiler: Profiler | None,
) -> Trainer:
    trainer = Trainer(
        accelerator=train.accelerator,
        precision=train.precision,
        accumulate_grad_batches=train.accumulate,
        max_steps=total_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=callbacks,
        profiler=profiler,
        **_strategy(train),
        default_root_dir=run.path,
        deterministic=True,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    # Filling every new tensor is a debugging aid that costs time; no op here reads before writing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return trainer


def _strategy(train: TrainConfig) -> dict[str, Any]:
    """On which device, and with whom."""
    plugins = [AtomicCheckpointIO(), ExternalLaunch()]
    if world_size() == 1:
        return {"devices": 1, "plugins": plugins}
    on_gpu = resolve_device(train.accelerator).type == "cuda"
    # Synchronized batch norm and the methods' queues are the same everywhere by themselves.
    strategy = DDPStrategy(broadcast_buffers=not train.sync_batchnorm)
    return {
        "devices": [torch.cuda.current_device()] if on_gpu else 1,
        "num_nodes": world_size(),
        "strategy": strategy,
        "plugins": plugins,
    }


def _name_unused_weights(module: nn.Module) -> str:
    named = module.named_parameters()
    unused = [name for name, weight in named if weight.requires_grad and weight.grad is None]
    first = ", ".join(unused[:4]) + (", …" if len(unused) > 4 else "")
    return f"training by several processes needs a gradient of every weight: {first} got none"


def _describe(error: NonFiniteError, training: Training, run: RunDirectory) -> RunError:
    """Writes what `mast_ext.train.replay` needs, and says what has happened."""
    if rank() == 0:
        values = {
            "what": error.what,
            "step": error.step,
            "steps": training.steps,
            "processes": world_size(),
            "indices": error.indices,
            "columns": COLUMNS,
            "parameters": error.parameters,
            "settings": training.config.to_dict(),
        }
        write_text(run.nonfinite_batch, json.dumps(values) + "\n")
    first = ", ".join(str(index) for index in error.indices[:8])
    more = ", …" if len(error.indices) > 8 else ""
    good = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint yet"
    before = "saving weights that it changed" if error.late else "changing any weight"
    return RunError(
        f"{error}: stopped before {before}. Its batch has samples {first}{more} (all in"
        f" {run.nonfinite_batch}); {good}. Where it comes from says mast-ext replay {run.path}"
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's tips and hints, which are for its own users, off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
