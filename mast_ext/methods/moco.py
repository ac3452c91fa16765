"""MoCo: a view has to be told apart from a queue of other images' keys, made by an EMA teacher.

He et al. 2020, with the augmentations and the two-layer projector of v2 (Chen, Fan et al. 2020),
but with batch norm between its layers. The papers shuffle each batch between GPUs, since a query
might recognize its key by the batch statistics that both were normalized with. One process, and
several with synchronized batch norm, have nothing to shuffle between; ``batch_norm="ema"`` rules it
out instead.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ViewBatch
from mast_ext.checks import OptionError
from mast_ext.losses import InfoNCELoss
from mast_ext.losses.common.memory_bank import MemoryBank
from mast_ext.methods.method import (
    GATHER,
    Encoded,
    MethodOptions,
    TeacherMethod,
    TeacherSpec,
    register,
    require_two_views,
)
from mast_ext.models import BatchNormMode, Projector


@dataclass(frozen=True)
class MoCoOptions(MethodOptions):
    """Settings of MoCo.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        temperature: Temperature of the cosine similarities (the paper's, v2).
        momentum: Momentum of the teacher. The paper's is 0.999, for 200 epochs of ImageNet; its
            authors take 0.99 for CIFAR-10, where a run has few steps.
        queue: Keys in the queue. It should hold many batches, but a small part of the images: an
            image whose own last key is among its negatives is pushed from itself.
        symmetric: Whether both views are queries, each against the other's key: twice the
            forwards for twice the pairs.
        batch_norm: Batch norm of the teacher, ``own`` or ``ema`` (see
            `mast_ext.models.EMATeacher`). The averages of ``ema`` lag behind the student, so that
            short runs learn little with them.
    """

    group: ClassVar[str] = "moco"

    projector: tuple[int, ...] = (256, 128)
    temperature: float = 0.2
    momentum: float = 0.99
    queue: int = 2048
    symmetric: bool = False
    batch_norm: BatchNormMode = "own"


@register
class MoCo(TeacherMethod):
    """The first view as the query, the second one as its key.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations of two views.
        options: See `MoCoOptions`.

    Raises:
        ValueError: ``recipe.views`` is not 2, or an option lies out of range.
    """

    name = "moco"
    Options: ClassVar[type[MoCoOptions]] = MoCoOptions

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: MoCoOptions) -> None:
        super().__init__()
        require_two_views(self.name, recipe)
        self.student_views = slice(0, 2 if options.symmetric else 1)
        self.projector = Projector(num_features, options.projector)
        if options.queue < 1:
            raise OptionError(f"moco.queue must hold at least 1 key, got {options.queue}")
        self.queue = MemoryBank((options.queue, self.projector.dim), GATHER)
        self.loss = InfoNCELoss(options.temperature)
        self.teacher_spec = TeacherSpec(
            self.projector,
            views=slice(0 if options.symmetric else 1, 2),
            momentum=options.momentum,
            final_momentum=options.momentum,
            batch_norm=options.batch_norm,
        )

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        queries, targets = self.embed(encoded.features), self.targets_of(encoded)
        # A copy: the backward pass needs these negatives, not those that replace them below.
        negatives = self.queue.bank.clone()
        keys = targets.flip(0)  # of the other view, when there are two
        losses = [self.loss(*pair, negatives) for pair in zip(queries, keys, strict=True)]
        if self.training:
            self.queue.update(keys.flatten(0, 1))
        return {"loss": torch.stack(losses).mean()}

    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        queries, targets = self.embed(encoded.features), self.targets_of(encoded)
        both = self.loss.pair_losses(torch.cat((queries, targets)), self.queue.bank)
        return both[: len(queries), len(queries) :]

    def teacher_pair_losses(self, targets: Tensor) -> Tensor:
        return self.loss.pair_losses(targets, self.queue.bank)
