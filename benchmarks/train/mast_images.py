"""MAST against VICReg and SimCLR on natural images: of the class, and of what augmentations vary.

    python benchmarks/train/mast_images.py --path DIR --report benchmarks/results/mast-cifar10.md

trains every variant with every seed through the program on a folder with train/ and test/, with as
many image forwards each and hue changes of ``--hue`` for all. Linear probes and 20-NN of frozen
features: the image's class; by how many quarter turns it was rotated; by which of eight hue shifts;
from which corner a crop of three quarters of the side was taken; whether it was flipped. What was
done to an image is drawn once per image, the same for all runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mast_variants import VARIANTS
from runs import add_arguments, mean_and_spread, network, plan, train_all, write_table
from torch import Tensor
from torchvision.transforms import functional as transforms

from mast_ext.data import Source, open_source
from mast_ext.models import load_backbone, to_channels_last
from mast_ext.train.config import DEFAULT_AUGMENTATION
from mast_ext.train.evaluation.probes import knn_accuracy, linear_accuracy

NEIGHBORS, BATCH = 20, 512


def rotated(images: Tensor, turns: int) -> Tensor:
    return images.rot90(turns, (2, 3))


def shifted(images: Tensor, eighths: int) -> Tensor:
    return transforms.adjust_hue(images, (eighths / 8 + 0.5) % 1 - 0.5)


def cropped(images: Tensor, corner: int) -> Tensor:
    side = images.shape[-1]
    kept = side * 3 // 4
    top, left = (side - kept) * (corner // 2), (side - kept) * (corner % 2)
    return transforms.resized_crop(images, top, left, kept, kept, [side, side], antialias=True)


def flipped(images: Tensor, flip: int) -> Tensor:
    return images.flip(3) if flip else images


TASKS: dict[str, tuple[int, Callable[[Tensor, int], Tensor]]] = {
    "rotation": (4, rotated),
    "hue shift": (8, shifted),
    "crop's corner": (4, cropped),
    "flip": (2, flipped),
}


def examples(source: Source, task: str, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, S, S]`` uint8 and their labels ``[N]``."""
    images = torch.stack([source.image(i) for i in range(len(source))])
    if task == "class":
        return images, torch.from_numpy(source.labels["class"]).long()
    count, change = TASKS[task]
    drawn = np.random.default_rng([seed, count, len(task)]).integers(count, size=len(source))
    labels = torch.from_numpy(drawn)
    for label in range(count):
        images[labels == label] = change(images[labels == label], label)
    return images, labels


@torch.inference_mode()
def features(backbone: torch.nn.Module, images: Tensor, recipe) -> Tensor:
    backbone = to_channels_last(backbone).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    parts = (((part / 255 - mean) / std) for part in images.split(BATCH))
    return torch.cat(
        [backbone(part.contiguous(memory_format=torch.channels_last)) for part in parts]
    )


Accuracies = dict[str, tuple[float, float]]  # by task: linear probe, 20-NN


def probe(backbone: torch.nn.Module, made: dict, recipe) -> Accuracies:
    found = {}
    for task, ((train, train_labels), (test, test_labels)) in made.items():
        data = (features(backbone, train, recipe), features(backbone, test, recipe))
        labels = ({task: train_labels}, {task: test_labels})
        linear = linear_accuracy(*data, *labels)[task]
        nearest = knn_accuracy(*data, *labels, neighbors=(NEIGHBORS,))[NEIGHBORS][task]
        found[task] = (linear, nearest)
    return found


def runs_on_images(
    parser: argparse.ArgumentParser,
) -> tuple[argparse.Namespace, dict[tuple[str, int], Path]]:
    """The arguments of a benchmark on a folder of images, and its runs, trained or found."""
    add_arguments(parser, epochs=12, runs="runs/mast-cifar10")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--path", required=True, help="The folder with train/ and test/.")
    parser.add_argument("--hue", type=float, default=0.5, help="Strength of the hue change.")
    parser.add_argument("--train-images", type=int, default=20000, help="What runs train on.")
    parser.add_argument("--images", type=int, default=8000, help="Training images of the probes.")
    parser.add_argument("--test-images", type=int, default=5000)
    values = parser.parse_args()

    data = ["--data.name=folder", f"--data.path={values.path}", f"--augment.hue={values.hue:g}"]
    data += [f"--data.max_images={values.train_images}", *network(values.width)]
    variants = {name: VARIANTS[name] for name in values.variants}
    return values, train_all(plan(variants, values, data), values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    values, runs = runs_on_images(parser)
    recipe = DEFAULT_AUGMENTATION["folder"]
    sources = [
        open_source("folder", split, path=values.path, max_images=most, channels=3, bits=8)
        for split, most in (("train", values.images), ("test", values.test_images))
    ]
    tasks = ["class", *TASKS]
    made = {task: [examples(source, task, s) for s, source in enumerate(sources)] for task in tasks}
    found: dict[str, list[Accuracies]] = {}
    for (variant, _), run in runs.items():
        backbone, spec = load_backbone(run / "backbone.safetensors")
        found.setdefault(variant, []).append(probe(backbone, made, recipe))
    for seed in values.seeds:
        torch.manual_seed(seed)
        found.setdefault("untrained", []).append(probe(spec.create(), made, recipe))
    rows = [
        [name, kind, *(mean_and_spread([seed[task][i] for seed in seeds]) for task in tasks)]
        for name, seeds in found.items()
        for i, kind in enumerate(("linear", f"{NEIGHBORS}-NN"))
    ]
    write_table(
        "MAST on CIFAR-10",
        [
            f"Accuracy in %, mean ± standard deviation over seeds {values.seeds}.",
            f"Every run has the image forwards of {values.epochs:g} epochs of two views of"
            f" {values.train_images} images, with hue changes of up to {values.hue:g} turns,"
            f" of a network {values.width} times as wide as resnet_small.",
            f"Probes: {values.images} training and {values.test_images} test images.",
        ],
        ["", "", *tasks],
        rows,
        values,
    )


if __name__ == "__main__":
    main()
