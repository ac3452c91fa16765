"""An evaluation apart from training: which networks are measured, by what, on which images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mast_ext.data import Source
from mast_ext.methods import Method
from mast_ext.train.config import EvaluateConfig
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.augmentations import MOST_IMAGES
from mast_ext.train.evaluation.evaluate import (
    Row,
    chance,
    evaluate,
    evaluate_augmentations,
    fitting_neighbors,
    merged,
    protocols,
    scored,
)
from mast_ext.train.evaluation.finetune import finetune
from mast_ext.train.evaluation.images import Images, LabeledImages
from mast_ext.train.evaluation.subsets import labeled_share
from mast_ext.train.loop.loader import rendering_workers
from mast_ext.train.networks import require_size
from mast_ext.train.state.restore import Restored

Progress = Callable[[str, int, int], None]
"""Is told what is being trained, how many steps are done, and of how many."""


def measure(
    restored: Restored,
    images: Images,
    config: EvaluateConfig,
    device: torch.device,
    progress: Progress = lambda what, done, steps: None,
) -> tuple[list[Row], list[str]]:
    """Measures a network and, beside it, the same one before training.

    Args:
        restored: The network.
        images: What it is measured on.
        config: What is measured, and how.
        device: Where to compute.
        progress: See `Progress`.

    Returns:
        Rows, and sentences on what was done.

    Raises:
        RunError: Labels or test images are missing that are needed, there are too few labels for
            any fine-tuning, or fine-tuning diverged.
        ValueError: The backbone does not take images of this size.
    """
    kinds, labeled, test = config.measured, images.labeled, images.test
    by_labels = set(kinds) != {"augmentations"}
    if test is None or (labeled is None and by_labels):
        hint = " (--measure augmentations needs no labels)" if by_labels else ""
        raise RunError(f"nothing to evaluate by: {images.why_not}{hint}")
    require_size(restored.backbone, restored.spec, "augment.size", config.augment.size)
    notes: list[str] = []
    shares: list[float] = []
    if labeled is not None and "finetune" in kinds:
        shares, notes = _possible(labeled, config)
    if labeled is not None and "probes" in kinds:
        notes += fitting_neighbors(config.evaluation, len(labeled.train))[1]
    if "augmentations" in kinds:
        notes += _too_few_pairs(images.train, restored.backbone)

    networks: list[tuple[str, nn.Module, Method | None]]
    networks = [(restored.name, restored.backbone, restored.method)]
    if config.reference:
        networks.append((restored.start, restored.untrained, None))
    where: dict[str, Any] = {"device": device, "workers": rendering_workers(config.data, device)}
    rows: list[Row] = []
    for name, backbone, method in networks:
        settings = (config.augment, config.evaluation)
        if labeled is not None and "probes" in kinds:
            rows += evaluate(name, backbone, labeled, *settings, method=method, **where)
        if "augmentations" in kinds:
            splits = (images.train, test)
            rows += evaluate_augmentations(
                name, backbone, *splits, *settings, method=method, **where
            )
        for share in shares:
            assert labeled is not None
            what = f"fine-tuned {100 * share:g}%"
            found = finetune(
                backbone,
                labeled,
                config.augment,
                config.finetune,
                share,
                batch_size=config.evaluation.batch_size,
                keep_gb=config.data.keep_gb,
                progress=partial(progress, f"{name} {what}"),
                **where,
            )
            rows.append(scored(name, "backbone", {what: found.predictions}, labeled.test_labels))
            if backbone is restored.backbone:
                count = f"{found.images} of {len(labeled.train)} training images"
                notes.append(f"{what}: {count}, {found.steps} steps")
    if labeled is not None and (used := protocols(rows)):
        rows.append(chance(labeled, used))
    return merged(rows), notes


def _too_few_pairs(train: Source, backbone: Any) -> list[str]:
    """A sentence, where regressions onto augmentations have fewer examples than features."""
    pairs, features = min(len(train), MOST_IMAGES), 2 * int(backbone.num_features)
    if pairs >= features:
        return []
    return [
        f"R² is not to be relied on: the regression is of {features} features of the backbone (both"
        f" views') and only {pairs} training images"
    ]


def _possible(labeled: LabeledImages, config: EvaluateConfig) -> tuple[list[float], list[str]]:
    """The shares of the labels that hold every class, and sentences on the others.

    Raises:
        RunError: None does.
    """
    shares, notes = [], []
    for share in config.finetune.shares:
        try:
            labeled_share(labeled.train.labels, share, config.finetune.seed)
            shares.append(share)
        except ValueError as error:
            notes.append(f"not fine-tuned: {error}")
    if not shares:
        raise RunError("; ".join(notes))
    return shares, notes
