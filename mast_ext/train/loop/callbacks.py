"""What a run reports while it trains: rows of metrics, and a progress bar on a terminal.

With accumulated gradients Lightning calls after every part of a step (see
`TrainConfig.accumulate`); the callbacks act after its last part.
"""

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mast_ext.distributed import all_gather_numbers, world_size
from mast_ext.train.errors import RunError
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.ranks import EmbeddingRanks
from mast_ext.train.state.run_directory import named_failure, read_rows, write_text


class MetricsFile:
    """A CSV file that grows by rows.

    A run that resumes at a step drops the rows which it is going to write again. If it has other
    columns than before, as with other settings, rows have NaN in those that they lack.

    Args:
        path: The file.
        resume_at: Steps done so far; rows after it are dropped. 0 starts a new file.

    Raises:
        RunError: The file has something else than rows of numbers, or cannot be written.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self._heads: list[str] = []
        if path.exists():
            try:
                heads, rows = read_rows(path)
                kept = [row for row in rows if int(row[0]) <= resume_at]
            except ValueError as error:
                raise RunError(f"{path} is damaged: {error}") from error
            self._heads = heads if kept else []
            self._write(kept)

    def append(self, row: dict[str, float]) -> None:
        """Adds a row; its first column is ``step``.

        Raises:
            RunError: The file cannot be written, as on a full disk.
        """
        if new := [name for name in row if name not in self._heads]:
            rows = read_rows(self.path)[1] if self._heads else []
            self._heads += new
            self._write([each + ["nan"] * len(new) for each in rows])
        with named_failure(self.path), self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._heads, restval="nan", lineterminator="\n")
            writer.writerow(row)

    def _write(self, rows: list[list[str]]) -> None:
        lines = [self._heads, *rows] if self._heads else []
        write_text(self.path, "".join(",".join(line) + "\n" for line in lines))


class Metrics(Callback):
    """Writes the method's terms, learning rate, gradient norm and speed every few steps.

    A term is the mean of its values in all parts of the step and all processes, those that are NaN
    left out; the first process writes. The speed is that of training: the time in which ranks are
    measured does not count.

    Args:
        file: Where the rows go; loggers of the trainer get what is not NaN, too.
        every: Steps between rows.
        steps_per_epoch: Steps of an epoch.
        ranks: Measures ranks of representations for some of the rows; None for none.
    """

    def __init__(
        self, file: Path, *, every: int, steps_per_epoch: int, ranks: EmbeddingRanks | None = None
    ) -> None:
        self.path, self.every, self.steps_per_epoch = file, every, steps_per_epoch
        self.ranks = ranks
        self.file: MetricsFile | None = None
        self._since, self._views = 0.0, 0
        self._step, self._parts = 0, list[dict[str, torch.Tensor]]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.file = MetricsFile(self.path, trainer.global_step)
        self._since, self._views = time.perf_counter(), 0
        self._step, self._parts = trainer.global_step, []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._views += batch.parameters.shape[0] * batch.parameters.shape[1]
        self._parts.append(outputs)
        if step == self._step:
            return
        self._step, parts, self._parts = step, self._parts, []
        last = step == trainer.max_steps
        if not (step % self.every == 0 or last):
            return
        now = time.perf_counter()
        views = self._views * world_size()
        module = cast(PretrainModule, pl_module)
        metrics = {
            **_mean_terms(parts),
            "lr": module.learning_rate,
            "gradient_norm": float(module.gradient_norm),
            "views_per_second": round(views / (now - self._since), 1),
        }
        if self.ranks is not None:
            metrics |= self.ranks.row(module, step, since=step - self.every, last=last)
        self._since, self._views = time.perf_counter(), 0
        if self.file is None:
            return
        self.file.append({"step": step, "epoch": round(step / self.steps_per_epoch, 4), **metrics})
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step)


def _mean_terms(parts: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The terms of a step, over its parts and all processes."""
    # Lightning has divided the loss, and it alone, by the number of parts.
    scale = [len(parts) if name == "loss" else 1 for name in parts[0]]
    # As one tensor, so that the host waits for a GPU once.
    values = torch.stack([torch.stack([x.double() for x in part.values()]) for part in parts])
    rows = [[x * by for x, by in zip(row, scale, strict=True)] for row in values.tolist()]
    means = _column_means(all_gather_numbers(_column_means(rows)))
    return dict(zip(parts[0], means, strict=True))


def _column_means(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of every column over those rows that have a number there; NaN if none has."""
    columns = ([x for x in column if not math.isnan(x)] for column in zip(*rows, strict=True))
    return [sum(column) / len(column) if column else math.nan for column in columns]


class ImagesPerSecondColumn(ProgressColumn):
    """Images per second by the steps that a task makes.

    Args:
        batch_size: Images per step.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def render(self, task: Task) -> Text:
        """The speed; nothing before it is known."""
        if task.speed is None:
            return Text("")
        return Text(f"{self.batch_size * task.speed:,.0f} images/s")


class ProgressBar(Callback):
    """One bar over all steps of a run: the last loss that has been read, speed, time left.

    The speed is that of about the last half minute.

    Args:
        title: What is being trained.
        batch_size: Images per step, of all processes together.
        console: Where to draw.
    """

    def __init__(self, title: str, batch_size: int, console: Console) -> None:
        self.title = title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            ImagesPerSecondColumn(batch_size),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.task = self.bar.add_task(
            self.title, total=trainer.max_steps, completed=trainer.global_step, loss=float("nan")
        )
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.task is not None:
            loss = cast(PretrainModule, pl_module).last_loss
            self.bar.update(self.task, completed=trainer.global_step, loss=loss)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.bar.stop()
