"""View policies: which views an image gets, and what views of one image have in common.

A policy only writes parameter rows; the renderer is the same for all. Views are drawn independently
of each other, except that `SharedPolicy` draws some augmentations once for all views of an image.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mast_ext.augment import sampler
from mast_ext.augment.block_masks import BlockMasks, HiddenPlaces
from mast_ext.augment.parameters import APPEARANCE, COLUMN, SHAREABLE
from mast_ext.augment.recipe import COLOR_CHANGES, AugmentationRecipe
from mast_ext.checks import OptionError, require_integer, require_number, require_range

# Where streams of random numbers begin (see `sampler`): full-size views at 0, local ones at _LOCAL,
# what is shared at _CHOICE. So none depends on how many views there are of another kind.
_LOCAL = 1 << 20
_CHOICE = 1 << 33

_Policy = TypeVar("_Policy", bound="ViewPolicy")


@dataclass(frozen=True)
class ViewPlan:
    """Everything that is to be rendered for a batch.

    Attributes:
        rows: Augmentation parameters, ``[V, B, P]`` float32 (columns: `parameters.COLUMNS`), of
            the full-size views, the local ones, and the plain center view.
        changed: By which of the policy's ``shared`` augmentations the views of an image differ,
            ``[B, K]`` bool: false where it was drawn that all of them have it in common, true where
            each has its own, which may be equal by chance (a jitter that none has). None for
            policies that share nothing.
        masks: Hidden patches of the full-size views, bool ``[F, B, H, W]``, when the policy masks.
        hidden: Where these patches are.
    """

    rows: Tensor
    changed: Tensor | None = None
    masks: Tensor | None = None
    hidden: HiddenPlaces | None = None


class ViewPolicy(ABC):
    """Turns sample indices into a `ViewPlan`; without state, so any batch can be planned alone.

    Args:
        recipe: What may be done to a view.
        views: Full-size views of every image, at least 1 (default: ``recipe.views``).
        with_center: Append the plain center view (no augmentation) as the last view.

    Raises:
        ValueError: A value is out of range, or the recipe changes colors of images that are not
            RGB.

    Attributes:
        local_views: How many of the views are local ones; they come behind the full-size views.
        local_recipe: What may be done to a local view, its size included.
        shared: The augmentations that the views of an image may have in common, those of
            ``ViewPlan.changed``.
    """

    local_views: int = 0
    local_recipe: AugmentationRecipe | None = None
    shared: tuple[str, ...] = ()
    _appearances: int | None = None

    def __init__(
        self, recipe: AugmentationRecipe, *, views: int | None = None, with_center: bool = False
    ) -> None:
        recipe.require_colors()
        self.recipe = recipe
        self.views = require_integer("views", recipe.views if views is None else views, 1)
        self.with_center = with_center

    @property
    def recipes(self) -> tuple[AugmentationRecipe, ...]:
        """The recipe of every view but the center one."""
        return (self.recipe,) * (self.views + self.local_views)

    def num_views(self) -> int:
        """Views of every image, local ones and the center view included."""
        return self.views + self.local_views + self.with_center

    def enlarged(self: _Policy, views: int, *, appearances: int | None = None) -> _Policy:
        """The same policy with another number of full-size views.

        What a view shows does not depend on how many there are: further ones are added to these.

        Args:
            views: Their number.
            appearances: How many of them have colors, blur and solarization of their own; view
                ``v`` has those of view ``v % appearances``. By default all have.
        """
        other = copy.copy(self)
        other.views = require_integer("views", views, 1)
        other._appearances = None
        if appearances is not None:
            other._appearances = require_integer("appearances", appearances, 1)
        return other

    def plan(self, seed: int, epoch: int, indices: ArrayLike, sizes: ArrayLike) -> ViewPlan:
        """Draws the views of a batch.

        Args:
            seed: Seed of the run.
            epoch: Epoch, at least 0.
            indices: Sample indices in the source, ``[B]`` integers.
            sizes: Height and width of every image, ``[B, 2]`` integers.

        Raises:
            ValueError: ``indices`` and ``sizes`` do not fit together.
        """
        indices, sizes = np.asarray(indices, np.int64), np.asarray(sizes, np.int64)
        if indices.ndim != 1 or sizes.shape != (len(indices), 2):
            raise ValueError(
                "indices and sizes must have shapes [B] and [B, 2], "
                f"got {list(indices.shape)} and {list(sizes.shape)}"
            )
        draw = _Draw(self.recipe, seed, epoch, indices, sizes)
        views, changed = self._views(draw)
        if self._appearances is not None:
            for view in range(self._appearances, self.views):
                views[view][:, APPEARANCE] = views[view % self._appearances][:, APPEARANCE]
        if self.with_center:
            views = [*views, sampler.center_rows(sizes)]
        plan = ViewPlan(
            torch.from_numpy(np.stack(views)),
            None if changed is None else torch.from_numpy(changed),
        )
        masks = self._masks(draw)
        if masks is None:
            return plan
        return replace(plan, masks=torch.from_numpy(masks), hidden=HiddenPlaces.of(masks))

    def _masks(self, draw: "_Draw") -> NDArray[np.bool_] | None:
        """Hidden patches of the full-size views; None for policies that hide none."""
        return None

    @abstractmethod
    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], NDArray[np.bool_] | None]:
        """Rows of every view but the center one, and ``changed`` of a policy that shares."""


class ComposedPolicy(ViewPolicy):
    """``views`` independent views with all augmentations.

    Args:
        recipe: What may be done to a view.
        views: Number of views, at least 1 (default: ``recipe.views``).
        with_center: Append the plain center view.
    """

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], None]:
        return [draw.composed(view) for view in range(self.views)], None


@dataclass(frozen=True)
class Sharing:
    """When the views of an image have an augmentation in common.

    Attributes:
        probability: Of an image's views to have it in common, in ``[0, 1]``.
        start: Epoch from which any have.
    """

    probability: float = 0.5
    start: int = 0

    def __post_init__(self) -> None:
        require_number("probability", self.probability, 0, 1)
        require_integer("start", self.start, 0)


class SharedPolicy(ViewPolicy):
    """Views that are drawn independently, but for augmentations that they have in common.

    For every image it is drawn, for each entry of ``shared`` apart from the others, whether all its
    views share this entry: then they have the parameters of the first view in all of the entry's
    columns (`parameters.SHAREABLE`). Their images keep in common what the augmentation would have
    hidden. ``changed`` says which entries an image's views do *not* share; it holds for every pair
    of them.

    Color entries have columns in common: whether there is jitter at all, grayscale and
    solarization. Where one of them is shared, these are equal in all views, but brightness,
    contrast, saturation and hue of an entry that is not shared are drawn for each view.

    Args:
        recipe: What may be done to a view.
        shared: What may be shared, at least one entry, and when; names in `parameters.SHAREABLE`,
            all of which the recipe must vary. ``geometry`` excludes ``crop`` and ``flip``, its
            parts.
        views: Number of views, at least 2.
        with_center: Append the plain center view.

    Raises:
        ValueError: An argument is out of range, or names do not go together.
    """

    def __init__(
        self,
        recipe: AugmentationRecipe,
        *,
        shared: Mapping[str, Sharing],
        views: int = 2,
        with_center: bool = False,
    ) -> None:
        super().__init__(recipe, views=require_integer("views", views, 2), with_center=with_center)
        if not isinstance(shared, Mapping) or not shared:
            raise OptionError(f"shared must map at least one name to a Sharing, got {shared!r}")
        for name, sharing in shared.items():
            if name not in SHAREABLE:
                raise OptionError(f"shared must name {', '.join(SHAREABLE)}, got {name!r}")
            if not isinstance(sharing, Sharing):
                raise OptionError(f"shared must map {name!r} to a Sharing, got {sharing!r}")
            if name in COLOR_CHANGES and recipe.channels != 3:
                raise OptionError(
                    f"shared names {name!r}, and images that are not RGB have none: leave it out"
                )
            if not recipe.varies(name):
                raise OptionError(f"shared names {name!r}, which the recipe does not change")
        parts = [name for name in ("crop", "flip") if name in shared]
        if "geometry" in shared and parts:
            raise OptionError(
                f"shared must name 'geometry' or {' and '.join(map(repr, parts))}, not both: "
                "geometry is crop and flip"
            )
        self.sharing = dict(shared)
        self.shared = tuple(shared)

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        chosen = {name: self._shares(name, sharing, draw) for name, sharing in self.sharing.items()}
        taken = np.zeros((len(draw.indices), len(COLUMN)), bool)  # [B, P], from the first view
        for name, members in chosen.items():
            taken[:, [COLUMN[column] for column in SHAREABLE[name]]] |= members[:, None]
        first = draw.composed(0)
        views = [first]
        jitter = COLUMN["jitter"]
        for view in range(1, self.views):
            rows = draw.composed(view)
            if taken[:, jitter].any():
                # With the first view's decision on jitter, but brightness and so on of its own.
                gates = np.where(taken[:, jitter], first[:, jitter], rows[:, jitter])
                rows = draw.composed(view, jittered=gates > 0)
            views.append(np.where(taken, first, rows))
        return views, ~np.stack(list(chosen.values()), axis=1)

    @staticmethod
    def _shares(name: str, sharing: Sharing, draw: "_Draw") -> NDArray[np.bool_]:
        """Which images share an entry, ``[B]``: whatever the other entries are."""
        stream = list(SHAREABLE).index(name)
        return (draw.choice(stream) < sharing.probability) & (draw.epoch >= sharing.start)


class MultiCropPolicy(ViewPolicy):
    """Full-size views, and small views of small crops (SwAV, Caron et al. 2020; DINO, 2021).

    All views are independent. What a view shows does not depend on how many others there are.

    Args:
        recipe: What may be done to a full-size view.
        views: Full-size views, at least 1 (default: ``recipe.views``).
        local_views: Local views, at least 0.
        local_size: Side of a local view in pixels.
        local_scale: Range of the area of a local view's crop relative to the image's.
        asymmetric: Blur and solarize views as BYOL and DINO do, whatever the recipe says of both:
            even full-size views are always blurred, odd ones with probability 0.1 and solarized
            with 0.2, local ones blurred with 0.5.
        masks: Draws the patches of full-size views to hide; None hides none.
        with_center: Append the plain center view.
    """

    def __init__(
        self,
        recipe: AugmentationRecipe,
        *,
        views: int | None = None,
        local_views: int = 0,
        local_size: int = 16,
        local_scale: tuple[float, float] = (0.05, 0.4),
        asymmetric: bool = False,
        masks: BlockMasks | None = None,
        with_center: bool = False,
    ) -> None:
        super().__init__(recipe, views=views, with_center=with_center)
        self.local_views = require_integer("local_views", local_views, 0)
        require_integer("local_size", local_size, 1)
        scale = require_range("local_scale", local_scale, 1)
        local = replace(recipe, size=local_size, crop_scale=scale)
        self.local_recipe: AugmentationRecipe = local
        self._full: tuple[AugmentationRecipe, ...] = (recipe,)
        if asymmetric:
            self._full = (
                replace(recipe, blur=1.0, solarize=0.0),
                replace(recipe, blur=0.1, solarize=0.2),
            )
            self.local_recipe = replace(local, blur=0.5, solarize=0.0)
        self.masks = masks
        self._masked = self.views  # views with masks of their own

    @property
    def recipes(self) -> tuple[AugmentationRecipe, ...]:
        own = self._appearances or self.views
        full = (self._full[view % own % len(self._full)] for view in range(self.views))
        return (*full, *((self.local_recipe,) * self.local_views))

    def enlarged(
        self, views: int, local_views: int | None = None, *, appearances: int | None = None
    ) -> "MultiCropPolicy":
        """The same policy with other numbers of views; as many local ones by default.

        What a view shows does not depend on how many there are. A further full-size view has the
        mask of one of these, the v-th of V that of view ``v % V``: so one even and one odd view of
        two have the same masks whichever they are, and what is hidden is known before they are
        chosen. ``appearances`` are of full-size views, see `ViewPolicy.enlarged`.
        """
        other = super().enlarged(views, appearances=appearances)
        if local_views is not None:
            other.local_views = require_integer("local_views", local_views, 0)
        return other

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], None]:
        streams = (*range(self.views), *range(_LOCAL, _LOCAL + self.local_views))
        each = zip(self.recipes, streams, strict=True)
        return [replace(draw, recipe=recipe).composed(stream) for recipe, stream in each], None

    def _masks(self, draw: "_Draw") -> NDArray[np.bool_] | None:
        if self.masks is None:
            return None
        drawn = self.masks.draw(draw.seed, draw.epoch, draw.indices, self._masked)
        return drawn[np.arange(self.views) % self._masked]


POLICIES: dict[str, type[ViewPolicy]] = {
    "composed": ComposedPolicy,
    "shared": SharedPolicy,
    "multi_crop": MultiCropPolicy,
}
"""Every view policy by its name."""


def make_policy(name: str, recipe: AugmentationRecipe, **options: Any) -> ViewPolicy:
    """Makes the view policy of this name; ``options`` are its keyword arguments.

    Raises:
        ValueError: The name, an option or a value is unknown.
        TypeError: A value has the wrong type.
    """
    if name not in POLICIES:
        raise OptionError(f"view policy must be one of {', '.join(POLICIES)}, got {name!r}")
    try:
        inspect.signature(POLICIES[name]).bind(recipe, **options)
    except TypeError as error:
        raise OptionError(f"view policy {name!r} does not take these options: {error}") from error
    return POLICIES[name](recipe, **options)


@dataclass(frozen=True)
class _Draw:
    """The sampler's arguments for one batch."""

    recipe: AugmentationRecipe
    seed: int
    epoch: int
    indices: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def composed(
        self, view: int, *, jittered: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        key = (self.seed, self.epoch, self.indices, self.sizes)
        return sampler.composed_rows(self.recipe, *key, view, jittered=jittered)

    def choice(self, stream: int) -> NDArray[np.float64]:
        """A uniform number per image, apart from those of the views: ``[B]``."""
        key = sampler.keys(self.seed, self.epoch, self.indices, _CHOICE + stream)
        return sampler.uniforms(key, 1)[:, 0]
