"""When a run saves its state, and how a signal ends it: after a step, with a checkpoint."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mast_ext.distributed import all_gather_numbers, all_gather_object, rank, world_size
from mast_ext.train.errors import Interrupted
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.signals import handlers_restored
from mast_ext.train.state.checkpoint import (
    FORMAT,
    copy_file,
    generator_states,
    restore_generators,
)
from mast_ext.train.state.run_directory import RunDirectory

SEEDS_APART = 1_000_003
"""Difference of the seeds of two processes' generators. (Weights, order and views do not depend on
them.)"""

AGREE_SECONDS = 1.0
"""About how often several processes ask each other whether one has got a signal."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that end training early, with a checkpoint. Clusters warn of a job's end by the last."""


class Checkpoints(Callback):
    """Writes ``last`` every few steps and at epoch ends, and keeps the ``best`` epoch's.

    Best is the lowest mean training loss of an epoch: there are no labels to judge by.

    Before a checkpoint the processes exchange their losses, so that they agree on the best epoch.
    Then, and about once a second, they exchange whether a signal has come, so that all stop after
    the same step. A process that trains by itself stops after the step in which the signal came.

    Args:
        run: Where to write.
        identity: What a run must have in common with a checkpoint to continue from it.
        seed: Seed of the loader.
        steps_per_epoch: Steps of an epoch.
        every: Steps between checkpoints.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        identity: dict[str, Any],
        seed: int,
        steps_per_epoch: int,
        every: int,
    ) -> None:
        self.run, self.identity, self.seed = run, identity, seed
        self.steps_per_epoch, self.every = steps_per_epoch, every
        self.loss_sum, self.best = 0.0, float("inf")
        self.received = 0
        self._generators: list[dict[str, Any]] | None = None
        self._step = 0
        self._agreed, self._agreed_step, self._agree_at = 0.0, 0, 0

    def state_dict(self) -> dict[str, float]:
        return {"loss_sum": self.loss_sum, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.loss_sum, self.best = state_dict["loss_sum"], state_dict["best"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, step = divmod(trainer.global_step, self.steps_per_epoch)
        checkpoint["mast_ext"] = {
            "format": FORMAT,
            "identity": self.identity,
            "loader": {"seed": self.seed, "epoch": epoch, "step": step},
            "generators": all_gather_object(generator_states()),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._generators = checkpoint["mast_ext"]["generators"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = self._agreed_step = self._agree_at = trainer.global_step
        self._agreed = time.perf_counter()
        # Not earlier: building data and networks may draw random numbers.
        if self._generators is not None and rank() < len(self._generators):
            restore_generators(self._generators[rank()])
        elif rank() > 0:  # what is random in training is not to be the same in every process
            seed = (self.seed + SEEDS_APART * rank()) % 2**32
            seed_everything(seed, workers=True, verbose=False)
        # Replaces the handlers that Lightning has just set, which would stop without a checkpoint.
        with suppress(ValueError):  # handlers can be set in the main thread only
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        # A run may end within an epoch, which then counts as one.
        epoch_ended = step % self.steps_per_epoch == 0 or step == trainer.max_steps
        due = epoch_ended or step % self.every == 0
        stop = self._agreed_stop(step, due)
        if not (due or stop):
            return
        module = cast(PretrainModule, pl_module)
        module.settle()
        for losses in zip(*all_gather_object(module.take_losses()), strict=True):
            self.loss_sum += sum(losses) / len(losses)
        improved = False
        if epoch_ended:
            mean = self.loss_sum / ((step - 1) % self.steps_per_epoch + 1)
            improved, self.loss_sum = mean < self.best, 0.0
            self.best = min(mean, self.best)
        if improved:
            # The best one first: a run that dies in between repeats the end of the epoch.
            trainer.save_checkpoint(self.run.best)
            if trainer.is_global_zero:
                copy_file(self.run.best, self.run.last)
        else:
            trainer.save_checkpoint(self.run.last)
        if stop:
            raise Interrupted(stop, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A signal may have come while the last checkpoint was written: no step looks for it.
        (received,) = max(all_gather_numbers([float(self.received)]))
        if received:
            raise Interrupted(int(received), trainer.global_step)

    def _agreed_stop(self, step: int, due: bool) -> int:
        """The signal to stop after this step by, in all processes alike; 0 for none.

        They agree before checkpoints, and otherwise about once in `AGREE_SECONDS`: by the slowest
        one's time for a step they agree on when to agree next.
        """
        if world_size() == 1:
            return self.received
        if not (due or step >= self._agree_at):
            return 0
        now = time.perf_counter()
        own = (now - self._agreed) / (step - self._agreed_step)
        signals, seconds = zip(*all_gather_numbers([float(self.received), own]), strict=True)
        self._agreed, self._agreed_step = now, step
        self._agree_at = step + max(1, int(AGREE_SECONDS / max(*seconds, 1e-3)))
        return int(max(signals))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends training after the step under way, a second Ctrl-C at once.

        A second SIGTERM may be the first one again: clusters and torchrun both send it.
        """
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


@contextmanager
def signals_restored() -> Iterator[None]:
    """Restores the handlers of `SIGNALS`; a SIGTERM before the first step is `Interrupted`, too.

    A second Ctrl-C stays a KeyboardInterrupt, which Lightning makes an exit of the program.
    """
    try:
        with handlers_restored(SIGNALS):
            yield
    except SIGTERMException as error:
        raise Interrupted(signal.SIGTERM, 0) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
