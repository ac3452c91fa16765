"""Ridge regression in closed form, whose penalty is chosen on held-out training examples."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mast_ext.train.errors import RunError

STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 3))
"""Penalties that are tried, in units of the Gram matrix's mean eigenvalue."""

FEWEST_IMAGES = 5
"""Training examples that are needed: a fifth of them chooses the penalty."""

Score = Callable[[str, Tensor, Tensor], float]
"""How good predictions ``[H, C]`` are: name of the target, predictions, and whose they are, a mask
``[N]`` with H true values. More is better."""


def ridge_predictions(
    train: Tensor, test: Tensor, targets: Mapping[str, Tensor], score: Score
) -> dict[str, Tensor]:
    """Predictions of ridge regressions onto several targets.

    Features are standardized. The penalty is chosen for every target on a fifth of the training
    examples, the same random ones for as many examples, then all of them are used. What costs, an
    eigendecomposition, does not depend on the targets.

    Args:
        train: Features of the training examples, ``[N, F]``, at least 5.
        test: Features of the test examples, ``[M, F]``.
        targets: What to predict, each ``[N, C]`` float64.
        score: Judges predictions on what is held out.

    Returns:
        Predictions for the test examples, ``[M, C]`` float64, by target.

    Raises:
        ValueError: Fewer than 5 training examples.
        RunError: Features are not finite.
    """
    if len(train) < FEWEST_IMAGES:
        raise ValueError(
            f"ridge regression needs {FEWEST_IMAGES} training images, got {len(train)}"
        )
    for name, features in (("training", train), ("test", test)):
        if not features.isfinite().all():
            raise RunError(
                f"features of {name} images are not finite: nothing can be read off them"
            )
    mean, std = train.double().mean(0), train.double().std(0)
    scale = torch.where(std > 1e-9, 1 / std, torch.zeros_like(std))
    x, x_test = ((part.double() - mean) * scale for part in (train, test))
    held_out = chooses_the_penalty(len(x))

    chosen, best = dict.fromkeys(targets, STRENGTHS[0]), dict.fromkeys(targets, -torch.inf)
    ridge = _Ridge(x[~held_out])
    for name, target in targets.items():
        ridge.fit(target[~held_out])
        for strength in STRENGTHS:
            found = score(name, ridge.predict(x[held_out], strength), held_out)
            if found > best[name]:
                chosen[name], best[name] = strength, found

    ridge, result = _Ridge(x), {}
    for name, target in targets.items():
        ridge.fit(target)
        result[name] = ridge.predict(x_test, chosen[name])
    return result


def chooses_the_penalty(count: int) -> Tensor:
    """A fifth of so many training examples, as a mask.

    Random ones, the same each time: in the order that there is, classes may take turns.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % 5 == 4


class _Ridge:
    """Ridge regression with intercept for many penalties from one eigendecomposition."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)
        self.x = x - self.mean
        self.values, self.vectors = torch.linalg.eigh(self.x.T @ self.x)
        # With no variance at all every penalty gives the mean of the targets.
        self.unit = self.values.mean().clamp(min=1e-30)

    def fit(self, targets: Tensor) -> None:
        self.intercept = targets.mean(0)
        self.moments = self.vectors.T @ (self.x.T @ (targets - self.intercept))

    def predict(self, x: Tensor, strength: float) -> Tensor:
        shrunk = self.moments / (self.values.clamp(min=0) + strength * self.unit)[:, None]
        return (x - self.mean) @ (self.vectors @ shrunk) + self.intercept
