"""One training step: all views of a batch through the backbone at once, then the method's loss.

Hard views, if they are on, are chosen first; all else sees the chosen ones only.

The teacher of a method that wants one lives here, beside the backbone it follows, and so in the
same checkpoints.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from mast_ext.augment import ViewBatch
from mast_ext.methods import HardViews, Method
from mast_ext.models import EMATeacher, cosine_momentum, forward_views, to_channels_last
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import NonFiniteError
from mast_ext.train.optimizers import (
    create_optimizer,
    create_schedule,
    gradient_norm,
    parameter_groups,
)


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
        hard_views: HardViews | None = None,
    ) -> None:
        super().__init__()
        self.backbone = to_channels_last(backbone)
        self.method = method
        self.optimizer_config = optimizer
        self.batch_size = batch_size
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.hard_views = hard_views
        self.gradient_norm = float("nan")
        self._indices = torch.empty(0, dtype=torch.int64)
        self._wanted = method.teacher()
        self.teacher: EMATeacher | None = None
        if self._wanted is not None:
            self.teacher = EMATeacher(
                nn.Sequential(self.backbone, self._wanted.head),
                batch_norm=self._wanted.batch_norm,
            )

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Tensor]:
        self._indices = batch.index
        chosen: dict[str, Tensor] = {}
        if self.hard_views is not None:
            step = self.trainer.global_step
            select = self.hard_views.options.selects(step, self.steps_per_epoch)
            batch, chosen = self.hard_views(batch, self.backbone, self.teacher, select=select)
        features = forward_views(self.backbone, batch.images[self.method.student_views])
        targets = None
        if self._wanted is not None and self.teacher is not None:
            targets = forward_views(self.teacher, batch.images[self._wanted.views])
        terms = self.method(features, batch, targets)
        self._require_finite("the loss", terms["loss"])
        return {**terms, **chosen}

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
        norm = gradient_norm(self)
        self._require_finite("the gradient", norm)
        self.gradient_norm = float(norm)

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

    def _require_finite(self, what: str, value: Tensor) -> None:
        """Stops before a weight changes, so that the last checkpoint stays a good one."""
        if not torch.isfinite(value):
            step = self.trainer.global_step + 1
            raise NonFiniteError(f"{what} is {value.item()}", step, self._indices.tolist())
