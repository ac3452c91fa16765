"""Figures of a run: of its subspaces, its metrics, and views as the trained networks see them."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from mast_ext.augment import AugmentationParameters, AugmentationRecipe, ViewBatch, ViewLoader
from mast_ext.augment.parameters import COLUMN
from mast_ext.methods import Subspaces
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.report.tables import percent

IMAGES = 8
BATCHES = 4  # whose views' uncertainty is drawn


def draw_masks(subspaces: Subspaces) -> Figure:
    """Masks as a picture, ``K`` rows; dimensions sorted by the subspace they belong to most."""
    masks = subspaces.masks.numpy()
    order = np.lexsort((-masks.max(0), masks.argmax(0)))
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(masks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(masks[:, order], aspect="auto", interpolation="nearest", vmin=0)
    dims = subspaces.effective_dimensions.tolist()
    ticks = [f"{name} ({n:.0f})" for name, n in zip(subspaces.names, dims, strict=True)]
    axes.set_yticks(range(len(ticks)), ticks)
    axes.set_xlabel("embedding dimension, sorted")
    axes.set_title("masks (effective dimensions)")
    figure.colorbar(image)
    return figure


def draw_overlap(subspaces: Subspaces) -> Figure:
    """The overlap of every pair of subspaces."""
    overlap, names = subspaces.overlap.numpy(), subspaces.names
    side = 2.2 + 0.6 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(overlap, vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(overlap):
        color = "black" if value > 0.5 else "white"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("overlap of subspaces")
    figure.colorbar(image)
    return figure


def draw_probes(title: str, heads: Sequence[str], body: Sequence[list]) -> Figure:
    """One of `grids`' tables of several factors as a picture: what each representation knows."""
    scores = np.array([[np.nan if cell is None else cell for cell in row[2:]] for row in body])
    size = (2.5 + 1.1 * len(heads[2:]), 1.2 + 0.4 * len(body))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(scores, aspect="auto", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(scores):
        color = "black" if value > 0.5 else "white"
        axes.text(j, i, percent(value), ha="center", va="center", color=color)
    axes.set_xticks(range(len(heads) - 2), heads[2:])
    axes.set_yticks(range(len(body)), [" ".join(row[:2]) for row in body])
    axes.set_title(title)
    return figure


def draw_losses(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """The training loss of every model over its epochs."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, columns in curves.items():
        if columns:
            axes.plot(columns["epoch"], columns["loss"], label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (of each method: not comparable)")
    axes.legend()
    return figure


def gain_columns(columns: dict[str, list[float]]) -> dict[str, str]:
    """Those of EquiMod's gains among the columns of metrics, by augmentation (or ``all``)."""
    stem = "equivariance_gain"
    found = {name: name.removeprefix(stem) for name in columns if name.startswith(stem)}
    return {name: rest.removeprefix("/") or "all" for name, rest in found.items()}


def draw_gains(
    curves: dict[str, dict[str, list[float]]], gains: dict[str, dict[str, str]]
) -> Figure:
    """How much nearer EquiMod's predictions come than the plain image, by augmentation."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for model, named in gains.items():
        for column, augmentation in named.items():
            width = 2.5 if augmentation == "all" else 1.2
            label = f"{model}: {augmentation}"
            axes.plot(curves[model]["epoch"], curves[model][column], label=label, linewidth=width)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("equivariance gain (cosine)")
    axes.legend()
    return figure


def draw_hard_views(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """How far apart the chosen pairs' views are, beside the mean pair's (steps that selected)."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("iou", "IoU of the crops"), ("color", "distance of color parameters")),
        strict=True,
    ):
        for model, columns in curves.items():
            for kind, style in (("", "-"), ("_random", "--")):
                values = columns.get(f"hard_views/{name}{kind}", [])
                points = [p for p in zip(columns["epoch"], values, strict=False) if p[1] == p[1]]
                if points:
                    text = f"{model}: {'random' if kind else 'chosen'} pairs"
                    axes.plot(*zip(*points, strict=True), style, label=text)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if axes.lines:
            axes.legend()
    return figure


def draw_hard_view_examples(module: PretrainModule, loader: ViewLoader) -> Figure | None:
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
    views = len(batch.images) - policy.with_center
    return draw_chosen_views(batch, chosen, policy.recipe, views=views)


def draw_chosen_views(
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


def draw_uncertainty(module: PretrainModule, loader: ViewLoader) -> Figure | None:
    """Log-variances of the first views of an epoch, against the strength of augmentations.

    That is how much of the image a view's crop shows, and how far its colors were changed, with
    Spearman's correlation.

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
    colors = parameters.standardized(*loader.policy.recipes[:1])[..., changes]
    strengths = {
        "area of the crop": parameters.group("crop")[0, :, 2:].prod(-1),
        "change of color (standard deviations)": colors[0].norm(dim=-1),
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
