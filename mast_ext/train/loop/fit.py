"""Builds a method's networks and trains them in a run directory, from nothing or a checkpoint."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import nn

from mast_ext.augment import ViewBatch, ViewLoader, build_loader
from mast_ext.data import Source
from mast_ext.distributed import rank, world_size
from mast_ext.methods import METHODS, EquiMod, HardSelection, Method, hard_selection
from mast_ext.models import (
    BackboneSpec,
    create_backbone,
    is_resnet,
    save_backbone,
    sync_batch_norm,
)
from mast_ext.train.config import PretrainConfig, TrainConfig
from mast_ext.train.errors import NonFiniteError, RunError
from mast_ext.train.evaluation.evaluate import device_named
from mast_ext.train.launch import ExternalLaunch, share_of_batch
from mast_ext.train.loop.callbacks import Metrics, ProgressBar
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    check_belongs,
    read_checkpoint,
    signals_restored,
)
from mast_ext.train.state.run_directory import RunDirectory, write_text


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is trained: a backbone, what it is, a method on it, and who chooses its views."""

    backbone: nn.Module
    spec: BackboneSpec
    method: Method
    hard_views: HardSelection | None = None

    @property
    def name(self) -> str:
        """The method's, with what goes around it."""
        return self.method.name + ("+hard" if self.hard_views is not None else "")

    def forwards(self, loader: ViewLoader, steps: int) -> float:
        """Forwards of every image of a batch over a run, of student and teacher alike."""
        if self.hard_views is not None:
            return self.hard_views.forwards(steps, len(loader))
        return steps * self.method.forwards(loader.policy.num_views())


