"""Batches of views for training, of this process's share, where the trainer wants them."""

import os
from collections.abc import Iterator
from functools import partial

import torch
from lightning.pytorch import Trainer

from mast_ext.augment import ViewBatch, ViewLoader, build_loader
from mast_ext.checks import OptionError
from mast_ext.data import Source
from mast_ext.distributed import rank, world_size
from mast_ext.train.config import DataConfig, PretrainConfig
from mast_ext.train.launch import resolve_device, usable_cores
from mast_ext.train.loop.parts import part
from mast_ext.train.networks import Networks


def training_loader(config: PretrainConfig, networks: Networks, source: Source) -> ViewLoader:
    """The loader of the views that the networks train on, of this process's share.

    Raises:
        ValueError: There are fewer images than one batch needs, or the batch does not divide over
            the processes.
    """
    if len(source) < 2:  # no batch size would help, the least is 2
        cause = (
            "set data.max_images to 2 or more"
            if config.data.max_images == 1
            else "see whether data.path is the right folder or file"
        )
        raise OptionError(
            f"{source.name} has {len(source)} training image, and two at least are needed: {cause}"
        )
    if len(source) < config.train.batch_size:
        raise OptionError(
            f"{source.name} has {len(source)} training images, fewer than one batch:"
            f" set train.batch_size to {len(source)} or less"
        )
    workers = rendering_workers(config.data, resolve_device(config.train.accelerator))
    return build_loader(
        source,
        networks.policy(config.augment),
        batch_size=config.train.share_of_batch(world_size()),
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        workers=workers,
        backend=config.data.backend,
        photometric=config.data.photometric,
        device=config.data.device,
        keep_gb=config.data.keep_gb,
    )


def rendering_workers(data: DataConfig, device: torch.device) -> int:
    """Threads that render ahead: as the settings say, or by default on a GPU alone."""
    if data.workers is not None:
        return data.workers
    return rendering_threads() if device.type == "cuda" else 0


def rendering_threads() -> int:
    """Threads that render while a GPU trains.

    One less than this process's share of the cores (torchrun or SLURM says how many processes
    share them), and no more than 16, since each thread holds a batch in page-locked memory.
    """
    beside = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return min(16, max(1, usable_cores() // int(beside) - 1))


class BatchStream:
    """The batches that Lightning iterates over, on the trainer's device.

    The trainer's step alone says which batch comes next, so that a resumed run goes on with the
    right one. With accumulated gradients a batch comes in that many parts.
    """

    def __init__(self, loader: ViewLoader, trainer: Trainer, parts: int) -> None:
        self.loader, self.trainer, self.parts = loader, trainer, parts

    def __len__(self) -> int:
        return len(self.loader) * self.parts

    def __iter__(self) -> Iterator[ViewBatch]:
        self.loader.load_state_dict(self.state_dict())
        device = self.trainer.strategy.root_device
        for batch in self.loader.on(device, partial(part, self.trainer)):
            yield from batch.split(self.parts) if self.parts > 1 else [batch]

    def state_dict(self) -> dict[str, int]:
        epoch, step = divmod(self.trainer.global_step, len(self.loader))
        return {"seed": self.loader.seed, "epoch": epoch, "step": step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Does nothing: the trainer's step says where to start.

        Without it Lightning would warn that resuming is not exact.
        """
