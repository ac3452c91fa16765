"""Hard view selection for methods that train on crops of two sizes: DINO, iBOT and LeJEPA.

Of G full-size and many local views of an image it keeps an even full-size view, an odd one, and as
many local ones as the method trains on: those tuples on which training would lose most, found
exactly (see `mast_ext.functional.select_hard_crops`). Ferreira et al., "Beyond Random
Augmentations: Pretraining with Hard Views" (ICLR 2025).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.augment import AugmentationRecipe, MultiCropPolicy, ViewBatch
from mast_ext.checks import OptionError
from mast_ext.methods.encoding import encode
from mast_ext.methods.hard_views import (
    HardSelection,
    HardViewOptions,
    HardViews,
    nothing_selected,
    scaled_down,
)
from mast_ext.methods.method import Method


class HardCrops(HardSelection):
    """Every image's hardest tuple of views, by a method's `Method.crop_losses`.

    The margin in the logs is the mean over the terms of a tuple's loss.

    Args:
        method: What is trained, EquiMod around it included.
        recipe: The augmentations.
        options: See `HardViewOptions`; ``views`` at least 2.

    Raises:
        ValueError: The method does not train on two full-size views, or an option does not fit.
    """

    def __init__(
        self, method: Method, recipe: AugmentationRecipe, options: HardViewOptions
    ) -> None:
        plain = method.policy(recipe)
        if not isinstance(plain, MultiCropPolicy) or plain.views != 2:
            raise OptionError(
                f"hard_views needs two full-size views to train on: augment.views of {method.name}"
                f" must be 2, got {recipe.views}"
            )
        for name, fits in (
            ("scorer", options.scorer == "student"),
            ("candidates", options.candidates in ("all", "even_odd")),
            ("strategy", options.strategy == "argmax"),
            ("fraction", options.fraction == 1),
        ):
            if not fits:
                raise OptionError(
                    f"hard_views.{name}: {method.name} takes the hardest tuple of every image, by"
                    f" all networks together; got {getattr(options, name)!r}"
                )
        if options.size is not None and method.hidden_token() is not None:
            raise OptionError(
                f"hard_views.size: {method.name} hides patches of views of full size, which"
                " smaller views do not have"
            )
        options.require_size(recipe)
        self.locals = plain.local_views
        candidates = options.local_views or self.locals
        if candidates < self.locals:
            raise OptionError(
                f"hard_views.local_views must be at least the {self.locals} that {method.name}"
                f" trains on, got {candidates}"
            )
        appearances = 2 if options.by_geometry(plain) else None
        self.policy: MultiCropPolicy = plain.enlarged(
            options.views, candidates, appearances=appearances
        )
        self.method, self.options = method, options
        if options.size is not None:
            local = round(self.policy.local_recipe.size * options.size / recipe.size)
            self.sizes = (options.size, *([max(1, local)] if candidates else []))

    def forwards(self, steps: int, steps_per_epoch: int) -> float:
        selecting = self.options.selections(steps, steps_per_epoch)
        trained = self.method.forwards(2 + self.locals + self.policy.with_center)
        networks = 1 if self.method.teacher() is None else 2
        scored = networks * self.policy.views + self.policy.local_views * self.method.local_share
        return steps * trained + selecting * scored

    @torch.no_grad()
    def __call__(
        self, batch: ViewBatch, backbone: nn.Module, teacher: nn.Module | None, *, select: bool
    ) -> tuple[ViewBatch, dict[str, Tensor]]:
        if not select:
            first = self._first_views(batch.index.device)
            index = first[:, None].expand(-1, len(batch.index)).contiguous()
            return self._chosen(batch, index), nothing_selected(index.device)
        losses = self._losses(batch, backbone, teacher)
        index, score = functional.select_hard_crops(
            losses, num_locals=self.locals, limit=self.options.limit
        )
        full_size = self._full_size_pairs(losses.device)
        margin = (score - self._mean_score(losses, full_size)) / (2 + 2 * self.locals)
        chosen = functional.gather_views(batch.parameters, index[:2])
        choices = batch.parameters[full_size].flatten(1, 2)
        return self._chosen(batch, index), self._logs(margin, chosen, choices)

    def _first_views(self, device: torch.device) -> Tensor:
        """The views of plain training, ``[2 + L]``; made on a GPU, not copied to it."""
        full = self.policy.views
        pair = torch.arange(2, device=device)
        return torch.cat((pair, torch.arange(full, full + self.locals, device=device)))

    def _losses(self, batch: ViewBatch, backbone: nn.Module, teacher: nn.Module | None) -> Tensor:
        """``[G, G + L, B]``, of views at the size of selection."""
        images, local = batch.images[: self.policy.views], batch.local_images
        if self.sizes:
            images = scaled_down(images, self.sizes[0])
            local = None if local is None else scaled_down(local, self.sizes[1])
        shown = replace(batch, images=images, local_images=local)
        with self._selecting(batch.images.device.type, backbone, self.method, teacher):
            encoded = encode(
                self.method, backbone, teacher, shown, taught=slice(None), with_center=False
            )
            return self.method.crop_losses(encoded)[: self.policy.views]

    def _chosen(self, batch: ViewBatch, index: Tensor) -> ViewBatch:
        """Views ``index [2 + L, B]`` of every image with all that is theirs, and the plain one."""
        full, center = self.policy.views, int(self.policy.with_center)
        pair, last = index[:2], torch.full_like(index[:center], len(batch.parameters) - 1)
        local = None
        if batch.local_images is not None and self.locals:
            local = functional.gather_views(batch.local_images, index[2:] - full)
        # All even views of an image have one mask, and all odd ones: see `MultiCropPolicy`.
        masks = None if batch.masks is None else batch.masks[:2]
        hidden = None if batch.hidden is None else batch.hidden.of_first_views(2)
        shown = torch.cat((pair, torch.full_like(last, len(batch.images) - 1)))
        return replace(
            batch,
            images=functional.gather_views(batch.images, shown),
            local_images=local,
            parameters=functional.gather_views(batch.parameters, torch.cat((index, last))),
            masks=masks,
            hidden=hidden,
        )

    def _full_size_pairs(self, device: torch.device) -> Tensor:
        """Every even full-size view with every odd one, ``[2, N]``."""
        even = torch.arange(0, self.policy.views, 2, device=device)
        odd = torch.arange(1, self.policy.views, 2, device=device)
        return torch.cartesian_prod(even, odd).T

    def _mean_score(self, losses: Tensor, full_size: Tensor) -> Tensor:
        """Mean over all tuples of what `functional.select_hard_crops` maximizes, ``[B]``."""
        a, b = full_size
        mean = (losses[a, b] + losses[b, a]).mean(0)
        if self.locals:
            local = losses[:, self.policy.views :].mean(1)
            mean += self.locals * (local[a] + local[b]).mean(0)
        return mean


def hard_selection(
    method: Method, recipe: AugmentationRecipe, options: HardViewOptions
) -> HardSelection:
    """The selection that fits a method: `HardCrops` for one of several crops, else `HardViews`.

    Raises:
        ValueError: An option does not fit the method.
    """
    return (HardCrops if method.multi_crop else HardViews)(method, recipe, options)
