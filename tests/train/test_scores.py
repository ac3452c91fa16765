import pytest
import torch

from mast_ext.train.evaluation.scores import accuracy, is_unbalanced, mean_class_accuracy, r2


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2])  # there is no class 1
    predicted = torch.tensor([0, 0, 0, 0, 0, 0, 0, 2])
    assert accuracy(predicted, labels) == 7 / 8
    assert mean_class_accuracy(predicted, labels) == (1 + 1 / 2) / 2


def test_classes_that_only_predictions_have():
    assert mean_class_accuracy(torch.tensor([5, 0]), torch.tensor([0, 0])) == 0.5
    assert mean_class_accuracy(torch.tensor([5, 7]), torch.tensor([0, 1])) == 0.0


def test_of_balanced_classes_both_are_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 4
    predicted = torch.randint(4, (60,), generator=generator)
    expected = accuracy(predicted, labels)
    assert mean_class_accuracy(predicted, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0, 1], True), ([0, 0, 1, 1, 1], False), ([3, 3], False), ([0, 1, 5, 5], True)],
)
def test_unbalanced(labels, expected):
    assert is_unbalanced(torch.tensor(labels)) is expected


def test_r2():
    target = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    assert r2(target, target) == 1
    assert r2(torch.full_like(target, 3), target) == 0
    assert r2(target + 1, target) == pytest.approx(1 - 4 / 14)
    assert r2(-target, target) < 0
    assert r2(target, torch.ones_like(target)) == 0  # nothing to explain
