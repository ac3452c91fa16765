"""Measures what a frozen backbone has learned: k-NN and linear probes of every labeled factor.

Rows are representations (backbone features, the embedding, its subspaces), columns are factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, evaluation_images
from mast_ext.data import Source
from mast_ext.methods import Method
from mast_ext.models import to_channels_last
from mast_ext.train.config import EvaluationConfig
from mast_ext.train.evaluation.probes import knn_accuracy, linear_accuracy, majority_accuracy
from mast_ext.train.evaluation.ranks import rankme

LINEAR = "linear probe"


@dataclass(frozen=True)
class Row:
    """Accuracies of one representation.

    Attributes:
        model: What was trained: a method's name, ``untrained`` or ``starting weights``, or
            ``chance``.
        part: Which of its representations.
        scores: Accuracy in [0, 1] by protocol and factor.
        rankme: Its RankMe on the training images (see `mast_ext.train.evaluation.ranks`), with
            four digits behind the point; None where it is not measured, as of subspaces.
        dimensions: How many dimensions it has, where its rank is measured.
    """

    model: str
    part: str
    scores: Mapping[str, Mapping[str, float]]
    rankme: float | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Features:
    """Representations of the images of one source, in its order.

    Attributes:
        backbone: Pooled features, ``[N, F]`` float32.
        embedding: The projector's output, ``[N, D]`` float32, when there is a projector.
    """

    backbone: Tensor
    embedding: Tensor | None = None


@dataclass(frozen=True)
class LabeledImages:
    """Training and test images with the same labeled factors.

    Attributes:
        train: Images that probes learn from.
        test: Images that they are judged by.
    """

    train: Source
    test: Source
    train_labels: dict[str, Tensor] = field(init=False)
    test_labels: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        for split, source in (("train", self.train), ("test", self.test)):
            labels = {name: torch.from_numpy(ids).long() for name, ids in source.labels.items()}
            object.__setattr__(self, f"{split}_labels", labels)


@torch.inference_mode()
def extract_features(
    backbone: nn.Module,
    source: Source,
    recipe: AugmentationRecipe,
    *,
    batch_size: int = 512,
    method: Method | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of the plain center views of all images, on the CPU.

    Args:
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``; put into evaluation mode.
        source: The images.
        recipe: Gives the views' size and normalization.
        batch_size: Images per step.
        method: Its projector gives the embedding, too.
        device: Where to compute.
    """
    backbone = to_channels_last(backbone.to(device)).eval()
    if method is not None:
        method = method.to(device).eval()
    features, embeddings = [], []
    for images, _ in evaluation_images(source, recipe.size, recipe.mean, recipe.std, batch_size):
        pooled = backbone(images.to(device, memory_format=torch.channels_last))
        features.append(pooled.float().cpu())
        if method is not None:
            embeddings.append(method.embed(pooled).float().cpu())
    return Features(torch.cat(features), torch.cat(embeddings) if embeddings else None)


def evaluate(
    name: str,
    backbone: nn.Module,
    images: LabeledImages,
    recipe: AugmentationRecipe,
    config: EvaluationConfig,
    *,
    method: Method | None = None,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Rows for the backbone's features and, given a method, its embedding and its subspaces.

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
        )
        for source in (images.train, images.test)
    )
    labels = (images.train_labels, images.test_labels)
    rows = [_row(name, "backbone", train.backbone, test.backbone, labels, config)]
    if method is not None and train.embedding is not None and test.embedding is not None:
        rows.append(_row(name, "embedding", train.embedding, test.embedding, labels, config))
        subspaces = method.subspaces()
        for subspace, dims in ({} if subspaces is None else subspaces.dimensions()).items():
            scores = linear_accuracy(train.embedding[:, dims], test.embedding[:, dims], *labels)
            rows.append(Row(name, f"subspace {subspace}", {LINEAR: scores}))
    return rows


def chance(images: LabeledImages) -> Row:
    """What saying the most frequent class gives."""
    scores = majority_accuracy(images.train_labels, images.test_labels)
    return Row("chance", "", {LINEAR: scores})


def protocols(rows: Sequence[Row]) -> list[str]:
    """The protocols of all rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _row(
    model: str,
    part: str,
    train: Tensor,
    test: Tensor,
    labels: tuple[dict[str, Tensor], dict[str, Tensor]],
    config: EvaluationConfig,
) -> Row:
    knn = knn_accuracy(
        train,
        test,
        *labels,
        neighbors=config.neighbors,
        temperature=config.temperature,
    )
    scores = {f"k-NN {k}": by_factor for k, by_factor in knn.items()}
    scores = {LINEAR: linear_accuracy(train, test, *labels), **scores}
    return Row(model, part, scores, round(rankme(train), 4), train.shape[1])
