"""What backbones trained on natural images know of the class, and of what augmentations vary.

    mast-ext pretrain --data.name folder --data.path DIR --method mast --out runs/mast  # and others
    python benchmarks/train/mast/cifar.py runs/mast runs/vicreg --path DIR

Linear probes and 20-NN of frozen features: the image's class; by how many quarter turns it was
rotated; by which of eight hue shifts; from which corner a crop of three quarters of the side was
taken. What was done to an image is drawn once per image, the same for all runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as transforms

from mast_ext.data import Source, open_source
from mast_ext.models import load_backbone, to_channels_last
from mast_ext.train.config import RECIPES
from mast_ext.train.probes import knn_accuracy, linear_accuracy

NEIGHBOURS, BATCH = 20, 512


def rotated(images: Tensor, turns: int) -> Tensor:
    return images.rot90(turns, (2, 3))


def shifted(images: Tensor, eighths: int) -> Tensor:
    return transforms.adjust_hue(images, (eighths / 8 + 0.5) % 1 - 0.5)


def cropped(images: Tensor, corner: int) -> Tensor:
    side = images.shape[-1]
    kept = side * 3 // 4
    top, left = (side - kept) * (corner // 2), (side - kept) * (corner % 2)
    return transforms.resized_crop(images, top, left, kept, kept, [side, side], antialias=True)


TASKS: dict[str, tuple[int, Callable[[Tensor, int], Tensor]]] = {
    "rotation": (4, rotated),
    "hue shift": (8, shifted),
    "crop's corner": (4, cropped),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="Run directories of mast-ext pretrain.")
    parser.add_argument("--path", required=True, help="The folder with train/ and test/.")
    parser.add_argument("--images", type=int, default=4000, help="Training images of the probes.")
    parser.add_argument("--test-images", type=int, default=2000)
    values = parser.parse_args()

    recipe = RECIPES["folder"]
    sources = [
        open_source("folder", split, path=values.path, max_images=most)
        for split, most in (("train", values.images), ("test", values.test_images))
    ]
    backbones = {}
    for run in values.runs:
        backbones[run.name], spec = load_backbone(run / "backbone.safetensors")
    torch.manual_seed(0)
    backbones["untrained"] = spec.create()

    tasks = ["class", *TASKS]
    print("| linear / 20-NN, % | " + " | ".join(tasks) + " |")
    print("|---" * (1 + len(tasks)) + "|")
    made = {task: [examples(source, task, s) for s, source in enumerate(sources)] for task in tasks}
    for name, backbone in backbones.items():
        cells = []
        for task in tasks:
            (train, train_labels), (test, test_labels) = made[task]
            data = (features(backbone, train, recipe), features(backbone, test, recipe))
            labels = ({task: train_labels}, {task: test_labels})
            linear = linear_accuracy(*data, *labels)[task]
            nearest = knn_accuracy(*data, *labels, neighbours=(NEIGHBOURS,))[NEIGHBOURS][task]
            cells.append(f"{100 * linear:.1f} / {100 * nearest:.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
