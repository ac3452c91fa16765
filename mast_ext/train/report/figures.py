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
BATCHES = 4  # whose pairs' uncertainty is drawn


def draw_masks(subspaces: Subspaces) -> Figure:
    """Masks as a picture, a row per augmentation.

    Dimensions are sorted by the augmentation that frees them; those that none frees come first.
    """
    masks = subspaces.masks.numpy()
    freed = 1 - masks
    owner = np.where(freed.max(0) > 0.5, 1 + freed.argmax(0), 0)
    order = np.lexsort((freed.max(0), owner))
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(masks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(masks[:, order], aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    counts = zip(subspaces.names, subspaces.freed.tolist(), strict=True)
    axes.set_yticks(range(len(masks)), [f"{name} (frees {count:.0f})" for name, count in counts])
    axes.set_xlabel("dimension of the embedding, sorted")
    axes.set_title(
        "masks: 1 where a dimension is invariant to the augmentation, 0 where it is free"
    )
    figure.colorbar(image)
    return figure


def draw_overlap(subspaces: Subspaces) -> Figure:
    """How much the freed dimensions of every pair of augmentations have in common."""
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
    axes.set_title("overlap of freed dimensions", fontsize=10)
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


def draw_ranks(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """How many dimensions backbone and embedding use, in those rows that say so."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (measure, label) in zip(
        figure.subplots(1, 2),
        (
            ("rankme", "dimensions in use (RankMe)"),
            ("lidar", "dimensions that tell images apart (LiDAR)"),
        ),
        strict=True,
    ):
        for color, (model, columns) in enumerate(curves.items()):
            for part, style in (("embedding", "-"), ("backbone", "--")):
                values = columns.get(f"{measure}/{part}", [])
                points = [p for p in zip(columns["epoch"], values, strict=False) if p[1] == p[1]]
                if points:
                    line = f"{style}C{color}"
                    axes.plot(
                        *zip(*points, strict=True), line, marker=".", label=f"{model}: {part}"
                    )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend()
    figure.suptitle(
        "How many dimensions the representations of some training images use, told without"
        " labels.\nA fall towards 1 is collapse: all images become alike",
        fontsize=9,
    )
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
    """Uncertainty of the first pairs of an epoch, against how far apart their views are made.

    That is how much of the image both crops show, and how differently the colors were changed, with
    Spearman's correlation.

    Args:
        module: What was trained. Its networks are in evaluation mode afterwards.
        loader: Its views, from the first epoch's beginning.

    Returns:
        None for a run that has learned no uncertainty.
    """
    module.eval()
    loader.load_state_dict({"seed": loader.seed, "epoch": 0, "step": 0})
    device = next(module.backbone.parameters()).device
    found, rows = [], []
    with torch.no_grad():
        for batch in islice(loader, BATCHES):
            log_variance = module.method.pair_uncertainty(batch.to(device))
            if log_variance is None:
                return None
            found.append(log_variance.cpu())
            rows.append(batch.parameters[:2].cpu())
    log_variances = torch.cat(found)
    parameters = AugmentationParameters(torch.cat(rows, dim=1))
    changes = slice(COLUMN["brightness"], COLUMN["hue"] + 1)  # without jitter's gate
    first, second = parameters.standardized(*loader.policy.recipes[:1])[..., changes]
    differences = {
        "overlap of the two crops (IoU)": parameters.crop_iou(0, 1),
        "distance of the two colors (standard deviations)": (first - second).norm(dim=-1),
    }
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panels = figure.subplots(1, len(differences), sharey=True)
    for axes, (label, difference) in zip(panels, differences.items(), strict=True):
        axes.scatter(difference, log_variances, s=3, alpha=0.5)
        correlation = spearman_corrcoef(log_variances, difference)
        axes.set_title(f"Spearman's ρ {correlation:+.2f}", fontsize=9)
        axes.set_xlabel(label)
    panels[0].set_ylabel("log-variance of the pair")
    figure.suptitle(
        "Each point is a pair of views: the higher, the less alike it is expected to be,\n"
        "and the less it counts in training",
        fontsize=9,
    )
    return figure


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
