"""View policies: which views an image gets, and which pairs of them say something.

A policy only writes parameter rows; the renderer is the same for all. With the rows it answers, for
every pair of views of every image, the subspace the pair belongs to: 0 for pairs in which all
augmentations were drawn independently (the joint subspace), k for pairs that differ by
``recipe.augmentations[k - 1]`` alone (or, of `SharedPolicy`, share ``shared[k - 1]``), -1 for pairs
that are not to be used.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mast_ext.augment import sampler
from mast_ext.augment.block_masks import BlockMasks, HiddenPlaces
from mast_ext.augment.checks import check_integer, check_number
from mast_ext.augment.parameters import COLUMN, GROUPS, SHAREABLE
from mast_ext.augment.recipe import AugmentationRecipe

UNUSED, JOINT = -1, 0

AlignedPairs = Literal["joint", "shared"]

_LOCAL = 1 << 20  # streams of local views, whose numbers so depend on no other view's
_CHOICE = 1 << 33  # streams of choices lie above those of views and of repeated crops


@dataclass(frozen=True)
class ViewPlan:
    """Everything that is to be rendered for a batch.

    Attributes:
        rows: Augmentation parameters, ``[V, B, P]`` float32 (columns: `parameters.COLUMNS`), of
            the full-size views, the local ones, and the plain center view.
        pair_subspace: Subspace of every pair of views, ``[V, V, B]`` int64, symmetric, -1 on the
            diagonal and for unused pairs.
        masks: Hidden patches of the full-size views, bool ``[F, B, H, W]``, when the policy masks.
        hidden: Where these patches are.
    """

    rows: Tensor
    pair_subspace: Tensor
    masks: Tensor | None = None
    hidden: HiddenPlaces | None = None


class ViewPolicy(ABC):
    """Turns sample indices into a `ViewPlan`; without state, so any batch can be planned alone.

    Args:
        recipe: What may be done to a view.
        with_center: Append the plain center view (no augmentation, in no pair) as the last view.

    Attributes:
        local_views: How many of the views are local ones; they come behind the full-size views.
        local_recipe: What may be done to a local view, its size included.
    """

    local_views: int = 0
    local_recipe: AugmentationRecipe | None = None

    def __init__(self, recipe: AugmentationRecipe, *, with_center: bool = False) -> None:
        self.recipe = recipe
        self.with_center = with_center

    @property
    def recipes(self) -> tuple[AugmentationRecipe, ...]:
        """The recipe of every view but the center one."""
        return (self.recipe,) * self._augmented_views()

    @property
    def subspaces(self) -> tuple[str, ...]:
        """Names of the subspaces: ``("joint", *recipe.augmentations)``."""
        return ("joint", *self.recipe.augmentations)

    def num_views(self) -> int:
        """Views of every image, the center view included."""
        return self._augmented_views() + self.with_center

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
        views, pairs = self._views(draw)
        if self.with_center:
            views = [*views, sampler.center_rows(sizes)]
        count = len(views)
        pair_subspace = np.full((count, count, len(indices)), UNUSED, np.int64)
        for (i, j), subspace in pairs.items():
            pair_subspace[i, j] = pair_subspace[j, i] = subspace
        rows = torch.from_numpy(np.stack(views))
        plan = ViewPlan(rows, torch.from_numpy(pair_subspace))
        masks = self._masks(draw)
        if masks is None:
            return plan
        return replace(plan, masks=torch.from_numpy(masks), hidden=HiddenPlaces.of(masks))

    def _masks(self, draw: "_Draw") -> NDArray[np.bool_] | None:
        """Hidden patches of the full-size views; None for policies that hide none."""
        return None

    @abstractmethod
    def _augmented_views(self) -> int:
        """Views of every image without the center view."""

    @abstractmethod
    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], "_Pairs"]:
        """Rows of every augmented view, and the subspace(s) of the pairs that are used."""


_Pairs = dict[tuple[int, int], int | NDArray[np.int64]]


class ComposedPolicy(ViewPolicy):
    """``views`` independent views with all augmentations; every pair is a joint pair.

    Args:
        recipe: What may be done to a view.
        views: Number of views, at least 1 (default: ``recipe.views``).
        with_center: Append the plain center view.
    """

    def __init__(
        self, recipe: AugmentationRecipe, *, views: int | None = None, with_center: bool = False
    ) -> None:
        super().__init__(recipe, with_center=with_center)
        self.views = check_integer("views", recipe.views if views is None else views, 1)

    def _augmented_views(self) -> int:
        return self.views

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], _Pairs]:
        views = [draw.composed(view) for view in range(self.views)]
        pairs: _Pairs = {(i, j): JOINT for j in range(self.views) for i in range(j)}
        return views, pairs


class FactorizedPolicy(ViewPolicy):
    """An anchor and, for each augmentation k, a view that differs from it by that one alone.

    The pair (anchor, view k) belongs to subspace k; views of different augmentations are not
    compared with each other.

    Args:
        recipe: What may be done to a view; at least one augmentation must be on.
        joint: Add one independent composed view, paired with the anchor in the joint subspace.
        with_center: Append the plain center view.
    """

    def __init__(
        self, recipe: AugmentationRecipe, *, joint: bool = False, with_center: bool = False
    ) -> None:
        super().__init__(recipe, with_center=with_center)
        _require_augmentations("factorized", recipe)
        self.joint = joint

    def _augmented_views(self) -> int:
        return 1 + len(self.recipe.augmentations) + self.joint

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], _Pairs]:
        anchor = draw.composed(0)
        views, pairs = [anchor], _Pairs()
        for k, name in enumerate(self.recipe.augmentations, start=1):
            view = anchor.copy()
            view[:, GROUPS[name]] = draw.forced(anchor, k)[:, GROUPS[name]]
            views.append(view)
            pairs[0, k] = k
        if self.joint:
            pairs[0, len(views)] = JOINT
            views.append(draw.composed(len(views)))
        return views, pairs


class SampledPolicy(ViewPolicy):
    """An anchor and ``n`` views, each of a kind that is drawn for every image.

    With probability ``joint`` a view is composed independently (joint subspace), else it differs
    from the anchor by one augmentation, drawn uniformly. With ``n = 1`` it costs what two-view
    training costs. Only pairs with the anchor are used.

    Args:
        recipe: What may be done to a view; at least one augmentation must be on if ``joint < 1``.
        n: Views beside the anchor, at least 1.
        joint: Probability of a composed view, in ``[0, 1]``.
        with_center: Append the plain center view.
    """

    def __init__(
        self,
        recipe: AugmentationRecipe,
        *,
        n: int = 1,
        joint: float = 0.5,
        with_center: bool = False,
    ) -> None:
        super().__init__(recipe, with_center=with_center)
        self.n = check_integer("n", n, 1)
        self.joint = check_number("joint", joint, 0, 1, "a probability in [0, 1]")
        if self.joint < 1:
            _require_augmentations("sampled", recipe)

    def _augmented_views(self) -> int:
        return 1 + self.n

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], _Pairs]:
        anchor = draw.composed(0)
        views, pairs = [anchor], _Pairs()
        names = self.recipe.augmentations
        for view in range(1, self.n + 1):
            u = draw.choice(view)
            drawn = 1 + np.floor(u[:, 1] * len(names)).astype(np.int64)
            subspace = np.where(u[:, 0] < self.joint, JOINT, drawn)
            forced = draw.forced(anchor, view)
            rows = np.where((subspace == JOINT)[:, None], draw.composed(view), anchor)
            for k, name in enumerate(names, start=1):
                members = subspace == k
                rows[members, GROUPS[name]] = forced[members, GROUPS[name]]
            views.append(rows)
            pairs[0, view] = subspace
        return views, pairs


class SharedPolicy(ViewPolicy):
    """Two views, drawn independently but for one thing that some images' views have in common.

    With probability ``share`` the views of an image share the parameters of one entry of
    ``shared``, drawn uniformly: what their images have in common then includes what that
    augmentation would have hidden.

    Args:
        recipe: What may be done to a view.
        shared: Names in `parameters.SHAREABLE`, each once; the recipe must vary all of them.
        share: Probability that the views of an image share one of these, in ``[0, 1]``.
        aligned: Probability that two views are crops of one place, flipped alike, in ``[0, 1]``.
            They stay a pair of their subspace: an easier one.
        aligned_pairs: Which pairs may be: those that share one of ``shared`` (``"shared"``), or
            those that do not (``"joint"``).
        aligned_from: The epoch from which any are.
        with_center: Append the plain center view.
    """

    def __init__(
        self,
        recipe: AugmentationRecipe,
        *,
        shared: Sequence[str] = ("hue",),
        share: float = 0.5,
        aligned: float = 0.0,
        aligned_pairs: AlignedPairs = "joint",
        aligned_from: int = 0,
        with_center: bool = False,
    ) -> None:
        super().__init__(recipe, with_center=with_center)
        for name in shared:
            if name not in SHAREABLE:
                raise ValueError(f"shared must name {', '.join(SHAREABLE)}, got {name!r}")
            if not recipe.varies(name):
                raise ValueError(f"shared names {name!r}, which the recipe does not change")
        if not shared or len(set(shared)) < len(shared):
            raise ValueError(f"shared must name different things, at least one, got {shared}")
        self.shared = tuple(shared)
        self.share = check_number("share", share, 0, 1, "a probability in [0, 1]")
        self.aligned = check_number("aligned", aligned, 0, 1, "a probability in [0, 1]")
        if aligned_pairs not in get_args(AlignedPairs):
            raise ValueError(
                f"aligned_pairs must be one of {', '.join(get_args(AlignedPairs))}, "
                f"got {aligned_pairs!r}"
            )
        self.aligned_pairs: AlignedPairs = aligned_pairs
        self.aligned_from = check_integer("aligned_from", aligned_from, 0)

    @property
    def subspaces(self) -> tuple[str, ...]:
        """Names of the subspaces: ``("joint", *shared)``."""
        return ("joint", *self.shared)

    def _augmented_views(self) -> int:
        return 2

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], _Pairs]:
        first, second = draw.composed(0), draw.composed(1)
        jittered = draw.composed(1, jittered=first[:, COLUMN["jitter"]] > 0)
        u = draw.choice(1)
        drawn = 1 + np.floor(u[:, 1] * len(self.shared)).astype(np.int64)
        subspace = np.where(u[:, 0] < self.share, drawn, JOINT)
        may_align = (subspace == JOINT) == (self.aligned_pairs == "joint")
        if draw.epoch < self.aligned_from:
            may_align[:] = False
        aligned = may_align & (draw.choice(2)[:, 0] < self.aligned)
        sharing = [(name, subspace == k) for k, name in enumerate(self.shared, start=1)]
        sharing.append(("geometry", aligned))  # last: jitter's members get other rows
        for name, members in sharing:
            if "jitter" in SHAREABLE[name]:
                second[members] = jittered[members]
            where = np.ix_(members, [COLUMN[column] for column in SHAREABLE[name]])
            second[where] = first[where]
        return [first, second], {(0, 1): subspace}


class MultiCropPolicy(ViewPolicy):
    """Full-size views, and small views of small crops (SwAV, Caron et al. 2020; DINO, 2021).

    All views are independent, and every pair is a joint pair. What a view shows does not depend on
    how many others there are.

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
        super().__init__(recipe, with_center=with_center)
        self.views = check_integer("views", recipe.views if views is None else views, 1)
        self.local_views = check_integer("local_views", local_views, 0)
        check_integer("local_size", local_size, 1)
        local = replace(recipe, size=local_size, crop_scale=local_scale)
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
        full = (self._full[view % len(self._full)] for view in range(self.views))
        return (*full, *((self.local_recipe,) * self.local_views))

    def enlarged(self, views: int, local_views: int) -> "MultiCropPolicy":
        """The same views and further ones.

        A further full-size view has the mask of one of these, the v-th of V that of view ``v % V``:
        so one even and one odd view of two have the same masks whichever they are, and what is
        hidden is known before they are chosen.
        """
        other = copy.copy(self)
        other.views = check_integer("views", views, 1)
        other.local_views = check_integer("local_views", local_views, 0)
        return other

    def _augmented_views(self) -> int:
        return self.views + self.local_views

    def _views(self, draw: "_Draw") -> tuple[list[NDArray[np.float32]], _Pairs]:
        streams = (*range(self.views), *range(_LOCAL, _LOCAL + self.local_views))
        each = zip(self.recipes, streams, strict=True)
        views = [replace(draw, recipe=recipe).composed(stream) for recipe, stream in each]
        pairs: _Pairs = {(i, j): JOINT for j in range(len(views)) for i in range(j)}
        return views, pairs

    def _masks(self, draw: "_Draw") -> NDArray[np.bool_] | None:
        if self.masks is None:
            return None
        drawn = self.masks.draw(draw.seed, draw.epoch, draw.indices, self._masked)
        return drawn[np.arange(self.views) % self._masked]


