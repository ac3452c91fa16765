"""Hard view selection (Ferreira et al., "Beyond Random Augmentations", ICLR 2025), for any loop.

A selector turns an objective's pair losses into a pair of views per image. What is random in it is
one more score: noise added to the scores makes the largest of them a sample of their softmax.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_number, require_positive
from mast_ext.losses.common.inputs import require_option

Candidates = Literal["all", "anchor", "even_odd"]
Strategy = Literal["argmax", "softmax"]


class HardViewSelector(nn.Module):
    """Picks the views of every image to train on, by how hard their pair is to the model.

    In any training loop, with ``views`` images ``[V, B, 3, H, W]`` and any objective here::

        selector, loss = HardViewSelector(), NTXentLoss()
        with torch.no_grad():
            embeddings = model(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # [V, B, D]
            index, _ = selector(loss.pair_losses(embeddings))
        first, second = functional.gather_views(views, index)
        loss(model(first), model(second)).backward()

    The score of a pair ``i < j`` is ``(L[i,j] + L[j,i]) / 2``. Ties go to the first pair, and a NaN
    never wins over a number. Without randomness (``"argmax"``, ``fraction=1``) an image's pair
    depends on its own losses alone, so that a batch may be split among processes.

    Args:
        candidates: The pairs to choose from: ``"all"``, those with view 0 (``"anchor"``), or those
            of an even with an odd view (``"even_odd"``: two kinds of crop in turn, as DINO's).
        strategy: ``"argmax"`` takes the hardest pair; ``"softmax"`` a random one, with probability
            proportional to ``exp(score / temperature)``.
        temperature: Of ``"softmax"`` alone, in the loss's unit; above 0. Small ones approach
            ``"argmax"``.
        fraction: The share of images, rounded to a whole number of them, whose pair is chosen so:
            those whose hardest pair scores highest in this process's batch, the first ones on
            ties. The others get a random candidate, each with the same probability, as in plain
            training.
        generator: Where random numbers come from, on the device of the losses. ``None``: torch's
            default generator of that device, which ``torch.manual_seed`` seeds.

    Raises:
        ValueError: An option is unknown, ``temperature`` is not positive or without ``"softmax"``,
            or ``fraction`` is not in ``[0, 1]``.
    """

    def __init__(
        self,
        candidates: Candidates = "all",
        strategy: Strategy = "argmax",
        *,
        temperature: float = 1.0,
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.candidates: Candidates = require_option("candidates", candidates, Candidates)
        self.strategy: Strategy = require_option("strategy", strategy, Strategy)
        self.temperature = require_positive("temperature", temperature)
        if strategy != "softmax" and temperature != 1:
            raise ValueError(
                f"temperature is of strategy 'softmax', got {temperature} with {strategy!r}"
            )
        self.fraction = require_number("fraction", fraction, 0, 1)
        self.generator = generator

    @torch.no_grad()
    @explains_types
    def forward(self, pair_losses: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen pair of every image.

        Args:
            pair_losses: ``[V, V, B]`` with ``V ≥ 2``, of any objective's ``pair_losses``: float32,
                float16, bfloat16 or (CPU) float64.

        Returns:
            ``index`` int64 ``[2, B]``, views ``i < j`` as ``functional.gather_views`` takes them,
            and the pair's ``score`` ``[B]``, float32 (float64 for float64 inputs). Neither has a
            gradient.

        Raises:
            ValueError: ``pair_losses`` has another shape, or fewer than two views.
            TypeError: The dtype is not supported.
        """
        candidates = self.marks(pair_losses)
        index, score = functional.select_hard_pairs(pair_losses, candidates=candidates)
        hard = _highest(score, self.fraction) if self.fraction < 1 else None
        if self.strategy == "softmax":
            scores = _symmetric(pair_losses.to(score.dtype))
            noisy = scores / self.temperature + self._noise(scores)
            index, score = _chosen(scores, noisy, candidates)
        if hard is not None:
            scores = _symmetric(pair_losses.to(score.dtype))
            easy_index, easy_score = _chosen(scores, self._noise(scores), candidates)
            index = torch.where(hard, index, easy_index)
            score = torch.where(hard, score, easy_score)
        return index, score

    def marks(self, pair_losses: Tensor) -> Tensor | None:
        """The candidates as bool ``[V, V]``; ``None`` for all."""
        if self.candidates == "all":
            return None
        view = torch.arange(pair_losses.shape[0], device=pair_losses.device)
        if self.candidates == "anchor":
            return (view == 0).unsqueeze(1).expand(-1, len(view))
        return (view.unsqueeze(1) + view) % 2 == 1

    def _noise(self, scores: Tensor) -> Tensor:
        """Gumbel noise ``[V, V, B]``, the same for ``(i, j)`` and ``(j, i)``.

        Added to log-probabilities it makes the largest a sample (Gumbel 1954); alone, the pairs
        are equally likely to be the largest.
        """
        noise = -torch.empty_like(scores).exponential_(generator=self.generator).log()
        above = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device).triu(1)
        return torch.where(above.unsqueeze(-1), noise, noise.transpose(0, 1))

    def extra_repr(self) -> str:
        return (
            f"candidates={self.candidates!r}, strategy={self.strategy!r}, "
            f"temperature={self.temperature}, fraction={self.fraction}"
        )


def _symmetric(pair_losses: Tensor) -> Tensor:
    """Scores ``[V, V, B]`` of pairs in both orders."""
    return (pair_losses + pair_losses.transpose(0, 1)) / 2


def _chosen(scores: Tensor, by: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
    """The pairs ``[2, B]`` that are largest by ``by [V, V, B]``, and their ``scores``, ``[B]``."""
    index, _ = functional.select_hard_pairs(by, candidates=candidates)
    image = torch.arange(index.shape[1], device=index.device)
    return index, scores[index[0], index[1], image]


def _highest(score: Tensor, fraction: float) -> Tensor:
    """Marks ``[B]`` of the images with the highest scores; NaN is the lowest."""
    ranked = score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = ranked.argsort(descending=True, stable=True)
    # As a tensor, which compilers keep symbolic; a slice's length would become a constant.
    one = torch.ones((), dtype=torch.float64, device=score.device)
    count = (one * fraction * len(score)).round()
    place = torch.arange(len(score), device=score.device)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(0, order, place < count)
