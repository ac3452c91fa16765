"""One training step, from a batch of images to new weights, student's and teacher's.

`PretrainModule.optimizer_step` is the step as a whole, and `PretrainModule.training_step` its way
from views to loss. What follows a step (metrics, checkpoints) is in `mast_ext.train.loop.fit`.

The teacher of a method that wants one lives here, beside the backbone it follows, and so in the
same checkpoints.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mast_ext.augment import ViewBatch
from mast_ext.distributed import all_gather_object, world_size
from mast_ext.methods import encode
from mast_ext.models import EMATeacher, cosine_momentum, to_channels_last
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import NonFiniteError
from mast_ext.train.loop.optimizers import (
    create_optimizer,
    create_schedule,
    gradient_norm,
    parameter_groups,
    weight_decay_at,
)
from mast_ext.train.loop.parts import part
from mast_ext.train.loop.readback import Readback, StepNumbers
from mast_ext.train.networks import Networks


class PretrainModule(LightningModule):
    """A backbone and a method under training.

    Args:
        networks: What is trained.
        optimizer: Optimizer and schedule.
        batch_size: Images per step (the learning rate scales with it).
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the whole run.

    Attributes:
        gradient_norm: Of the last step, a scalar where the weights are.
        learning_rate: Of the last step.
        last_loss: Of the last step whose loss has been read, which on a GPU is the one before.
    """

    def __init__(
        self,
        networks: Networks,
        optimizer: OptimizerConfig,
        *,
        batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.backbone = to_channels_last(networks.backbone)
        self.method = networks.method
        self.hard_views = networks.hard_views
        self.optimizer_config = optimizer
        self.batch_size = batch_size
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.gradient_norm = torch.tensor(math.nan)
        self.learning_rate = math.nan
        self.last_loss = math.nan
        # Of the step under way, whose parts come one by one when gradients are accumulated.
        self._samples: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._readback = Readback()
        self._read_losses: list[float] = []
        self._teacher_spec = self.method.teacher()
        self.teacher: EMATeacher | None = None
        if self._teacher_spec is not None:
            self.teacher = EMATeacher(
                nn.Sequential(self.backbone, self._teacher_spec.head),
                batch_norm=self._teacher_spec.batch_norm,
            )
        self._gram_spec = self.method.gram_teacher()
        self.gram_teacher: EMATeacher | None = None
        if self._gram_spec is not None:
            if self._gram_spec.start >= total_steps:
                group = self.method.name.partition("+")[0]
                raise ValueError(
                    f"{group}.gram_start must be less than the run's {total_steps} steps, got"
                    f" {self._gram_spec.start}"
                )
            # What it says of an image is fixed: batch norm is in evaluation mode.
            self.gram_teacher = EMATeacher(self.backbone, batch_norm="ema")

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A step, in order.

        Lightning calls this for a step's last part; of others it runs `training_step` and the
        backward pass alone (see `TrainConfig.accumulate`).
        """
        assert optimizer_closure is not None
        step = self.trainer.global_step
        optimizer_closure()  # old gradients to zero, `training_step`, backward pass
        self.method.before_update()
        decay = weight_decay_at(step, self.optimizer_config, self.total_steps)
        optimizer.param_groups[0]["weight_decay"] = decay
        self.learning_rate = optimizer.param_groups[0]["lr"]
        with part(self.trainer, "check_gradient"):
            self.gradient_norm = gradient_norm(self)
            self._stop_if_not_finite(step)
            if self.optimizer_config.clip > 0:
                self.clip_gradients(optimizer, self.optimizer_config.clip, "norm")
        with part(self.trainer, "update_weights"):
            optimizer.step()
        if self.teacher is not None:
            with part(self.trainer, "update_teacher"):
                self._update_teacher(step)
        # Then Lightning moves the learning rate and calls the callbacks of `fit`.

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        """From the views of a step, or of a part of it, to the loss and what is logged."""
        step = self.trainer.global_step
        self.method.at_step(step, self.steps_per_epoch, self.total_steps)
        self._samples.append((batch.index, batch.parameters))
        selection: dict[str, Tensor] = {}
        if self.hard_views is not None:
            select = self.hard_views.options.selects(step, self.steps_per_epoch)
            with part(self.trainer, "select_views"):
                batch, selection = self.hard_views(
                    batch, self.backbone, self.teacher, select=select
                )
        spec = self._gram_spec
        gram_teacher = None if spec is None or step < spec.start else self.gram_teacher
        with part(self.trainer, "encode"):
            encoded = encode(
                self.method, self.backbone, self.teacher, batch, gram_teacher=gram_teacher
            )
        with part(self.trainer, "loss"):
            terms = self.method(encoded, batch)
        loss, parts = terms["loss"], self.trainer.accumulate_grad_batches
        self._losses.append(loss.detach() / parts if parts > 1 else loss.detach())
        if world_size() > 1:
            # Makes the gradient that all processes share NaN when one of them has such a loss.
            loss = loss * torch.where(loss.isfinite(), 1.0, math.nan)
        return {**terms, "loss": loss, **selection}

    def _stop_if_not_finite(self, step: int) -> None:
        """Sends this step's numbers to the host and looks at those that are there."""
        self._readback.send(step + 1, self._losses, self.gradient_norm, self._samples)
        self._losses, self._samples = [], []
        self._check(self._readback.take())

    def _update_teacher(self, step: int) -> None:
        spec = self._teacher_spec
        if spec is None or self.teacher is None:
            return
        momentum = cosine_momentum(
            step, total=self.total_steps, start=spec.momentum, end=spec.final_momentum
        )
        self.teacher.update(nn.Sequential(self.backbone, spec.head), momentum)
        gram = self._gram_spec
        if gram is not None and self.gram_teacher is not None and gram.taken_at(step + 1):
            modules: Any = self.teacher.module
            self.gram_teacher.update(modules[0], momentum=0.0)

    def settle(self) -> None:
        """Reads and checks the numbers of all steps done, as has to be before weights are saved.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite.
        """
        self._check(self._readback.take(wait=True))

    def take_losses(self) -> list[float]:
        """The losses of this process that have been read since the last call, one per step."""
        losses, self._read_losses = self._read_losses, []
        return losses

    def configure_optimizers(self) -> Any:
        exempt = {f"method.{name}" for name in self.method.no_weight_decay()}
        groups = parameter_groups(self, self.optimizer_config.weight_decay, exempt)
        optimizer = create_optimizer(groups, self.optimizer_config, self.batch_size)
        schedule = create_schedule(
            optimizer,
            self.optimizer_config,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _check(self, steps: list[StepNumbers]) -> None:
        for numbers in steps:
            if not all(map(math.isfinite, (*numbers.losses, numbers.gradient_norm))):
                self._stop(numbers)
            self.last_loss = sum(numbers.losses)
            self._read_losses.append(self.last_loss)

    def _stop(self, numbers: StepNumbers) -> NoReturn:
        """Ends the run before weights are saved, so that the last checkpoint stays a good one.

        All processes see the same gradient and get here together. The message names the loss of
        those processes where it was not finite, if there are any, and the samples they had.
        """
        bad_loss = next((loss for loss in numbers.losses if not math.isfinite(loss)), None)
        index, parameters = zip(*numbers.samples, strict=True)
        own = (bad_loss, torch.cat(index).tolist(), torch.cat(parameters, dim=1).tolist())
        every = all_gather_object(own)
        bad = {rank: loss for rank, (loss, *_) in enumerate(every) if loss is not None}
        what = f"the gradient is {numbers.gradient_norm}"
        if bad:
            first = min(bad)
            where = f" on rank {first}" if world_size() > 1 else ""
            what = f"the loss{where} is {bad[first]}"
        of_these = [samples for rank, (_, *samples) in enumerate(every) if not bad or rank in bad]
        indices = [i for own, _ in of_these for i in own]
        of_views = zip(*(rows for _, rows in of_these), strict=True)
        views = [[row for rows in of_all for row in rows] for of_all in of_views]
        raise NonFiniteError(what, numbers.step, indices, views, late=self._readback.late)
