"""Hard view selection for any method: of several views of an image it trains on the hardest two.

Ferreira et al., "Beyond Random Augmentations: Pretraining with Hard Views" (ICLR 2025). A method
scores pairs of views by `Method.pair_losses` and then trains on a batch of two views as without
selection. The first two views are those of plain training, so that a step that does not select is
a step of plain training.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mast_ext import functional
from mast_ext.augment import (
    GROUPS,
    AugmentationParameters,
    AugmentationRecipe,
    ViewBatch,
    ViewPolicy,
)
from mast_ext.checks import OptionError
from mast_ext.losses import HardViewSelector
from mast_ext.methods.method import Encoded, Method, MethodOptions
from mast_ext.models import evaluating, forward_views

COLOR = slice(GROUPS["color"].start, GROUPS["grayscale"].stop)

LOGS = ("margin", "iou", "iou_random", "color", "color_random")


@dataclass(frozen=True)
class HardViewOptions(MethodOptions):
    """Settings of hard view selection.

    Attributes:
        views: Full-size views of an image to choose two from; 0 switches selection off. The
            paper's is 4. Each goes through the network once more, without gradient, and counts as
            a forward wherever budgets are compared.
        local_views: Local views to choose from (``dino``, ``ibot``, ``lejepa``); 0 makes as many as
            the method trains on, so that there is no choice among them. The paper's is 16.
        limit: Choose among this many random tuples of views only (of these methods), as the
            published code does; by default among all, which takes less time here.
        every: Select at every k-th step only; the others train on the first two views.
        warmup: Epochs (fractions allowed) before the first selection.
        size: Side in pixels to which views are scaled down for selection; by default they are
            not.
        precision: ``same`` as training, or ``bf16`` for the forward pass of selection.
        mode: What batch norm, dropout and drop path do in that pass. ``train``: what they do in
            training, so that selection moves the running statistics (the published code).
            ``frozen``: what they do in evaluation, so that it leaves no trace and the choice for
            an image depends neither on its batch nor on chance.
        scorer: Network that scores the pairs: the ``student``, or for methods that have one the
            EMA ``teacher`` alone.
        candidates: Pairs to choose from: ``all``, those with the first view (``anchor``), or
            those of an even with an odd view (``even_odd``; always so with these methods).
        differ: What the pairs to choose from differ by: ``all`` augmentations (the published code),
            or ``geometry`` alone. There every even view has the colors, blur and solarization of
            the first, every odd one those of the second, and a pair is an even and an odd view: it
            differs in color as without selection, and is hard for its crops and flips. (Local views
            keep colors of their own.) By default ``geometry`` where views have augmentations in
            common (MAST), whose features otherwise keep neither hue nor gray.
        strategy: ``argmax`` takes the hardest pair, ``softmax`` a random one by
            ``exp(loss / temperature)``.
        temperature: Of the ``softmax``, in the loss's unit.
        fraction: Share of the images that a process has at a time, those with the hardest pairs,
            that get them (rounded to whole images); the others get a random pair.
    """

    group: ClassVar[str] = "hard_views"

    views: int = 0
    local_views: int = 0
    limit: int | None = None
    every: int = 1
    warmup: float = 0.0
    size: int | None = None
    precision: Literal["same", "bf16"] = "same"
    mode: Literal["train", "frozen"] = "train"
    scorer: Literal["student", "teacher"] = "student"
    candidates: Literal["all", "anchor", "even_odd"] = "all"
    differ: Literal["all", "geometry"] | None = None
    strategy: Literal["argmax", "softmax"] = "argmax"
    temperature: float = 1.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 0 or self.views == 1:
            raise OptionError(f"hard_views.views must be 0 (off) or at least 2, got {self.views}")
        self._require_at_least(0, "local_views", "warmup")
        self._require_at_least(1, "limit", "every", "size")
        if self.differ == "geometry" and self.candidates == "anchor":
            raise OptionError(
                "hard_views.candidates must be all or even_odd where hard_views.differ is geometry,"
                " whose pairs are of an even and an odd view, got anchor"
            )

    def require_size(self, recipe: AugmentationRecipe) -> None:
        """Raises a ValueError if selection is to see views larger than those of the recipe."""
        if self.size is not None and self.size > recipe.size:
            raise OptionError(
                f"hard_views.size must be at most the views' {recipe.size} pixels, got {self.size}"
            )

    def by_geometry(self, policy: ViewPolicy) -> bool:
        """Whether pairs differ by geometry alone, of a method with this policy."""
        if self.differ is None:
            return bool(policy.shared) and self.candidates != "anchor"
        return self.differ == "geometry"

    def selects(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a step, counted from 0, selects."""
        return step >= self.warmup * steps_per_epoch and (step + 1) % self.every == 0

    def selections(self, steps: int, steps_per_epoch: int) -> int:
        """How many of a run's steps select."""
        first = min(steps, math.ceil(self.warmup * steps_per_epoch))
        return steps // self.every - first // self.every


