"""Classifiers on frozen features: weighted k-NN and a ridge linear probe. Both deterministic.

Accuracies are fractions in [0, 1]. Labels of several factors are probed together, since what costs
(neighbors, an eigendecomposition) does not depend on the labels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from mast_ext.train.evaluation.ridge import ridge_predictions
from mast_ext.train.evaluation.scores import accuracy

Labels = Mapping[str, Tensor]
"""Class ids of every factor, ``[N]`` int64."""


def knn_predictions(
    train: Tensor,
    test: Tensor,
    train_labels: Labels,
    *,
    neighbors: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, dict[str, Tensor]]:
    """Classes by k-NN by cosine, neighbors weighted ``exp(cos / temperature)``.

    The protocol of Wu et al. 2018 (instance discrimination), without its memory bank.

    Args:
        train: Features of the labeled images, ``[N, F]``.
        test: Features of the images to classify, ``[M, F]``.
        train_labels: Class ids of every factor, ``[N]`` int64.
        neighbors: Numbers of neighbors; more than ``N`` means all ``N``.
        temperature: Temperature of the weights.
        chunk: Test images per step; bounds the memory to ``chunk * N`` numbers.

    Returns:
        Class ids ``[M]`` by number of neighbors and factor.
    """
    train, test = normalize(train.float(), dim=1), normalize(test.float(), dim=1)
    largest = min(max(neighbors), len(train))
    compact = _compact(train_labels)
    found: dict[int, dict[str, list[Tensor]]] = {
        k: {factor: [] for factor in train_labels} for k in neighbors
    }
    for part in test.split(chunk):
        similarity, nearest = (part @ train.T).topk(largest)
        # Relative to the nearest, whose weight must not vanish at any temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        for factor, (classes, labels) in compact.items():
            said = labels[nearest]
            none = weights.new_zeros(len(said), len(classes))
            for k in neighbors:
                votes = none.scatter_add(1, said[:, :k], weights[:, :k])
                found[k][factor].append(classes[votes.argmax(1)])
    return {k: {f: torch.cat(parts) for f, parts in each.items()} for k, each in found.items()}


def linear_predictions(train: Tensor, test: Tensor, train_labels: Labels) -> dict[str, Tensor]:
    """Classes by a linear classifier: ridge regression onto one-hot classes, in closed form.

    Args:
        train: Features of the training images, ``[N, F]``, at least 5.
        test: Features of the test images, ``[M, F]``.
        train_labels: Class ids of every factor, ``[N]`` int64.

    Returns:
        Class ids ``[M]`` by factor.

    Raises:
        ValueError: Fewer than 5 training images.
    """
    compact = _compact(train_labels)

    def score(factor: str, predicted: Tensor, rows: Tensor) -> float:
        return accuracy(predicted.argmax(1), compact[factor][1][rows])

    targets = {name: one_hot(labels).double() for name, (_, labels) in compact.items()}
    found = ridge_predictions(train, test, targets, score)
    return {name: compact[name][0][predicted.argmax(1)] for name, predicted in found.items()}


def _compact(labels: Labels) -> dict[str, tuple[Tensor, Tensor]]:
    """By factor: the ids that there are, and positions among them, ``[N]``.

    What is as wide as the number of classes then does not depend on how large their ids are.
    """
    return {name: ids.unique(return_inverse=True) for name, ids in labels.items()}


def majority_predictions(train_labels: Labels, count: int) -> dict[str, Tensor]:
    """The most frequent training class for each of ``count`` images, which is chance."""
    return {name: labels.bincount().argmax().repeat(count) for name, labels in train_labels.items()}


def knn_accuracy(
    train: Tensor,
    test: Tensor,
    train_labels: Labels,
    test_labels: Labels,
    *,
    neighbors: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[int, dict[str, float]]:
    """Accuracy of `knn_predictions` by number of neighbors and factor."""
    found = knn_predictions(train, test, train_labels, neighbors=neighbors, temperature=temperature)
    return {k: accuracies(predicted, test_labels) for k, predicted in found.items()}


def linear_accuracy(
    train: Tensor, test: Tensor, train_labels: Labels, test_labels: Labels
) -> dict[str, float]:
    """Accuracy of `linear_predictions` by factor."""
    return accuracies(linear_predictions(train, test, train_labels), test_labels)


def accuracies(predicted: Labels, labels: Labels) -> dict[str, float]:
    """Accuracy by factor."""
    return {name: accuracy(predicted[name], labels[name]) for name in predicted}
