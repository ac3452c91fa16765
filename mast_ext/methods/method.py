"""What a pretraining method is: a view policy, heads on the backbone's features, and a loss.

A method owns no backbone: features come from outside, so that the same backbone can be trained,
probed and saved without it. So it owns no teacher either: a `TeacherMethod` says which one it
wants, and the training loop keeps that teacher. The arithmetic of losses is in `mast_ext.losses`.

A new method is a file with a class that `register` names, and its import in
``mast_ext/methods/__init__.py``. Its ``Options`` become options of the program by that name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch.distributed
from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, ViewBatch, ViewPolicy
from mast_ext.checks import OptionError, require_field_types, require_number
from mast_ext.models import BatchNormMode

GATHER = torch.distributed.is_available()
"""Losses take the batches of all processes as one, when there are several."""


@dataclass(frozen=True)
class Subspaces:
    """Which dimensions of an embedding are invariant to which augmentation.

    Attributes:
        names: The augmentations.
        masks: ``[K, D]`` float32 in ``[0, 1]``: 1 where a dimension is invariant to the
            augmentation, 0 where the augmentation frees it to keep what it changes.
        overlap: How much the freed dimensions of each pair of augmentations have in common,
            ``[K, K]``, 1 on the diagonal.
    """

    names: tuple[str, ...]
    masks: Tensor
    overlap: Tensor

    @property
    def freed(self) -> Tensor:
        """How many dimensions every augmentation frees, ``[K]``: the sum of ``1 - mask``."""
        return (1 - self.masks).sum(1)

    def dimensions(self) -> dict[str, Tensor]:
        """The indices of the dimensions of every subspace, by its name.

        Every augmentation that frees some makes two of the embedding: ``invariant to <name>``, and
        ``freed by <name>``, which is as many of the dimensions with the smallest masks as it frees.
        """
        found = {}
        for name, mask, freed in zip(self.names, self.masks, self.freed.tolist(), strict=True):
            if freed == 0:
                continue
            kept = min(max(1, len(mask) - round(freed)), len(mask) - 1)
            order = mask.argsort(descending=True, stable=True)
            found[f"invariant to {name}"], found[f"freed by {name}"] = order.tensor_split([kept])
        return found


@dataclass(frozen=True)
class MethodOptions:
    """Base of methods' options, which checks them against their annotations.

    Attributes:
        group: Their group in the settings of a run, ``simclr`` in ``simclr.temperature``; errors
            begin with it.
        warmups: Names of options that give the length of a warm-up in epochs. The value is what the
            program says of a training that ends during the warm-up.
        waits: Names of options that give the epoch from which something happens. The value is what
            the program says of a training that ends before it.

    Raises:
        TypeError: An option has another type than its annotation.
        ValueError: One is NaN, or none of the literals that it takes.
    """

    group: ClassVar[str]
    warmups: ClassVar[dict[str, str]] = {}
    waits: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        require_field_types(self, f"{self.group}.")

    def _require_at_least(self, low: float, *names: str) -> None:
        """Raises a ValueError if one of these options lies below ``low``; None is skipped."""
        for name in names:
            if getattr(self, name) is not None:
                require_number(f"{self.group}.{name}", getattr(self, name), low)


@dataclass(frozen=True)
class TeacherSpec:
    """The EMA teacher that a method wants: a moving average of the backbone and a head on it.

    Attributes:
        head: The student's head, features ``[N, F]`` to embeddings ``[N, D]``.
        views: Which of the batch's views the teacher embeds.
        momentum: Momentum of the first step (see `mast_ext.models.cosine_momentum`).
        final_momentum: Momentum at the end of training.
        batch_norm: What batch norm does in the teacher (see `mast_ext.models.EMATeacher`).
    """

    head: nn.Module
    views: slice
    momentum: float
    final_momentum: float = 1.0
    batch_norm: BatchNormMode = "own"

    def __post_init__(self) -> None:
        for name in ("momentum", "final_momentum"):
            require_number(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class GramTeacherSpec:
    """The Gram teacher that a method wants: its teacher's backbone as it was at an earlier step.

    Attributes:
        start: The step from which on it is wanted, and at which it is first taken.
        every: Steps after which it is taken anew.
        views: How many full-size views it sees, those that the teacher sees.
    """

    start: int
    every: int
    views: int

    def taken_at(self, step: int) -> bool:
        """Whether the teacher before this step, counted from 0, becomes the Gram teacher."""
        return step >= self.start and (step - self.start) % self.every == 0

    def forwards(self, steps: int) -> int:
        """Forwards of every image of a batch over a run of so many steps."""
        return self.views * max(steps - self.start, 0)


@dataclass(frozen=True)
class AnchoredPatches:
    """Features of all patches of the full-size views that the teacher sees, ``[V · B, N, F]``.

    Attributes:
        student: By the student, from which some of the patches may have been hidden.
        teacher: By the Gram teacher, without gradient.
    """

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class HiddenPatches:
    """The patches that a batch's masks hide from the student, in the order of ``masks.nonzero()``.

    Attributes:
        student: The backbone's features of the hidden patches, ``[P, F]``.
        teacher: The teacher's embeddings of the same patches, which it sees, ``[P, D]`` without
            gradient.
        masks: Where they are, bool ``[V, B, H, W]`` with P true values.
    """

    student: Tensor
    teacher: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Encoded:
    """What the networks say of a batch's views (see `mast_ext.methods.encode`).

    Attributes:
        features: The backbone's features of the full-size views that the method wants, then of
            the local views, then of the plain center view, ``[V, B, F]``.
        targets: The teacher's embeddings, ``[T, B, D]`` without gradient; None without a teacher.
        patches: The hidden patches, for a method that hides some.
        anchored: All patches, where there is a Gram teacher.
    """

    features: Tensor
    targets: Tensor | None = None
    patches: HiddenPatches | None = None
    anchored: AnchoredPatches | None = None


class Method(nn.Module, ABC):
    """Base class of the methods.

    A subclass is built as ``(num_features, recipe, options)``, where ``options`` is an instance
    of its frozen dataclass ``Options`` and ``recipe`` the one its views are made with.

    Attributes:
        name: What the method is called in settings, tables and checkpoints.
        Options: Its settings.
        projector: What `embed` applies.
        student_views: Which of the batch's full-size views `forward` wants features of.
        local_views: How many local views it wants; their features follow those of the full-size
            views.
        local_share: Pixels of a local view as a fraction of those of a full-size one.
        multi_crop: Whether hard views are chosen by `crop_losses` rather than `pair_losses`.
        with_center: Whether the last full-size view is the plain center view.
        learns_uncertainty: Whether `pair_uncertainty` returns log-variances rather than None.
        baseline: The method that the program trains beside it by default, for comparison on
            `shapes`; ``"none"`` for none.
    """

    name: str
    Options: ClassVar[type[Any]]

    projector: nn.Module
    student_views: slice = slice(None)
    local_views: int = 0
    local_share: float = 1.0
    multi_crop: bool = False
    with_center: bool = False
    learns_uncertainty: bool = False
    baseline: ClassVar[str] = "none"

    @classmethod
    def create(
        cls, backbone: nn.Module, num_features: int, recipe: AugmentationRecipe, options: Any
    ) -> "Method":
        """The method on a backbone with ``num_features`` features.

        Raises:
            ValueError: The backbone or an option does not fit.
        """
        return cls(num_features, recipe, options)  # type: ignore[call-arg]

    @classmethod
    def complete(cls, options: Any, epochs: float) -> Any:
        """The options, with those filled in that by default follow from a run's epochs."""
        return options

    def policy(self, recipe: AugmentationRecipe) -> ViewPolicy:
        """Which views the method trains on; by default ``recipe.views`` independent ones."""
        return ComposedPolicy(recipe)

    @abstractmethod
    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        """The training loss of a batch.

        Args:
            encoded: What the networks say of the views: features of those in ``student_views``,
                targets of those that `teacher` names.
            batch: All views.

        Returns:
            ``"loss"``, a scalar with gradient, and detached scalars to log.
        """

    @abstractmethod
    def pair_losses(self, encoded: Encoded, batch: ViewBatch) -> Tensor:
        """How hard every pair of views of every image is, for hard view selection.

        Args:
            encoded: Features and targets of all V views.
            batch: What is known of these views; its images are not read.

        Returns:
            ``[V, V, B]``: the loss of view ``i`` with view ``j`` (see the ``pair_losses``
            of the method's objective).
        """

    def crop_losses(self, encoded: Encoded) -> Tensor:
        """How hard every student view is for every teacher view, for hard crops (`multi_crop`).

        Args:
            encoded: Features of G full-size and L local views, targets of the G full-size views,
                and the hidden patches of these for a method that hides some.

        Returns:
            ``[G, G + L, B]``, as ``functional.select_hard_crops`` takes them. Rows of local views,
            if there are any behind these, are left out.
        """
        raise OptionError(f"{self.name} does not train on crops of several sizes")

    def require_images(self, images: int) -> None:
        """Raises an OptionError unless hard views can be chosen for so many images at a time."""

    def teacher(self) -> TeacherSpec | None:
        """The teacher to train with; None for a method without one."""
        return None

    def gram_teacher(self) -> GramTeacherSpec | None:
        """The Gram teacher to train with, beside `teacher`; None for a method without one."""
        return None

    def teacher_pair_losses(self, targets: Tensor) -> Tensor:
        """Like `pair_losses`, by the teacher's embeddings ``[V, B, D]`` alone."""
        raise OptionError(f"{self.name} has no teacher")

    def hidden_token(self) -> Tensor | None:
        """What stands for hidden patches (see `mast_ext.models.patches`); None hides none."""
        return None

    def at_step(self, step: int, steps_per_epoch: int, total_steps: int) -> None:
        """Called before every part of every step, counted from 0, for schedules.

        With ``train.accumulate`` a step has several parts, each with the same number.
        """

    def before_update(self) -> None:
        """Called when gradients are there, before they are clipped and weights change."""

    def forwards(self, views: int) -> float:
        """How many of an image's ``views`` views go through a backbone in a step.

        Those of the student and those of the teacher, which gets no gradient, count alike; a local
        view counts by its share of a full-size view's pixels.
        """
        full = range(views - self.local_views)
        teacher = self.teacher()
        taught = 0 if teacher is None else len(full[teacher.views])
        local = self.local_views * self.local_share if self.local_views else 0
        return len(full[self.student_views]) + taught + local

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of features ``[..., F]``.

        Leading axes are one batch to the projector, so batch norm sees all views together.
        """
        return self.projector(features.flatten(0, -2)).unflatten(0, features.shape[:-1])

    def subspaces(self) -> Subspaces | None:
        """The subspaces of the embedding, on the CPU; None when there is only the whole."""
        return None

    def pair_uncertainty(self, batch: ViewBatch) -> Tensor | None:
        """Log-variances of every image's first two views as a pair, ``[B]``.

        None where none are learned. Images are not read.
        """
        return None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay, beside biases and norms."""
        return set()


