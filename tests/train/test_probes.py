import pytest
import torch

from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.probes import (
    accuracies,
    knn_accuracy,
    knn_predictions,
    linear_accuracy,
    majority_predictions,
)
from mast_ext.train.evaluation.ridge import STRENGTHS, chooses_the_penalty


def clusters(count, classes=3, dim=6, noise=0.1, seed=0):
    """Points around one axis per class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    points = torch.eye(dim)[labels] + noise * torch.randn(count, dim, generator=generator)
    return points, labels


def test_separable_classes_are_found():
    train, labels = clusters(90)
    test, truth = clusters(30, seed=1)
    data = (train, test, {"f": labels}, {"f": truth})
    assert linear_accuracy(*data) == {"f": 1.0}
    assert knn_accuracy(*data, neighbors=(1, 5)) == {1: {"f": 1.0}, 5: {"f": 1.0}}


def test_no_information_gives_chance():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 5, generator=generator) for n in (400, 400))
    labels, truth = (torch.randint(4, (400,), generator=generator) for _ in range(2))
    data = (train, test, {"f": labels}, {"f": truth})
    assert linear_accuracy(*data)["f"] == pytest.approx(0.25, abs=0.08)
    assert knn_accuracy(*data, neighbors=(20,))[20]["f"] == pytest.approx(0.25, abs=0.08)


def test_knn_agrees_with_a_loop():
    train, labels = clusters(50, noise=1.0)
    test, truth = clusters(40, noise=1.0, seed=1)
    right = dict.fromkeys((1, 7, 20), 0)
    for point, expected in zip(test, truth, strict=True):
        cosine = torch.cosine_similarity(point[None], train)
        order = cosine.argsort(descending=True)
        for k in right:
            votes = torch.zeros(3)
            for i in order[:k]:
                votes[labels[i]] += torch.exp(cosine[i] / 0.07)
            right[k] += int(votes.argmax() == expected)
    found = knn_predictions(train, test, {"f": labels}, neighbors=tuple(right), chunk=16)
    assert {k: int((said["f"] == truth).sum()) for k, said in found.items()} == right
    assert 12 < right[7] < 40  # the clusters overlap, so the case decides something
    expected = {k: {"f": count / 40} for k, count in right.items()}
    assert (
        knn_accuracy(train, test, {"f": labels}, {"f": truth}, neighbors=tuple(right)) == expected
    )


@pytest.mark.parametrize("which", [0, 1])
def test_features_that_are_not_finite_are_named(which):
    (train, labels), (test, truth) = clusters(30), clusters(20, seed=1)
    (train, test)[which][3, 2] = torch.nan
    with pytest.raises(RunError, match="features of (training|test) images are not finite"):
        linear_accuracy(train, test, {"f": labels}, {"f": truth})


def test_classes_that_take_turns_are_all_held_out():
    """In an order of images that repeats itself every ten."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    directions = torch.randn(10, 256, generator=generator)
    noise = torch.randn(600, 256, generator=generator)
    points = directions[labels].repeat(2, 1) + 2 * noise
    train, test = points[:300], points[300:]
    shuffle = torch.randperm(300, generator=generator)
    in_turns = linear_accuracy(train, test, {"f": labels}, {"f": labels})["f"]
    mixed = linear_accuracy(train[shuffle], test, {"f": labels[shuffle]}, {"f": labels})["f"]
    assert in_turns == pytest.approx(mixed, abs=0.03) and mixed > 0.9


def test_knn_at_a_small_temperature_is_the_nearest():
    train, labels = clusters(60, noise=1.0)
    test, _ = clusters(40, noise=1.0, seed=1)
    found = knn_predictions(train, test, {"f": labels}, neighbors=(1, 20), temperature=1e-4)
    assert torch.equal(found[20]["f"], found[1]["f"])


def test_large_ids_of_classes_take_no_memory():
    train, labels = clusters(90)
    ids = torch.tensor([7, 2_000_000_000, 3])
    for probe in (linear_accuracy, knn_accuracy):
        found = probe(train, train, {"f": ids[labels]}, {"f": ids[labels]})
        assert found in ({"f": 1.0}, {20: {"f": 1.0}, 200: found.get(200)})


def test_knn_with_more_neighbors_than_images():
    train, labels = clusters(6)
    assert knn_accuracy(train, train, {"f": labels}, {"f": labels}, neighbors=(200,)) == {
        200: {"f": 1.0}
    }


def test_linear_probe_is_ridge_regression():
    train, labels = clusters(60, noise=1.0)
    test, truth = clusters(50, noise=1.0, seed=1)
    mean, std = train.double().mean(0), train.double().std(0)
    x, y = (train.double() - mean) / std, (test.double() - mean) / std

    def solve(rows, strength):
        a, b = x[rows], torch.eye(3, dtype=torch.float64)[labels[rows]]
        a = a - a.mean(0)
        gram = a.T @ a
        penalty = strength * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
        weights = torch.linalg.solve(gram + penalty, a.T @ (b - b.mean(0)))
        return lambda z: ((z - x[rows].mean(0)) @ weights + b.mean(0)).argmax(1)

    everything, held = torch.arange(60), chooses_the_penalty(60)
    scores = [(solve(~held, s)(x[held]) == labels[held]).sum().item() for s in STRENGTHS]
    best = STRENGTHS[scores.index(max(scores))]
    expected = (solve(everything, best)(y) == truth).double().mean().item()
    assert linear_accuracy(train, test, {"f": labels}, {"f": truth})["f"] == expected


def test_factors_do_not_mix():
    train, labels = clusters(90)
    test, truth = clusters(30, seed=1)
    both = ({"f": labels, "g": labels % 2}, {"f": truth, "g": truth % 2})
    together = linear_accuracy(train, test, *both)
    for name in "fg":
        alone = linear_accuracy(train, test, {name: both[0][name]}, {name: both[1][name]})
        assert alone == {name: together[name]}


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_of_features_does_not_matter(scale):
    train, labels = clusters(60, noise=0.8)
    test, truth = clusters(50, noise=0.8, seed=1)
    labeled = ({"f": labels}, {"f": truth})
    expected = linear_accuracy(train, test, *labeled)
    assert linear_accuracy(train * scale, test * scale, *labeled) == expected


def test_dead_features_are_survived():
    train, labels = clusters(60)
    train[:, 4], train[:, 5] = 0, train[:, 0]
    assert linear_accuracy(train, train, {"f": labels}, {"f": labels}) == {"f": 1.0}


def test_too_few_images():
    train, labels = clusters(4)
    with pytest.raises(ValueError, match="needs 5 training images, got 4"):
        linear_accuracy(train, train, {"f": labels}, {"f": labels})


def test_majority():
    labels = {"f": torch.tensor([1, 1, 0]), "g": torch.tensor([2, 0, 2])}
    truth = {"f": torch.tensor([1, 0, 0, 0]), "g": torch.tensor([2, 2, 2, 2])}
    assert accuracies(majority_predictions(labels, 4), truth) == {"f": 0.25, "g": 1.0}
