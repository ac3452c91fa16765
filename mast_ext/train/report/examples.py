"""Pictures of views as the trained networks see them: hard ones, and uncertain ones."""

from itertools import islice

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from mast_ext.augment import AugmentationParameters, AugmentationRecipe, ViewBatch, ViewLoader
from mast_ext.augment.parameters import COLUMN
from mast_ext.train.loop.module import PretrainModule

IMAGES = 8
BATCHES = 4  # whose views' uncertainty is drawn


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


def draw_uncertainty_of(module: PretrainModule, loader: ViewLoader) -> Figure | None:
    """Log-variances of the first views of an epoch, against how much of the image a view's crop
    shows and how far its colours were changed, with Spearman's correlation.

    Args:
        module: What was trained. Its networks are in evaluation mode afterwards.
        loader: Its views, from the first epoch's beginning.

    Returns:
        None for a run that has learned no uncertainty.
    """
    module.eval()
    subspaces = module.method.subspaces()
    if subspaces is None or module.hard_views is not None:
        return None
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    device = next(module.backbone.parameters()).device
    found, rows = [], []
    with torch.no_grad():
        for batch in islice(loader, BATCHES):
            batch = batch.to(device)
            features = module.backbone(batch.images.flatten(0, 1))
            log_var = module.method.uncertainty(features.unflatten(0, batch.images.shape[:2]))
            if log_var is None:
                return None
            found.append(log_var.flatten(0, 1).float().cpu())
            rows.append(batch.parameters.flatten(0, 1).cpu())
    log_vars = torch.cat(found)
    parameters = AugmentationParameters(torch.cat(rows)[None])
    changes = slice(COLUMN["brightness"], COLUMN["hue"] + 1)  # without jitter's gate
    colours = parameters.standardised(*loader.policy.recipes[:1])[..., changes]
    strengths = {
        "area of the crop": parameters.group("crop")[0, :, 2:].prod(-1),
        "change of colour (standard deviations)": colours[0].norm(dim=-1),
    }
    size = (3.2 * len(strengths), 0.6 + 2.2 * len(subspaces.names))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(subspaces.names), len(strengths), squeeze=False)
    for row, name, values in zip(grid, subspaces.names, log_vars.T, strict=True):
        row[0].set_ylabel(f"log-variance, {name}")
        for axes, (label, strength) in zip(row, strengths.items(), strict=True):
            axes.scatter(strength, values, s=3, alpha=0.5)
            axes.set_title(f"Spearman's ρ {spearman_corrcoef(values, strength):+.2f}", fontsize=8)
            axes.set_xlabel(label)
    return figure


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