POLICIES: dict[str, type[ViewPolicy]] = {
    "composed": ComposedPolicy,
    "factorized": FactorizedPolicy,
    "sampled": SampledPolicy,
    "shared": SharedPolicy,
    "multi_crop": MultiCropPolicy,
}
"""Every view policy by its name."""


def make_policy(name: str, recipe: AugmentationRecipe, **options: Any) -> ViewPolicy:
    """Makes the view policy of this name; ``options`` are its keyword arguments.

    Raises:
        ValueError: The name, an option or a value is unknown.
    """
    if name not in POLICIES:
        raise ValueError(f"view policy must be one of {', '.join(POLICIES)}, got {name!r}")
    try:
        return POLICIES[name](recipe, **options)
    except TypeError as error:
        raise ValueError(f"view policy {name!r} does not take these options: {error}") from error


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

    def forced(self, anchor: NDArray[np.float32], view: int) -> NDArray[np.float32]:
        key = (self.seed, self.epoch, self.indices, self.sizes)
        return sampler.forced_rows(self.recipe, anchor, *key, view)

    def choice(self, view: int) -> NDArray[np.float64]:
        """Two uniform numbers per image, apart from those of the view itself: ``[B, 2]``."""
        stream = _CHOICE + view
        return sampler.uniforms(sampler.keys(self.seed, self.epoch, self.indices, stream), 2)


def _require_augmentations(policy: str, recipe: AugmentationRecipe) -> None:
    if not recipe.augmentations:
        raise ValueError(f"policy {policy!r} needs a recipe with an augmentation switched on")
