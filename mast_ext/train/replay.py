"""Repeats the step whose loss or gradient was not finite, and finds where that began.

Training goes on from the last good checkpoint, in a temporary directory, up to that step: resuming
is exact, so that on the same machine weights, batch and augmentation are those of that time.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mast_ext.augment import ViewBatch
from mast_ext.methods import Method
from mast_ext.train.config import PretrainConfig
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.inputs import as_trained, require_channels
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory


@dataclass
class Replay:
    """What was seen of the repeated step.

    Attributes:
        step: Its number, from 1.
        terms: The method's loss terms, those of several parts averaged.
        origin: Where the first number that is not finite came from, in words; None if all were.
        same_batch: Whether samples and augmentation parameters are those that were stored.
    """

    step: int
    terms: dict[str, float] = field(default_factory=dict)
    origin: str | None = None
    same_batch: bool = False


def read_nonfinite(path: Path) -> tuple[RunDirectory, dict[str, Any]]:
    """What a run, or its baseline, has stored of a step that was not finite.

    Weights to start from are those that the run keeps.

    Raises:
        RunError: There is no such step, or its file is damaged.
    """
    for run in (RunDirectory(path), RunDirectory(path).baseline()):
        if not run.nonfinite_batch.is_file():
            continue
        try:
            values = json.loads(run.nonfinite_batch.read_text(encoding="utf-8"))
            needed = ("step", "steps", "processes", "indices", "parameters", "settings")
            stored = {name: values[name] for name in needed}
            stored["settings"] = run.with_own_start(dict(stored["settings"]))
            return run, stored
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{run.nonfinite_batch} is damaged ({type(error).__name__})") from error
    raise RunError(f"nothing to replay: {path} has no {RunDirectory(path).nonfinite_batch.name}")


def replay(
    config: PretrainConfig, run: RunDirectory, stored: Mapping[str, Any], console: Console
) -> Replay:
    """Repeats the step.

    Args:
        config: The settings in ``stored``.
        run: The directory that `read_nonfinite` gave, of which nothing is changed.
        stored: What it gave beside.
        console: Where a progress bar is drawn.

    Raises:
        RunError: The run trained in several processes, or cannot be repeated.
    """
    if stored["processes"] > 1:
        raise RunError(
            f"{run.path} trained in {stored['processes']} processes; only a step of one process can"
            " be replayed"
        )
    resume = run.last if run.last.exists() else None
    if resume is not None and (done := read_checkpoint(resume)["global_step"]) >= stored["step"]:
        raise RunError(
            f"{run.path} has gone on since: its last checkpoint has {done} steps, and step"
            f" {stored['step']} cannot be replayed"
        )
    # A logger would begin a run of its own, on a server even.
    config = replace(config, train=replace(config.train, logger="csv"))
    source = open_images(as_trained(config.data, config.augment), console).train
    require_channels(config.augment, source)
    networks = build_networks(config)
    loader = training_loader(config, networks, source)
    training = Training(config, networks, loader, stored["steps"])
    seed_everything(config.seed, workers=True, verbose=False)  # as before training began
    watch = _Watch(stored["step"])
    with tempfile.TemporaryDirectory() as folder:
        copy = RunDirectory(Path(folder))
        copy.checkpoints.mkdir()
        try:
            fit(training, copy, resume=resume, console=console, watching=[watch])
        except RunError:
            if not watch.batches:  # something else, before the step
                raise
    return watch.result(stored)


class _Watch(Callback):
    """Looks at every module's output in one step, and ends training after it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.batches: list[ViewBatch] = []
        self.terms: list[dict[str, float]] = []
        self.origin: str | None = None
        self._hooks: list[Any] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.step - 1:
            return
        self.batches.append(batch)
        if not _finite(batch.images):
            self.origin = self.origin or "the images of the batch"
        if self._hooks:  # another part of the step
            return
        for name, weight in pl_module.named_parameters():
            if not _finite(weight):
                self.origin = self.origin or f"the weight {name}, before the step"
        for name, part in pl_module.named_modules():
            if name:
                self._hooks.append(part.register_forward_hook(self._hook(name)))
        module = cast(PretrainModule, pl_module)
        self._hooks.append(module.method.register_forward_hook(self._keep_terms))

    def _hook(self, name: str) -> Any:
        # The hooks of inner modules run before those of the modules around them, so that the first
        # one to see such a number names the smallest part that makes it.
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, Method):  # its other terms are for the log, and may be NaN
                output = output["loss"]
            if self.origin is None and not all(map(_finite, tree_leaves(output))):
                self.origin = f"the output of {name} ({type(module).__name__})"

        return look

    def _keep_terms(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.terms.append({name: float(value.detach()) for name, value in output.items()})

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.step - 1 or self.origin is not None:
            return
        # The backward pass goes from the loss to the images: the last module is reached first.
        for name, weight in reversed(list(pl_module.named_parameters())):
            if weight.grad is not None and not _finite(weight.grad):
                self.origin = f"the gradient of {name}, in the backward pass"
                return

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()

    def result(self, stored: Mapping[str, Any]) -> Replay:
        index = torch.cat([batch.index for batch in self.batches]).tolist()
        parameters = torch.cat([batch.parameters for batch in self.batches], dim=1)
        same = torch.equal(parameters.cpu(), torch.tensor(stored["parameters"]))
        names = self.terms[0] if self.terms else ()
        terms = {name: math.fsum(t[name] for t in self.terms) / len(self.terms) for name in names}
        return Replay(self.step, terms, self.origin, same and index == stored["indices"])


def _finite(value: Any) -> bool:
    """Whether all numbers of a tensor are; what is none has none that are not."""
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
