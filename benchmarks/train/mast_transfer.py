"""What features of natural images are good for elsewhere, and what they know of augmentations.

    python benchmarks/train/mast_images.py --path DIR
    python benchmarks/train/mast_transfer.py --path DIR --report benchmarks/results/mast-transfer.md

trains (or finds) the runs of `mast_images.py` and probes their frozen backbones: linear probes of
every factor of `shapes`; of which quarter of all images an image's mean hue lies in; and, from the
features of two views, how well a ridge regression says by how much each augmentation parameter
differs (`mast_ext.train.evaluation.augmentations`).
"""

import argparse

import numpy as np
import torch
from mast_images import features, runs_on_images
from runs import mean_and_spread, write_table
from torch import Tensor

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import Source, open_source
from mast_ext.models import load_backbone
from mast_ext.train.config import DEFAULT_AUGMENTATION, EvaluationConfig
from mast_ext.train.evaluation.evaluate import evaluate_augmentations
from mast_ext.train.evaluation.probes import linear_accuracy


def images_of(source: Source) -> Tensor:
    return torch.stack([source.image(i) for i in range(len(source))])


def mean_hue(images: Tensor) -> np.ndarray:
    """Angle of the images' mean color in the plane of hues, ``[N]`` in ``(-π, π]``."""
    red, green, blue = images.float().mean((2, 3)).T
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue).numpy()


def quarters(angles: np.ndarray, of: np.ndarray) -> Tensor:
    """Which quarter of ``of`` each angle lies in."""
    return torch.from_numpy(np.searchsorted(np.quantile(of, (0.25, 0.5, 0.75)), angles)).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    values, runs = runs_on_images(parser)
    recipe = DEFAULT_AUGMENTATION["folder"]
    varied = AugmentationRecipe(size=32, hue=values.hue)
    counts = {"train": values.images, "test": values.test_images}
    natural = {
        split: open_source("folder", split, path=values.path, max_images=most, channels=3, bits=8)
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
            (row,) = evaluate_augmentations(
                name, backbone, natural["train"], natural["test"], varied, EvaluationConfig()
            )
            scores |= {f"Δ {name}": r2 for name, r2 in row.augmentations.items()}
            found.setdefault(name, []).append(scores)
    columns = list(found["untrained"][0])
    rows = [
        [name, *(mean_and_spread([seed[column] for seed in seeds]) for column in columns)]
        for name, seeds in found.items()
    ]
    write_table(
        "Features of CIFAR-10 elsewhere",
        [
            "Linear probes: accuracy in % of every factor of `shapes`, and of the quarter that an"
            " image's mean hue lies in.",
            "Δ: R² in % of the difference of two views' augmentation parameters, y to w the crop's"
            " place and size; of the hue, an angle, of the difference's sine.",
            f"Mean ± standard deviation over seeds {values.seeds}; probes of {values.images}"
            f" training and {values.test_images} test images.",
        ],
        ["", *columns],
        rows,
        values,
    )


if __name__ == "__main__":
    main()
