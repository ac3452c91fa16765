"""Measures during training how many dimensions the representations use; no labels are needed.

A few images are looked at again and again, in the same views, so that two numbers differ because
the networks do. The networks see them as in evaluation and without gradient: what is measured
leaves no trace in training.
"""

import math

import numpy as np
import torch
from torch import Tensor

from mast_ext.augment import AugmentationRecipe, ImageSource, composed_views
from mast_ext.distributed import all_gather, rank, world_size
from mast_ext.models import evaluating, forward_views
from mast_ext.train.evaluation.ranks import lidar, rankme
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.parts import part

IMAGES = 128
"""Images that are looked at, where a batch has as many."""

VIEWS = 4
"""Views of every image."""

PARTS = ("backbone", "embedding")

NAMES = tuple(f"{measure}/{part}" for measure in ("rankme", "lidar") for part in PARTS)


class EmbeddingRanks:
    """RankMe and LiDAR of the backbone's features and of the embedding.

    Of independent views of images that are evenly spaced in the source, whatever views the method
    trains on. No more images than a batch has, so that it takes a fraction of a step. Of several
    processes each embeds its share, and all find the same numbers.

    Args:
        source: The training images.
        recipe: The augmentations.
        batch_size: Images per step, of all processes together.
        seed: Seed of the views.
        every: Steps between measurements.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: AugmentationRecipe,
        *,
        batch_size: int,
        seed: int,
        every: int,
    ) -> None:
        self.source, self.recipe, self.seed, self.every = source, recipe, seed, every
        count = min(IMAGES, batch_size, len(source))
        self.indices = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
        self._views: Tensor | None = None

    def row(self, module: PretrainModule, step: int, *, since: int, last: bool) -> dict[str, float]:
        """The columns of a row of metrics, NaN where nothing is measured.

        The first and the last row have numbers, and the first row after every ``every`` steps. All
        processes have to call alike.

        Args:
            module: What is trained.
            step: Steps done.
            since: Steps done at the row before, at most 0 if there is none.
            last: Whether the run ends here.
        """
        if last or since <= 0 or step // self.every > since // self.every:
            with part(module.trainer, "measure_ranks"):
                return self.measure(module)
        return dict.fromkeys(NAMES, math.nan)

    @torch.no_grad()
    def measure(self, module: PretrainModule) -> dict[str, float]:
        """The numbers, with four digits behind the point."""
        if self._views is None:
            self._views = self._share()
        parts = []
        with evaluating(module.backbone, module.method):
            for view in self._views:  # one by one: no more memory than training takes
                features = forward_views(module.backbone, view[None].to(module.device))
                parts.append((features, module.method.embed(features)))
        found = {}
        for name, views in zip(PARTS, zip(*parts, strict=True), strict=True):
            embeddings = self._of_all(torch.cat(views).float())
            found[f"rankme/{name}"] = round(rankme(embeddings.flatten(0, 1)), 4)
            found[f"lidar/{name}"] = round(lidar(embeddings), 4)
        return {name: found[name] for name in NAMES}

    def _share(self) -> Tensor:
        """Views of this process's images, of every process as many; some may be there twice."""
        count = len(self.indices)
        share = -(-count // world_size())
        own = np.arange(rank() * share, (rank() + 1) * share).clip(max=count - 1)
        return composed_views(
            self.source, self.indices[own], self.recipe, views=VIEWS, seed=self.seed
        )

    def _of_all(self, values: Tensor) -> Tensor:
        """Those of all images, ``[VIEWS, N, D]``, from this process's ``[VIEWS, share, D]``."""
        if world_size() > 1:
            values = all_gather(values.transpose(0, 1)).transpose(0, 1)
        return values[:, : len(self.indices)]
