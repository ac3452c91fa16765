"""Classifiers on frozen features: weighted k-NN and a ridge linear probe. Both deterministic.

Accuracies are fractions in [0, 1]. Labels of several factors are probed together, since what costs
(neighbors, an eigendecomposition) does not depend on the labels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 3))
"""Ridge penalties that are tried, in units of the Gram matrix's mean eigenvalue."""

FEWEST_IMAGES = 5
"""Training images that a linear probe needs: each fifth one chooses the penalty."""


def knn_accuracy(
    train: Tensor,
    test: Tensor,
    train_labels: Mapping[str, Tensor],
    test_labels: Mapping[str, Tensor],
    *,
    neighbors: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, dict[str, float]]:
    """Accuracy of k-NN by cosine, neighbors weighted ``exp(cos / temperature)``.

    The protocol of Wu et al. 2018 (instance discrimination), without its memory bank.

    Args:
        train: Features of the labeled images, ``[N, F]``.
        test: Features of the images to classify, ``[M, F]``.
        train_labels: Class ids of every factor, ``[N]`` int64.
        test_labels: Class ids of every factor, ``[M]`` int64.
        neighbors: Numbers of neighbors; more than ``N`` means all ``N``.
        temperature: Temperature of the weights.
        chunk: Test images per step; bounds the memory to ``chunk * N`` numbers.

    Returns:
        Accuracy by number of neighbors and factor.
    """
    train, test = normalize(train.float(), dim=1), normalize(test.float(), dim=1)
    largest = min(max(neighbors), len(train))
    right = {k: dict.fromkeys(train_labels, 0) for k in neighbors}
    for start in range(0, len(test), chunk):
        similarity, nearest = (test[start : start + chunk] @ train.T).topk(largest)
        weights = ((similarity - 1) / temperature).exp()
        for factor, labels in train_labels.items():
            truth, said = test_labels[factor][start : start + chunk], labels[nearest]
            none = weights.new_zeros(len(said), int(labels.max()) + 1)
            for k in neighbors:
                votes = none.scatter_add(1, said[:, :k], weights[:, :k])
                right[k][factor] += int((votes.argmax(1) == truth).sum())
    return {k: {f: n / len(test) for f, n in counts.items()} for k, counts in right.items()}


def linear_accuracy(
    train: Tensor,
    test: Tensor,
    train_labels: Mapping[str, Tensor],
    test_labels: Mapping[str, Tensor],
) -> dict[str, float]:
    """Accuracy of a linear classifier: ridge regression onto one-hot classes, in closed form.

    Features are standardized. The penalty is chosen for every factor on each fifth training image,
    then all of them are used.

    Args:
        train: Features of the training images, ``[N, F]``, at least 5.
        test: Features of the test images, ``[M, F]``.
        train_labels: Class ids of every factor, ``[N]`` int64.
        test_labels: Class ids of every factor, ``[M]`` int64.

    Returns:
        Accuracy by factor.

    Raises:
        ValueError: Fewer than 5 training images.
    """
    if len(train) < FEWEST_IMAGES:
        raise ValueError(f"a linear probe needs {FEWEST_IMAGES} training images, got {len(train)}")
    mean, std = train.double().mean(0), train.double().std(0)
    scale = torch.where(std > 1e-9, 1 / std, torch.zeros_like(std))
    x, x_test = ((part.double() - mean) * scale for part in (train, test))
    targets = {name: one_hot(labels).double() for name, labels in train_labels.items()}
    held_out = torch.arange(len(x)) % 5 == 4

    chosen, best = dict.fromkeys(targets, STRENGTHS[0]), dict.fromkeys(targets, -1.0)
    ridge = _Ridge(x[~held_out])
    for name, target in targets.items():
        ridge.fit(target[~held_out])
        for strength in STRENGTHS:
            predicted = ridge.predict(x[held_out], strength)
            score = _accuracy(predicted, train_labels[name][held_out])
            if score > best[name]:
                chosen[name], best[name] = strength, score

    ridge, result = _Ridge(x), {}
    for name, target in targets.items():
        ridge.fit(target)
        result[name] = _accuracy(ridge.predict(x_test, chosen[name]), test_labels[name])
    return result


def majority_accuracy(
    train_labels: Mapping[str, Tensor], test_labels: Mapping[str, Tensor]
) -> dict[str, float]:
    """Accuracy of always saying the most frequent training class: what chance gives."""
    return {
        name: float((test_labels[name] == labels.bincount().argmax()).double().mean())
        for name, labels in train_labels.items()
    }


class _Ridge:
    """Ridge regression with intercept for many penalties from one eigendecomposition."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)
        self.x = x - self.mean
        self.values, self.vectors = torch.linalg.eigh(self.x.T @ self.x)
        # With no variance at all every penalty gives the majority class.
        self.unit = self.values.mean().clamp(min=1e-30)

    def fit(self, targets: Tensor) -> None:
        self.intercept = targets.mean(0)
        self.moments = self.vectors.T @ (self.x.T @ (targets - self.intercept))

    def predict(self, x: Tensor, strength: float) -> Tensor:
        shrunk = self.moments / (self.values.clamp(min=0) + strength * self.unit)[:, None]
        return (x - self.mean) @ (self.vectors @ shrunk) + self.intercept


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())