class TeacherMethod(Method):
    """A method whose student learns from an EMA teacher's embeddings of the views.

    A subclass sets ``teacher_spec``.
    """

    teacher_spec: TeacherSpec

    def teacher(self) -> TeacherSpec:
        return self.teacher_spec

    def teacher_pair_losses(self, targets: Tensor) -> Tensor:
        """An error, unless a subclass can score pairs of views by its teacher alone."""
        raise OptionError(f"{self.name} cannot choose views by its teacher alone")

    def targets_of(self, encoded: Encoded) -> Tensor:
        """The teacher's embeddings.

        Raises:
            ValueError: There are none.
        """
        if encoded.targets is None:
            raise ValueError(f"{self.name} needs targets, the embeddings of its teacher")
        return encoded.targets


METHODS: dict[str, type[Method]] = {}
"""Every method by its name. `EquiMod` and hard view selection go around any of them."""

MethodType = TypeVar("MethodType", bound=type[Method])


def register(method: MethodType) -> MethodType:
    """Class decorator: the method can be trained by its name.

    Raises:
        ValueError: Another method has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"{method.__name__}.name is {method.name!r}, the name of another method")
    return method


def require_views(method: str, recipe: AugmentationRecipe) -> None:
    """Raises a ValueError unless the recipe gives the pairs of views that the method compares."""
    if recipe.views < 2:
        raise OptionError(f"{method} needs augment.views of at least 2, got {recipe.views}")


def require_two_views(method: str, recipe: AugmentationRecipe) -> None:
    """Raises a ValueError unless the recipe gives the two views that the method compares."""
    if recipe.views != 2:
        raise OptionError(
            f"{method} compares two views: augment.views must be 2, got {recipe.views}"
        )
