"""One training step: all views of a batch through the backbone at once, then the method's loss.

Hard views, if they are on, are chosen first; all else sees the chosen ones only.

The teacher of a method that wants one lives here, beside the backbone it follows, and so in the
same checkpoints.
"""

import math
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from mast_ext.augment import ViewBatch
from mast_ext.distributed import all_gather_object, world_size
from mast_ext.methods import HardSelection, Method, encode
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
from mast_ext.train.loop.readback import Readback, StepNumbers


class PretrainModule(LightningModule):
    """A backbone and a method under training.

    Args:
        backbone: Images ``[N, 3, S, S]`` to features ``[N, F]``.
        method: Heads and loss on these features.
        optimizer: Optimiser and schedule.
        batch_size: Images per step (the learning rate scales with it).
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the whole run.
        hard_views: Chooses the views to train on; None takes those that there are.

    Attributes:
        gradient_norm: Of the last step, a scalar where the weights are.
        last_loss: Of the last step whose loss has been read, which on a GPU is the one before.
    """

    def __init__(
        self,
        backbone: nn.Module,
        method: Method,
        optimizer: OptimizerConfig,
        *,
        batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
        hard_views: HardSelection | None = None,
    ) -> None:
        super().__init__()
        self.backbone = to_channels_last(backbone)
        self.method = method
        self.optimizer_config = optimizer
        self.batch_size = batch_size
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.hard_views = hard_views
        self.gradient_norm = torch.tensor(math.nan)
        self.last_loss = math.nan
        # Of the step under way, whose parts come one by one when gradients are accumulated.
        self._indices: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._readback = Readback()
        self._read_losses: list[float] = []
        self._wanted = method.teacher()
        self.teacher: EMATeacher | None = None
        if self._wanted is not None:
            self.teacher = EMATeacher(
                nn.Sequential(self.backbone, self._wanted.head),
                batch_norm=self._wanted.batch_norm,
            )

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        self._indices.append(batch.index)
        step = self.trainer.global_step
        self.method.at_step(step, self.steps_per_epoch)
        chosen: dict[str, Tensor] = {}
        if self.hard_views is not None:
            select = self.hard_views.options.selects(step, self.steps_per_epoch)
            batch, chosen = self.hard_views(batch, self.backbone, self.teacher, select=select)
        encoded = encode(self.method, self.backbone, self.teacher, batch)
        terms = self.method(encoded, batch)
        loss = terms["loss"]
        if world_size() > 1:
            # All processes are to see an odd loss of one of them, in their common gradient.
            loss = loss * torch.where(loss.isfinite(), 1.0, math.nan)
        parts, own = self.trainer.accumulate_grad_batches, terms["loss"].detach()
        self._losses.append(own / parts if parts > 1 else own)
        return {**terms, "loss": loss, **chosen}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._wanted is not None and self.teacher is not None:
            momentum = cosine_momentum(
                self.trainer.global_step,
                total=self.total_steps,
                start=self._wanted.momentum,
                end=self._wanted.final_momentum,
            )
            self.teacher.update(nn.Sequential(self.backbone, self._wanted.head), momentum)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.method.before_update()
        optimizer.param_groups[0]["weight_decay"] = weight_decay_at(
            self.trainer.global_step, self.optimizer_config, self.total_steps
        )
        self.gradient_norm = gradient_norm(self)
        self._readback.send(
            self.trainer.global_step + 1, self._losses, self.gradient_norm, self._indices
        )
        self._losses, self._indices = [], []
        self._look_at(self._readback.take())

    def settle(self) -> None:
        """Waits for the numbers of all steps done, as is due before their weights are saved.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite.
        """
        self._look_at(self._readback.take(wait=True))

    def take_losses(self) -> list[float]:
        """The losses of this process that have been read since the last call, one per step."""
        losses, self._read_losses = self._read_losses, []
        return losses

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        if self.optimizer_config.clip > 0:
            self.clip_gradients(optimizer, self.optimizer_config.clip, "norm")

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

    def _look_at(self, steps: list[StepNumbers]) -> None:
        for numbers in steps:
            if not all(map(math.isfinite, (*numbers.losses, numbers.gradient_norm))):
                self._stop(numbers)
            self.last_loss = sum(numbers.losses)
            self._read_losses.append(self.last_loss)

    def _stop(self, numbers: StepNumbers) -> NoReturn:
        """Stops before weights are saved, so that the last checkpoint stays a good one.

        All processes do it together; if the loss of some of them was the cause, theirs is told.
        """
        odd_loss = next((loss for loss in numbers.losses if not math.isfinite(loss)), None)
        told = all_gather_object((odd_loss, torch.cat(numbers.indices).tolist()))
        odd = {rank: loss for rank, (loss, _) in enumerate(told) if loss is not None}
        what = f"the gradient is {numbers.gradient_norm}"
        if odd:
            first = min(odd)
            where = f" on rank {first}" if world_size() > 1 else ""
            what = f"the loss{where} is {odd[first]}"
        indices = [i for r, (_, own) in enumerate(told) if not odd or r in odd for i in own]
        raise NonFiniteError(what, numbers.step, indices, late=self._readback.late)
