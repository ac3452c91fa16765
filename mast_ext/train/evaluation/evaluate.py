"""Measures what a backbone has learned.

Rows are representations (backbone features, the embedding, its subspaces), columns are factors that
images are labeled with, or parameters of augmentations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import Source
from mast_ext.methods import Method
from mast_ext.train.config import EvaluationConfig
from mast_ext.train.evaluation.augmentations import SEEDS, explained, view_pairs
from mast_ext.train.evaluation.features import Features, extract_features
from mast_ext.train.evaluation.images import LabeledImages
from mast_ext.train.evaluation.probes import (
    knn_predictions,
    linear_predictions,
    majority_predictions,
)
from mast_ext.train.evaluation.ranks import rankme
from mast_ext.train.evaluation.scores import accuracy, mean_class_accuracy

LINEAR = "linear probe"

Scores = Mapping[str, Mapping[str, float]]
"""By protocol and factor."""


@dataclass(frozen=True)
class Row:
    """What was measured of one representation.

    Attributes:
        model: What was trained: a method's name, ``untrained`` or ``starting weights``, or
            ``chance``.
        part: Which of its representations.
        scores: Accuracy in [0, 1] by protocol and factor.
        rankme: Its RankMe on the training images (see `mast_ext.train.evaluation.ranks`), with
            four digits behind the point; None where it is not measured, as of subspaces.
        dimensions: How many dimensions it has, where its rank is measured.
        mean_class: Mean accuracy of classes in [0, 1] by protocol and factor.
        augmentations: R² of the differences of views by augmentation parameter, see `explained`.
    """

    model: str
    part: str
    scores: Scores = field(default_factory=dict)
    rankme: float | None = None
    dimensions: int | None = None
    mean_class: Scores = field(default_factory=dict)
    augmentations: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    name: str,
    backbone: nn.Module,
    images: LabeledImages,
    recipe: AugmentationRecipe,
    config: EvaluationConfig,
    *,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> list[Row]:
    """Probes: rows for the backbone's features and, given a method, its embedding and subspaces.

    A subspace is probed on its dimensions alone (`Subspaces.dimensions`). Scaling all dimensions by
    a mask instead would tell little: a linear probe undoes any scale that is not zero.
    """
    train, test = (
        extract_features(
            backbone,
            source,
            recipe,
            batch_size=config.batch_size,
            method=method,
            device=device,
            workers=workers,
        )
        for source in (images.train, images.test)
    )
    fitting = fitting_neighbors(config, len(images.train))[0]
    rows = []
    for part, (x, x_test) in _parts(method, train, test).items():
        predictions = {LINEAR: linear_predictions(x, x_test, images.train_labels)}
        rank: dict = {}
        if not part.startswith("subspace"):
            nearest = (
                {}
                if not fitting
                else knn_predictions(
                    x,
                    x_test,
                    images.train_labels,
                    neighbors=fitting,
                    temperature=config.temperature,
                )
            )
            predictions |= {f"k-NN {k}": found for k, found in nearest.items()}
            rank = {"rankme": round(rankme(x), 4), "dimensions": x.shape[1]}
        rows.append(replace(scored(name, part, predictions, images.test_labels), **rank))
    return rows


def fitting_neighbors(config: EvaluationConfig, images: int) -> tuple[list[int], list[str]]:
    """The numbers of neighbors that training images suffice for, and a sentence on the others."""
    fitting = [count for count in config.counts if count <= images]
    others = [f"k-NN {count}" for count in config.counts if count > images]
    note = f"{', '.join(others)} left out: there are only {images} training images"
    return fitting, [note] if others else []


def evaluate_augmentations(
    name: str,
    backbone: nn.Module,
    train: Source,
    test: Source,
    recipe: AugmentationRecipe,
    config: EvaluationConfig,
    *,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> list[Row]:
    """What representations know of how views were made: rows as `evaluate` has them."""
    pairs, pairs_test = (
        view_pairs(
            backbone,
            source,
            recipe,
            seed=seed,
            batch_size=config.batch_size,
            method=method,
            device=device,
            workers=workers,
        )
        for source, seed in zip((train, test), SEEDS, strict=True)
    )
    targets = (pairs.differences, pairs_test.differences)
    found = (pairs.first, pairs.second, pairs_test.first, pairs_test.second)
    return [
        Row(name, part, augmentations=explained((a, b), (a_test, b_test), *targets))
        for part, (a, b, a_test, b_test) in _parts(method, *found).items()
    ]


def chance(images: LabeledImages, protocols: Sequence[str] = (LINEAR,)) -> Row:
    """What saying the most frequent class gives, by whatever protocol."""
    said = majority_predictions(images.train_labels, len(images.test))
    return scored("chance", "", dict.fromkeys(protocols, said), images.test_labels)


def scored(
    model: str,
    part: str,
    predictions: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, Tensor],
) -> Row:
    """A row of accuracies.

    Args:
        model: See `Row`.
        part: Likewise.
        predictions: Class ids of the test images, ``[M]``, by protocol and factor.
        labels: The true ones by factor.
    """
    both = (
        {
            protocol: {factor: measure(said[factor], labels[factor]) for factor in said}
            for protocol, said in predictions.items()
        }
        for measure in (accuracy, mean_class_accuracy)
    )
    scores, mean_class = both
    return Row(model, part, scores, mean_class=mean_class)


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for each representation, with all that several rows say of it."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = found.setdefault((row.model, row.part), row)
        if before is not row:
            found[row.model, row.part] = Row(
                row.model,
                row.part,
                {**before.scores, **row.scores},
                row.rankme if before.rankme is None else before.rankme,
                row.dimensions if before.dimensions is None else before.dimensions,
                {**before.mean_class, **row.mean_class},
                {**before.augmentations, **row.augmentations},
            )
    return list(found.values())


def protocols(rows: Sequence[Row]) -> list[str]:
    """The protocols of all rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _parts(method: Method | None, *found: Features) -> dict[str, tuple[Tensor, ...]]:
    """The representations by name, each of all that was found, in its order."""
    parts = {"backbone": tuple(each.backbone for each in found)}
    embeddings = [each.embedding for each in found if each.embedding is not None]
    if method is None or len(embeddings) < len(found):
        return parts
    parts["embedding"] = tuple(embeddings)
    subspaces = method.subspaces()
    for name, dims in ({} if subspaces is None else subspaces.dimensions()).items():
        parts[f"subspace {name}"] = tuple(each[:, dims] for each in embeddings)
    return parts
