"""What features of natural images are good for elsewhere, and what they know of augmentations.

    python benchmarks/train/mast/cifar.py --path DIR
    python benchmarks/train/mast/transfer.py --path DIR --report benchmarks/results/mast-transfer.md

trains (or finds) the runs of `cifar.py` and probes their frozen backbones: linear probes of every
factor of `shapes`; of which quarter of all images an image's mean hue lies in; and, from the
features of two views, how well a ridge regression says by how much each augmentation parameter
differs: R² on test images, ``1 − Σ (predicted − difference)² / Σ (difference − mean)²``. (Of the
hue, which is an angle, the sine of the difference.)
"""

import argparse

import numpy as np
import torch
from cifar import features, runs_on_images
from runs import mean_and_spread, write_table
from torch import Tensor, nn

from mast_ext.augment import (
    COLUMNS,
    AugmentationParameters,
    AugmentationRecipe,
    ComposedPolicy,
    build_loader,
)
from mast_ext.data import Source, open_source
from mast_ext.models import forward_views, load_backbone, to_channels_last
from mast_ext.train.config import DEFAULT_AUGMENTATION
from mast_ext.train.evaluation.probes import linear_accuracy

FACTORS = ("shape", "hue", "size", "position", "rotation", "texture")
REGRESSED = ("y", "x", "h", "w", "brightness", "contrast", "saturation", "hue")
SEED, BATCH, PENALTY = 99, 500, 1e-3


def images_of(source: Source) -> Tensor:
    return torch.stack([source.image(i) for i in range(len(source))])


def mean_hue(images: Tensor) -> np.ndarray:
    """Angle of the images' mean color in the plane of hues, ``[N]`` in ``(-π, π]``."""
    red, green, blue = images.float().mean((2, 3)).T
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue).numpy()


def quarters(angles: np.ndarray, of: np.ndarray) -> Tensor:
    """Which quarter of ``of`` each angle lies in."""
    return torch.from_numpy(np.searchsorted(np.quantile(of, (0.25, 0.5, 0.75)), angles)).long()


@torch.inference_mode()
def pairs(backbone: nn.Module, source: Source, recipe: AugmentationRecipe) -> tuple[Tensor, Tensor]:
    """Features of two views of every image, ``[N, 2 F]``, and the parameters' differences."""
    backbone = to_channels_last(backbone).eval()
    loader = build_loader(
        source, ComposedPolicy(recipe), batch_size=BATCH, seed=SEED, shuffle=False, drop_last=False
    )
    found, differences = [], []
    for batch in loader:
        found.append(torch.cat(tuple(forward_views(backbone, batch.images)), dim=1))
        parameters = AugmentationParameters(batch.parameters)
        rows, shifts = parameters.standardized(recipe), parameters.column("hue")
        difference = rows[0] - rows[1]
        difference[:, COLUMNS.index("hue")] = (2 * np.pi * (shifts[0] - shifts[1])).sin()
        differences.append(difference)
    columns = [COLUMNS.index(name) for name in REGRESSED]
    return torch.cat(found).double(), torch.cat(differences)[:, columns].double()


def explained(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """R² of ridge regression, by parameter."""
    (x, target), (x_test, truth) = train, test
    mean, std = x.mean(0), x.std(0).clamp_min(1e-9)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    gram = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (target - target.mean(0)))
    error = (x_test @ weights + target.mean(0) - truth).square().sum(0)
    r2 = 1 - error / (truth - truth.mean(0)).square().sum(0)
    return dict(zip(REGRESSED, r2.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    values, runs = runs_on_images(parser)
    recipe = DEFAULT_AUGMENTATION["folder"]
    varied = AugmentationRecipe(size=32, hue=values.hue)
    counts = {"train": values.images, "test": values.test_images}
    natural = {
        split: open_source("folder", split, path=values.path, max_images=most)
        for split, most in counts.items()
    }
    shapes = {
        split: open_source("shapes", split, max_images=most) for split, most in counts.items()
    }
    factors = {
        split: {name: torch.from_numpy(ids).long() for name, ids in source.labels.items()}
        for split, source in shapes.items()
    }
    images = {split: images_of(source) for split, source in natural.items()}
    angles = {split: mean_hue(found) for split, found in images.items()}
    hues = {split: {"hue": quarters(found, angles["train"])} for split, found in angles.items()}

    found: dict[str, list[dict[str, float]]] = {}
    for (variant, seed), run in runs.items():
        trained, spec = load_backbone(run / "backbone.safetensors")
        torch.manual_seed(seed)
        for name, backbone in ((variant, trained), ("untrained", spec.create())):
            if name == "untrained" and variant != values.variants[0]:
                continue
            of_shapes = [features(backbone, images_of(s), recipe) for s in shapes.values()]
            scores = linear_accuracy(*of_shapes, *factors.values())
            of_images = [features(backbone, each, recipe) for each in images.values()]
            scores["mean hue"] = linear_accuracy(*of_images, *hues.values())["hue"]
            r2 = explained(*(pairs(backbone, source, varied) for source in natural.values()))
            scores |= {f"Δ {name}": value for name, value in r2.items()}
            found.setdefault(name, []).append(scores)
    columns = [*FACTORS, "mean hue", *(f"Δ {name}" for name in REGRESSED)]
    rows = [
        [name, *(mean_and_spread([seed[column] for seed in seeds]) for column in columns)]
        for name, seeds in found.items()
    ]
    write_table(
        "Features of CIFAR-10 elsewhere",
        [
            "Linear probes: accuracy in % of every factor of `shapes`, and of the quarter that an"
            " image's mean hue lies in.",
            "Δ: R² in % of the difference of two views' augmentation parameters.",
            f"Mean ± standard deviation over seeds {values.seeds}; probes of {values.images}"
            f" training and {values.test_images} test images.",
        ],
        ["", *columns],
        rows,
        values,
    )


if __name__ == "__main__":
    main()