def build_networks(config: PretrainConfig) -> Networks:
    """Backbone and method with initial weights that follow from the seed alone.

    Every method starts from the same backbone, and from the same heads with EquiMod as without.

    Raises:
        ValueError: The backbone or an option of the method does not exist or does not fit.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    spec = backbone_spec(config)
    backbone, num_features = create_backbone(spec.name, spec.small_images, **spec.timm_args)
    recipe = config.augment
    options = config.options(config.method)
    method = METHODS[config.method].create(backbone, num_features, recipe, options)
    if method.local_views:
        _require_size(backbone, spec, f"{config.method}.local_size", options.local_size)
    if config.equimod.weight > 0:
        method = EquiMod(method, num_features, recipe, config.equimod)
    hard_views = None
    if config.hard_views.views:
        hard_views = hard_selection(method, recipe, config.hard_views)
        for size in hard_views.sizes:
            _require_size(backbone, spec, "hard_views.size", size)
    return Networks(backbone, spec, method, hard_views)


def _require_size(backbone: nn.Module, spec: BackboneSpec, option: str, size: int) -> None:
    """Raises a ValueError unless the backbone takes images of this side (transformers may not)."""
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{option}: {spec.name} does not take images of {size} pixels ({error}); vision"
            " transformers do with dynamic_img_size: true in model.timm_args"
        ) from error
    finally:
        backbone.train()


def backbone_spec(config: PretrainConfig) -> BackboneSpec:
    """The backbone of the settings, with the stem decided."""
    model = config.model
    small = model.small_images
    if small is None:
        small = is_resnet(model.name) and config.augment.size <= 64
    return BackboneSpec(model.name, small, dict(model.timm_args))


def training_loader(config: PretrainConfig, method: Method, source: Source) -> ViewLoader:
    """The loader of a method's views, of this process's share.

    Raises:
        ValueError: There are fewer images than one batch needs, or the batch does not divide over
            the processes.
    """
    if len(source) < config.train.batch_size:
        raise ValueError(
            f"{source.name} has {len(source)} training images, fewer than one batch:"
            f" set train.batch_size to {len(source)} or less"
        )
    policy = method.policy(config.augment)
    if config.hard_views.views:
        policy = hard_selection(method, config.augment, config.hard_views).policy
    workers = config.data.workers
    if workers is None:
        on_gpu = device_named(config.train.accelerator).type == "cuda"
        workers = rendering_threads() if on_gpu else 0
    return build_loader(
        source,
        policy,
        batch_size=share_of_batch(config.train, world_size()),
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        workers=workers,
        backend=config.data.backend,
        photometric=config.data.photometric,
        device=config.data.device,
    )


def rendering_threads() -> int:
    """Threads that render while a GPU trains.

    They are this process's share of the cores it may use, as far as torchrun or SLURM says how many
    processes share them, less one for training; and no more than 16, since each holds a batch in
    page-locked memory.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    beside = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return min(16, max(1, (cores or 1) // int(beside) - 1))


def fit(
    config: PretrainConfig,
    networks: Networks,
    loader: ViewLoader,
    run: RunDirectory,
    *,
    total_steps: int,
    resume: Path | None = None,
    console: Console,
) -> PretrainModule:
    """Trains for ``total_steps`` steps and writes the backbone's weights.

    Of several processes (see `mast_ext.train.launch`) all call this; the first one writes.

    Args:
        config: All settings.
        networks: What to train, changed in place.
        loader: Its views.
        run: Where checkpoints, metrics and the weights go.
        total_steps: Steps of the run, those before the checkpoint included.
        resume: A checkpoint to go on from.
        console: Where a progress bar is drawn.

    Raises:
        CheckpointError: The checkpoint is damaged, not ours, or of another run.
        Interrupted: A signal stopped training; the last checkpoint has the step it names.
        RunError: The loss or gradient became NaN or infinite.
    """
    name = networks.name
    identity = {
        "method": name,
        "backbone": dataclasses.asdict(networks.spec),
        "images": len(loader.source),
        "batch_size": config.train.batch_size,
        "seed": config.seed,
        "steps": total_steps,
    }
    if resume is not None:
        check_belongs(read_checkpoint(resume), identity, resume)
    if world_size() > 1 and config.train.sync_batchnorm:
        for network in (networks.backbone, networks.method):
            sync_batch_norm(network, device_named(config.train.accelerator))
    module = PretrainModule(
        networks.backbone,
        networks.method,
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=len(loader),
        total_steps=total_steps,
        hard_views=networks.hard_views,
    )
    checkpoints = Checkpoints(
        run,
        identity=identity,
        seed=config.seed,
        steps_per_epoch=len(loader),
        every=config.train.checkpoint_every,
    )
    every = config.train.log_every
    callbacks: list[Callback] = [
        Metrics(run.metrics, every=every, steps_per_epoch=len(loader)),
        checkpoints,
    ]
    progress = config.train.progress
    if rank() == 0 and (progress == "on" or (progress == "auto" and console.is_terminal)):
        callbacks.append(ProgressBar(name, console))
    with _quiet_lightning():
        trainer = _trainer(config, run, callbacks, total_steps)
        stream = _Stream(loader, trainer, config.train.accumulate)
        try:
            with signals_restored():
                trainer.fit(module, stream, ckpt_path=resume)
        except NonFiniteError as error:
            raise _describe(error, run) from error
        except RuntimeError as error:
            if "parameters that were not used" not in str(error):
                raise
            raise RunError(_of_unused_weights(module)) from error
    if rank() == 0:
        save_backbone(module.backbone, networks.spec, run.backbone)
    return module


def _trainer(
    config: PretrainConfig, run: RunDirectory, callbacks: list[Callback], total_steps: int
) -> Trainer:
    logger: Any = False
    if config.train.tensorboard:
        logger = TensorBoardLogger(run.tensorboard, name="", version="")
    trainer = Trainer(
        accelerator=config.train.accelerator,
        precision=config.train.precision,
        accumulate_grad_batches=config.train.accumulate,
        max_steps=total_steps,
        max_epochs=-1,
        logger=logger,
        callbacks=callbacks,
        **_strategy(config.train),
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
    if world_size() == 1:
        return {"devices": 1, "plugins": [AtomicCheckpointIO()]}
    on_gpu = device_named(train.accelerator).type == "cuda"
    # Synchronised batch norm and the methods' queues are the same everywhere by themselves.
    strategy = DDPStrategy(broadcast_buffers=not train.sync_batchnorm)
    return {
        "devices": [torch.cuda.current_device()] if on_gpu else 1,
        "num_nodes": world_size(),
        "strategy": strategy,
        "plugins": [AtomicCheckpointIO(), ExternalLaunch()],
    }


class _Stream:
    """The loader as Lightning sees it: every epoch starts where the trainer's step says, and
    batches are where the trainer computes.

    So one number, the trainer's step, decides what comes next, after a resume as before it. Steps
    come in the parts that gradients are accumulated over.
    """

    def __init__(self, loader: ViewLoader, trainer: Trainer, parts: int) -> None:
        self.loader, self.trainer, self.parts = loader, trainer, parts

    def __len__(self) -> int:
        return len(self.loader) * self.parts

    def __iter__(self) -> Iterator[ViewBatch]:
        self.loader.load_state_dict(self.state_dict())
        for batch in self.loader.on(self.trainer.strategy.root_device):
            yield from batch.split(self.parts) if self.parts > 1 else [batch]

    def state_dict(self) -> dict[str, int]:
        epoch, step = divmod(self.trainer.global_step, len(self.loader))
        return {"seed": self.loader.seed, "epoch": epoch, "step": step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to do: the step is the trainer's. Its presence says that resuming is exact."""


def _of_unused_weights(module: nn.Module) -> str:
    named = module.named_parameters()
    unused = [name for name, weight in named if weight.requires_grad and weight.grad is None]
    first = ", ".join(unused[:4]) + (", …" if len(unused) > 4 else "")
    return f"training by several processes needs a gradient of every weight: {first} got none"


def _describe(error: NonFiniteError, run: RunDirectory) -> RunError:
    listing = run.path / "nonfinite_batch.txt"
    if rank() == 0:
        write_text(listing, "".join(f"{index}\n" for index in error.indices))
    first = ", ".join(str(index) for index in error.indices[:8])
    more = ", …" if len(error.indices) > 8 else ""
    good = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint yet"
    before = "saving weights that it changed" if error.late else "changing any weight"
    return RunError(
        f"{error}: stopped before {before}. Its batch has samples {first}{more} (all in"
        f" {listing}); {good}"
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
