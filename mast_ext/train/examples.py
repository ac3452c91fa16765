"""Examples of what hard view selection chooses, by the networks as training left them."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mast_ext.augment import AugmentationParameters, AugmentationRecipe, ViewBatch, ViewLoader
from mast_ext.train.module import PretrainModule

IMAGES = 8


def draw_hard_views_of(module: PretrainModule, loader: ViewLoader) -> Figure | None:
    """Full-size views of the first images of an epoch, the chosen two of each image framed.

    Args:
        module: What was trained. Its networks are in evaluation mode afterwards.
        loader: Its views, from the first epoch's beginning.

    Returns:
        None for a run without hard views.
    """
    if module.hard_views is None:
        return None
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    device = next(module.backbone.parameters()).device
    batch = next(iter(loader)).to(device)
    module.eval()
    with torch.no_grad(), torch.random.fork_rng():
        chosen, _ = module.hard_views(batch, module.backbone, module.teacher, select=True)
    policy = module.hard_views.policy
    views = len(batch.images) - policy.with_centre
    return draw_choice(batch, chosen, policy.recipe, views=views)


def draw_choice(
    batch: ViewBatch, chosen: ViewBatch, recipe: AugmentationRecipe, *, views: int
) -> Figure:
    """A picture of the first ``views`` views of a batch's first images, a row per image.

    Views that are among the first two of ``chosen`` have a frame; beside a row stands the overlap
    (IoU) of their crops.
    """
    images = batch.images[:views, :IMAGES].float().cpu()
    pixels = images * _channels(recipe.std) + _channels(recipe.mean)
    shown = pixels.clamp(0, 1).permute(1, 0, 3, 4, 2).numpy()
    rows, pair = batch.parameters[:views, :IMAGES], chosen.parameters[:2, :IMAGES]
    framed = (rows[:, None] == pair[None]).all(-1).any(1).T.tolist()  # a view is where its row is
    overlap = AugmentationParameters(pair.cpu()).crop_iou(0, 1).tolist()

    count = len(shown)
    figure = Figure(figsize=(1.1 * views + 0.8, 1.1 * count + 0.4), layout="constrained")
    grid = np.atleast_2d(figure.subplots(count, views, squeeze=False))
    for i, j in np.ndindex(grid.shape):
        axes = grid[i, j]
        axes.imshow(shown[i, j], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=framed[i][j], color="crimson", linewidth=3)
        if j == 0:
            axes.set_ylabel(f"IoU {overlap[i]:.2f}", fontsize=8)
    figure.suptitle("views of an image; framed: the hard ones", fontsize=9)
    return figure


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
