"""How good predictions are: fractions, of which 1 is the best."""

from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Fraction of images whose class is predicted, in ``[0, 1]``.

    Args:
        predicted: Class ids, ``[N]``.
        labels: The true ones, ``[N]``.
    """
    return float((predicted == labels).double().mean())


def mean_class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that there are of the accuracy on each one's images, in ``[0, 1]``.

    Unlike `accuracy` it counts a rare class as much as a frequent one.

    Args:
        predicted: Class ids, ``[N]``.
        labels: The true ones, ``[N]`` int64.
    """
    counts = labels.bincount()
    right = labels[predicted == labels].bincount(minlength=len(counts))
    there = counts > 0
    return float((right[there].double() / counts[there]).mean())


def r2(predicted: Tensor, target: Tensor) -> float:
    """Coefficient of determination, ``1 − Σ (predicted − target)² / Σ (target − mean)²``.

    It is 1 for what is predicted exactly, 0 for a prediction no better than the mean of the
    targets, and less for a worse one; 0, too, where targets do not differ.

    Args:
        predicted: ``[N]``, floating point.
        target: ``[N]``, likewise.
    """
    total = (target - target.mean()).square().sum()
    if not total > 0:
        return 0.0
    return float(1 - (predicted - target).square().sum() / total)


def is_unbalanced(labels: Tensor) -> bool:
    """Whether the most frequent class has at least twice as many images as the rarest one.

    Args:
        labels: Class ids, ``[N]`` int64. Those that do not occur do not count.
    """
    counts = labels.bincount()
    counts = counts[counts > 0]
    return bool(len(counts) and counts.max() >= 2 * counts.min())
