"""The images of a run: what is trained on, and what is probed by when there are labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mast_ext.data import FolderSource, Source, SplitError, open_source
from mast_ext.train.config import DataConfig
from mast_ext.train.evaluation.evaluate import LabeledImages
from mast_ext.train.evaluation.probes import FEWEST_IMAGES

_LISTED = 20  # names in a note


@dataclass(frozen=True)
class Images:
    """The images of a run.

    Attributes:
        train: What is trained on.
        labeled: Both splits, for probes, when they have labels.
        notes: What to know of them.
        why_not: Why ``labeled`` is None.
    """

    train: Source
    labeled: LabeledImages | None
    notes: list[str]
    why_not: str = ""


def open_images(data: DataConfig) -> Images:
    """Opens the splits that a run needs.

    Training needs neither labels nor test images: without them there are no probes.

    Raises:
        ValueError: The images cannot be used.
        FileNotFoundError: The folder does not exist.
    """
    notes = []

    def split(name: Literal["train", "test"], most: int | None) -> Source:
        source = open_source(
            data.name,
            name,
            path=data.path,
            size=data.size,
            seed=data.seed,
            on_bad_image=data.on_bad_image,
            max_images=most,
        )
        if isinstance(source, FolderSource) and source.unread:
            kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(source.unread.items()))
            count = source.unread.total()
            notes.append(f"{count} images of kinds that are not read left out in {name}: {kinds}")
        if source.skipped:
            count = len(source.skipped)
            notes.append(f"{count} unreadable images skipped in {name}: {_listed(source.skipped)}")
        return source

    train = split("train", data.max_images)
    if not train.labels:
        return Images(train, None, notes, "the images have no labels")
    if len(train) < FEWEST_IMAGES:
        return Images(train, None, notes, f"there are only {len(train)} training images")
    if all(len(np.unique(ids)) == 1 for ids in train.labels.values()):
        return Images(train, None, notes, "all training images are of one class")
    try:
        test = split("test", data.max_test_images)
    except (FileNotFoundError, SplitError) as error:
        return Images(train, None, notes, str(error))
    if not test.labels:
        return Images(train, None, notes, "the test images have no labels")
    for factor in train.labels:
        notes += _absent(train, test, factor)
    return Images(train, LabeledImages(train, test), notes)


def _absent(train: Source, test: Source, factor: str) -> list[str]:
    """A sentence for each split that lacks classes of the other one."""
    notes = []
    ids = {name: set(s.labels[factor].tolist()) for name, s in (("train", train), ("test", test))}
    kind = "classes" if factor == "class" else f"classes of {factor}"
    for split, other, so in (
        ("test", "train", "of which probes tell nothing"),
        ("train", "test", "which probes cannot get right"),
    ):
        absent = sorted(ids[other] - ids[split])
        if absent:
            names = [_class_name(train, factor, i) for i in absent]
            count = f"{len(absent)} of the {len(ids[other])} {kind} in {other}"
            notes.append(f"{split} has no images of {count}, {so}: {_listed(names)}")
    return notes


def _class_name(source: Source, factor: str, index: int) -> str:
    names = source.classes[factor]
    return names[index] if index < len(names) else str(index)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
