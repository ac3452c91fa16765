"""What features know of augmentations: how two views of an image were made differently.

Invariant features cannot tell, equivariant ones can. Needs no labels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mast_ext.augment import (
    AugmentationParameters,
    AugmentationRecipe,
    ComposedPolicy,
    ViewBatch,
    build_loader,
)
from mast_ext.data import Source
from mast_ext.data.splits import spread
from mast_ext.methods import Method
from mast_ext.train.evaluation.features import Features, embed_all
from mast_ext.train.evaluation.ridge import ridge_predictions
from mast_ext.train.evaluation.scores import r2
from mast_ext.train.evaluation.subsets import Subset

SEEDS = 99, 100
"""Of the views that are fitted on and of those that are told, which are the same for every network.
They differ: parameters follow from the seed and an image's position, and would be the same ones."""

MOST_IMAGES = 20_000
"""Images of a split, evenly spread: features of pairs are twice as wide as those of images."""

PLACE = ("y", "x", "h", "w", "flip")
"""Parameters that say what part of the image a view shows; all others change its colors."""

# Name in tables, column of the parameters, and the augmentation that varies it. Of color jitter
# and blur their strengths are taken, which are neutral in views that were left alone.
_REGRESSED = (
    *((name, name, "flip" if name == "flip" else "crop") for name in PLACE),
    *((name, name, name) for name in ("brightness", "contrast", "saturation", "hue")),
    ("grayscale", "grayscale", "grayscale"),
    ("blur", "sigma", "blur"),
    ("solarize", "solarize", "solarize"),
)


@dataclass(frozen=True)
class ViewPairs:
    """Two views of every image.

    Attributes:
        first: Representations of one view of each.
        second: Of the other.
        differences: By how much each augmentation parameter differs between them, ``[N]`` float64.
    """

    first: Features
    second: Features
    differences: dict[str, Tensor]


def view_pairs(
    backbone: nn.Module,
    source: Source,
    recipe: AugmentationRecipe,
    *,
    seed: int,
    batch_size: int = 512,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> ViewPairs:
    """Representations of two augmented views of the images of a source, of 20,000 at most.

    Args:
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``; put into evaluation mode.
        source: The images.
        recipe: What is done to views.
        seed: Of the views.
        batch_size: Images per step.
        method: Its projector gives embeddings, too.
        device: Where to compute.
        workers: Threads that render ahead.
    """
    loader = build_loader(
        Subset(source, spread(len(source), MOST_IMAGES)),
        ComposedPolicy(recipe, views=2),
        batch_size=max(1, batch_size // 2),
        seed=seed,
        shuffle=False,
        drop_last=False,
        workers=workers,
        keep_gb=0.0,  # each is seen once
    )
    rows: list[Tensor] = []

    def views() -> Iterator[Tensor]:
        for batch in loader.on(device):
            rows.append(batch.parameters.cpu())
            yield _both(batch)

    found = embed_all(backbone, views(), method, device)
    sizes = [part.shape[1] for part in rows]
    first, second = (_every_other(found, sizes, view) for view in (0, 1))
    return ViewPairs(first, second, differences(torch.cat(rows, dim=1), recipe))


def differences(rows: Tensor, recipe: AugmentationRecipe) -> dict[str, Tensor]:
    """By how much the parameters of two views differ that the recipe varies.

    Args:
        rows: Augmentation parameters, ``[2, N, P]`` float32.
        recipe: What the views were made with.

    Returns:
        First view minus second, ``[N]`` float64, by parameter: ``y``, ``x``, ``h`` and ``w`` of the
        crop relative to the image, ``flip``, factors of ``brightness``, ``contrast`` and
        ``saturation``, ``hue``, ``grayscale``, ``blur`` (its standard deviation), ``solarize``. Of
        the hue, which is an angle, the sine of the difference.
    """
    parameters, found = AugmentationParameters(rows), {}
    for name, column, augmentation in _REGRESSED:
        if recipe.varies(augmentation):
            first, second = parameters.column(column).double()
            difference = first - second
            found[name] = (2 * math.pi * difference).sin() if name == "hue" else difference
    return found


def explained(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    train_differences: dict[str, Tensor],
    test_differences: dict[str, Tensor],
) -> dict[str, float]:
    """R² of ridge regressions from both views' features to the differences of parameters.

    Args:
        train: Features of the views of training images, each ``[N, F]``, at least 5.
        test: Of test images, each ``[M, F]``.
        train_differences: What `differences` gives, each ``[N]``.
        test_differences: Likewise, ``[M]``.

    Returns:
        By parameter, on the test images; 1 is exact, 0 no better than their mean, see `r2`.
    """

    def score(name: str, predicted: Tensor, rows: Tensor) -> float:
        return r2(predicted[:, 0], train_differences[name][rows])

    targets = {name: values[:, None] for name, values in train_differences.items()}
    found = ridge_predictions(torch.cat(train, dim=1), torch.cat(test, dim=1), targets, score)
    return {name: r2(each[:, 0], test_differences[name]) for name, each in found.items()}


def _both(batch: ViewBatch) -> Tensor:
    """Two views ``[2, B, C, S, S]`` as one batch ``[2 B, C, S, S]``."""
    return batch.images.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _every_other(found: Features, sizes: Sequence[int], view: int) -> Features:
    """One view's part of features whose batches held all first views, then all second ones."""

    def part(rows: Tensor) -> Tensor:
        return torch.cat([both.chunk(2)[view] for both in rows.split([2 * n for n in sizes])])

    return Features(
        part(found.backbone), None if found.embedding is None else part(found.embedding)
    )
