"""Measures how trained networks see the views that they were trained on.

What hard view selection chooses, and how uncertain a method that learns it is of pairs of views.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from mast_ext.augment import AugmentationParameters, AugmentationRecipe, ViewBatch, ViewLoader
from mast_ext.augment.parameters import COLUMN
from mast_ext.train.loop.module import PretrainModule

IMAGES = 8
"""Images whose views are shown."""

SIDE = 96
"""Pixels on a side of a view that is shown, at most."""

DARK = 0.25
"""Views that are nowhere as bright as this are brightened to be shown."""

BATCHES = 4
"""Batches whose pairs' uncertainty is measured."""


@dataclass(frozen=True)
class HardViewExamples:
    """Views of a few images, and which two of each were chosen.

    Attributes:
        images: ``[N, V, S, S, 3]`` uint8.
        chosen: ``[N, V]`` bool.
        crop_iou: ``[N]`` float32: how much of the image the crops of the chosen two share (IoU).
    """

    images: NDArray[np.uint8]
    chosen: NDArray[np.bool_]
    crop_iou: NDArray[np.float32]


@dataclass(frozen=True)
class PairUncertainty:
    """Uncertainty of pairs of views, and how far apart the views are made. All ``[N]`` float32.

    Attributes:
        log_variance: The logarithm of the variance that is expected of the pair.
        crop_iou: How much of the image both crops share.
        color_distance: Euclidean distance of the changes of color, each in its standard deviations.
    """

    log_variance: NDArray[np.float32]
    crop_iou: NDArray[np.float32]
    color_distance: NDArray[np.float32]


def hard_view_examples(module: PretrainModule, loader: ViewLoader) -> HardViewExamples | None:
    """The choice among the views of the first images of an epoch.

    Args:
        module: What was trained. Its networks are in evaluation mode afterwards.
        loader: Its views, from the first epoch's beginning.

    Returns:
        None for a run without hard views.
    """
    if module.hard_views is None:
        return None
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    device = next(module.backbone.parameters()).device
    batch = next(iter(loader)).to(device)
    module.eval()
    with torch.no_grad(), torch.random.fork_rng():
        chosen, _ = module.hard_views(batch, module.backbone, module.teacher, select=True)
    policy = module.hard_views.policy
    views = len(batch.images) - policy.with_center
    return chosen_views(batch, chosen, policy.recipe, views=views)


def chosen_views(
    batch: ViewBatch, chosen: ViewBatch, recipe: AugmentationRecipe, *, views: int
) -> HardViewExamples:
    """The first ``views`` views of a batch's first images; chosen are those in ``chosen``."""
    images = batch.images[:views, :IMAGES].float().cpu()
    pixels = shown((images * _channels(recipe.std) + _channels(recipe.mean)).clamp(0, 1))
    if recipe.size > SIDE:
        small = F.interpolate(
            pixels.flatten(0, 1), size=(SIDE, SIDE), mode="bilinear", antialias=True
        )
        pixels = small.unflatten(0, pixels.shape[:2])
    rows, pair = batch.parameters[:views, :IMAGES], chosen.parameters[:2, :IMAGES]
    equal = (rows[:, None] == pair[None]).all(-1)  # [V, 2, N]: a view is where its row is
    # Views with equal rows look alike: take the first that is not taken yet.
    first = equal[:, 0].int().argmax(0)
    taken = one_hot(first, views).T.bool()
    second = (equal[:, 1] & ~taken).int().argmax(0)
    return HardViewExamples(
        (255 * pixels).round().byte().permute(1, 0, 3, 4, 2).numpy(),
        (taken | one_hot(second, views).T.bool()).T.cpu().numpy(),
        AugmentationParameters(pair.cpu()).crop_iou(0, 1).numpy(),
    )


def pair_uncertainty(module: PretrainModule, loader: ViewLoader) -> PairUncertainty | None:
    """Uncertainty of the first pairs of an epoch: of every image's first two views.

    Args:
        module: What was trained. Its networks are in evaluation mode afterwards.
        loader: Its views, from the first epoch's beginning.

    Returns:
        None for a run that has learned no uncertainty.
    """
    if not module.method.learns_uncertainty:
        return None
    module.eval()
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    device = next(module.backbone.parameters()).device
    found, rows = [], []
    with torch.no_grad():
        for batch in islice(loader, BATCHES):
            log_variance = module.method.pair_uncertainty(batch.to(device))
            if log_variance is None:
                return None
            found.append(log_variance.cpu())
            rows.append(batch.parameters[:2].cpu())
    parameters = AugmentationParameters(torch.cat(rows, dim=1))
    changes = slice(COLUMN["brightness"], COLUMN["hue"] + 1)  # without jitter's gate
    first, second = parameters.standardized(*loader.policy.recipes[:1])[..., changes]
    return PairUncertainty(
        torch.cat(found).numpy(),
        parameters.crop_iou(0, 1).numpy(),
        (first - second).norm(dim=-1).numpy(),
    )


def shown(pixels: Tensor) -> Tensor:
    """Pixels ``[..., C, S, S]`` in [0, 1] as RGB ``[..., 3, S, S]`` for people to look at.

    Of more than three channels the first three are red, green and blue; one or two are gray. What
    is not RGB, or is as dark as images are that use 12 of 16 bits, is brightened: the brightest
    pixel of a channel becomes white.
    """
    channels = pixels.shape[-3]
    colors = pixels[..., :3, :, :] if channels >= 3 else pixels[..., :1, :, :]
    if channels != 3 or colors.max() < DARK:
        others = [axis for axis in range(colors.ndim) if axis != colors.ndim - 3]
        colors = colors / colors.amax(others, keepdim=True).clamp(min=1e-6)
    return colors.expand(*colors.shape[:-3], 3, *colors.shape[-2:])


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]