class HardSelection(ABC):
    """Replaces a batch of many views by one of those that are hardest for the model.

    Attributes:
        options: See `HardViewOptions`; ``views`` at least 2.
        policy: Arranges the views to choose from.
        sizes: Sides in pixels of views that are scaled down for selection.
    """

    options: HardViewOptions
    policy: ViewPolicy
    sizes: tuple[int, ...] = ()

    @abstractmethod
    def forwards(self, steps: int, steps_per_epoch: int) -> float:
        """Forwards of every image of a batch over a run, of student and teacher alike."""

    @abstractmethod
    def __call__(
        self, batch: ViewBatch, backbone: nn.Module, teacher: nn.Module | None, *, select: bool
    ) -> tuple[ViewBatch, dict[str, Tensor]]:
        """The batch to train on.

        Args:
            batch: Views as `policy` arranges them, the plain one (if any) last.
            backbone: Images ``[N, C, S, S]`` to features ``[N, F]``.
            teacher: Images to the teacher's embeddings; None for a method without one.
            select: Whether to select; otherwise the first views are taken, those of a plain step.

        Returns:
            The batch of as many views as the method trains on, and scalars to log, NaN where
            nothing was selected. ``hard_views/margin`` is how much the loss of what was chosen
            exceeds the mean over all choices; ``iou`` and ``color`` are the overlap of the crops
            of the chosen pair of full-size views and the distance of their standardized color
            parameters, ``…_random`` the same of the mean pair.
        """

    @contextmanager
    def _selecting(self, device: str, *networks: nn.Module | None) -> Iterator[None]:
        """Precision and modes of a forward pass that only selects."""
        half = self.options.precision == "bf16"
        autocast = torch.autocast(
            device,
            torch.bfloat16 if half else torch.get_autocast_dtype(device),
            enabled=half or torch.is_autocast_enabled(device),
            # Weights cast here have no gradient: training must not find them in the cache.
            cache_enabled=False,
        )
        frozen = self.options.mode == "frozen"
        present = [network for network in networks if network is not None]
        with autocast, evaluating(*present if frozen else ()):
            yield

    def _logs(self, margin: Tensor, chosen: Tensor, choices: Tensor) -> dict[str, Tensor]:
        """The logs of a step that selected, see `__call__`.

        Args:
            margin: Loss of what was chosen over the mean of all choices, ``[B]``.
            chosen: Augmentation parameters of the chosen full-size pairs, ``[2, B, P]``.
            choices: Of all full-size pairs that there were to choose from, ``[2, N, P]``.
        """
        iou, color = self._differences(chosen)
        iou_random, color_random = self._differences(choices)
        values = (margin, iou, iou_random, color, color_random)
        return {
            f"hard_views/{name}": value.mean() for name, value in zip(LOGS, values, strict=True)
        }

    def _differences(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Overlap of crops and distance of colors of pairs ``[2, N, P]``, each ``[N]``."""
        parameters = AugmentationParameters(pairs)
        first, second = parameters.standardized(*self.policy.recipes)[..., COLOR]
        return parameters.crop_iou(0, 1), torch.linalg.vector_norm(first - second, dim=-1)


def scaled_down(views: Tensor, side: int) -> Tensor:
    """Views ``[V, B, C, S, S]`` at another size, ``[V, B, C, side, side]``."""
    small = interpolate(views.flatten(0, 1), (side, side), mode="bilinear", antialias=True)
    return small.unflatten(0, views.shape[:2])


def nothing_selected(device: torch.device) -> dict[str, Tensor]:
    """The logs of a step without selection."""
    return {f"hard_views/{name}": torch.full((), math.nan, device=device) for name in LOGS}


class HardViews(HardSelection):
    """Every image's hardest two views, by a method's `Method.pair_losses`.

    What the views of an image have in common (MAST) all candidates have, so that any two may be
    chosen.

    Args:
        method: What is trained, EquiMod around it included.
        recipe: The augmentations.
        options: See `HardViewOptions`; ``views`` at least 2.

    Attributes:
        trained: Views of an image that are trained on, the plain one included.
        choices: Pairs ``[2, P]`` of views that there are to choose from.

    Raises:
        ValueError: The method does not train on two views, or an option does not fit.
    """

    def __init__(
        self, method: Method, recipe: AugmentationRecipe, options: HardViewOptions
    ) -> None:
        for name in ("local_views", "limit"):
            if getattr(options, name):
                raise OptionError(
                    f"hard_views.{name} is for dino, ibot and lejepa, got {method.name}"
                )
        if options.scorer == "teacher" and method.teacher() is None:
            raise OptionError(f"hard_views.scorer teacher: {method.name} has no teacher")
        options.require_size(recipe)
        plain = method.policy(recipe)
        found = plain.views + plain.local_views
        if found != 2:
            raise OptionError(
                "hard_views needs a method that trains on two views of an image, got"
                f" {found}: set augment.views"
            )
        by_geometry = options.by_geometry(plain)
        self.policy = plain.enlarged(options.views, appearances=2 if by_geometry else None)
        self.method, self.options = method, options
        self.sizes = () if options.size is None else (options.size,)
        self.trained = 2 + self.policy.with_center
        self.selector = HardViewSelector(
            "even_odd" if by_geometry else options.candidates,
            options.strategy,
            temperature=options.temperature if options.strategy == "softmax" else 1.0,
            fraction=options.fraction,
        )
        views = options.views
        self.choices = torch.triu_indices(views, views, 1)
        if (marks := self.selector.marks(torch.empty(views, views, 0))) is not None:
            i, j = self.choices
            self.choices = self.choices[:, marks[i, j]]

    def forwards(self, steps: int, steps_per_epoch: int) -> float:
        networks = 1
        if self.options.scorer == "student" and self.method.teacher() is not None:
            networks = 2
        selecting = self.options.selections(steps, steps_per_epoch)
        trained = self.method.forwards(self.trained)
        return steps * trained + selecting * networks * self.options.views

    @torch.no_grad()
    def __call__(
        self, batch: ViewBatch, backbone: nn.Module, teacher: nn.Module | None, *, select: bool
    ) -> tuple[ViewBatch, dict[str, Tensor]]:
        if not select:
            images, device = batch.images.shape[1], batch.index.device
            first = torch.arange(2, device=device)[:, None].expand(2, images)
            return self._pair(batch, first), nothing_selected(device)
        losses = self._pair_losses(batch, backbone, teacher)
        index, score = self.selector(losses)
        chosen = self._pair(batch, index)
        if self.choices.device != losses.device:  # once: a copy at every step would wait for a GPU
            self.choices = self.choices.to(losses.device)
        i, j = self.choices
        margin = score - (losses[i, j] + losses[j, i]).mean(0) / 2
        choices = batch.parameters[self.choices].flatten(1, 2)
        return chosen, self._logs(margin, chosen.parameters[:2], choices)

    def _pair_losses(
        self, batch: ViewBatch, backbone: nn.Module, teacher: nn.Module | None
    ) -> Tensor:
        """``[V, V, B]`` of the candidates, at the size of selection."""
        views = batch.images[: self.options.views]
        if self.sizes:
            views = scaled_down(views, *self.sizes)
        with self._selecting(views.device.type, backbone, self.method, teacher):
            targets = None if teacher is None else forward_views(teacher, views)
            if self.options.scorer == "teacher" and targets is not None:
                return self.method.teacher_pair_losses(targets)
            encoded = Encoded(forward_views(backbone, views), targets)
            return self.method.pair_losses(encoded, batch)

    def _pair(self, batch: ViewBatch, index: Tensor) -> ViewBatch:
        """Views ``index [2, B]`` of every image with their parameters, and the plain view."""
        if self.policy.with_center:
            index = torch.cat((index, torch.full_like(index[:1], len(batch.images) - 1)))
        return replace(
            batch,
            images=functional.gather_views(batch.images, index),
            parameters=functional.gather_views(batch.parameters, index),
        )
