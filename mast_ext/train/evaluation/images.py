"""The images of a run: what is trained on, and what is probed by when there are labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mast_ext.data import FolderSource, Source, SplitError, open_source
from mast_ext.data.encoded import EncodedSource
from mast_ext.train.config import DataConfig
from mast_ext.train.evaluation.ridge import FEWEST_IMAGES
from mast_ext.train.evaluation.scores import is_unbalanced
from mast_ext.train.waiting import told_while_waiting

_MOST_NAMED = 20  # names in a note


@dataclass(frozen=True)
class LabeledImages:
    """Training and test images with the same labeled factors.

    Attributes:
        train: Images that probes learn from.
        test: Images that they are judged by.
    """

    train: Source
    test: Source
    train_labels: dict[str, Tensor] = field(init=False)
    test_labels: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        for split, source in (("train", self.train), ("test", self.test)):
            labels = {name: torch.from_numpy(ids).long() for name, ids in source.labels.items()}
            object.__setattr__(self, f"{split}_labels", labels)

    def unbalanced(self) -> list[str]:
        """Factors of which some class has at least twice as many test images as another."""
        return [name for name, labels in self.test_labels.items() if is_unbalanced(labels)]


@dataclass(frozen=True)
class Images:
    """The images of a run.

    Attributes:
        train: What is trained on.
        labeled: Both splits, for probes, when they have labels.
        notes: What to know of them.
        why_not: Why ``labeled`` is None.
        test: The test split, where it was opened.
    """

    train: Source
    labeled: LabeledImages | None
    notes: list[str]
    why_not: str = ""
    test: Source | None = None


def open_images(
    data: DataConfig, console: Console | None = None, *, unlabeled_test: bool = False
) -> Images:
    """Opens the splits that a run needs.

    Training needs neither labels nor test images: without them there are no probes.

    Args:
        data: Where they are. Test images have the channels and bits of those to train on.
        console: Where a line says what is going on while it takes long, if it is a terminal.
        unlabeled_test: Whether test images are of use that probes are not.

    Raises:
        ValueError: The images cannot be used.
        FileNotFoundError: The folder does not exist.
        ModuleNotFoundError: A package is missing that the images need.
    """
    notes = []

    def split(
        name: Literal["train", "test"], most: int | None, channels: int | None, bits: int | None
    ) -> Source:
        where = f"{data.name if data.path is None else data.path} ({name})"
        with told_while_waiting(console, f"opening the images of {where}") as tell:

            def progress(done: int, count: int) -> None:
                tell(f"reading the images of {where}: {done:,} of {count:,}")

            source = open_source(
                data.name,
                name,
                path=data.path,
                size=data.size,
                seed=data.seed,
                on_bad_image=data.on_bad_image,
                max_images=most,
                image_column=data.image_column,
                label_column=data.label_column,
                channels=channels,
                bits=bits,
                progress=progress,
            )
        if isinstance(source, FolderSource) and source.unread:
            kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(source.unread.items()))
            count = source.unread.total()
            notes.append(f"{count} images of kinds that are not read left out in {name}: {kinds}")
        if isinstance(source, FolderSource) and source.beside:
            notes.append(
                f"left out, as beside the folder of the training split: {_first(source.beside)}"
            )
        if isinstance(source, EncodedSource) and source.reduced:
            notes.append(
                f"{source.reduced} images of 16 bits are read with 8 in {name}, as many as the"
                " others have (data.bits 16 keeps them)"
            )
        if source.skipped:
            count = len(source.skipped)
            notes.append(f"{count} unreadable images skipped in {name}: {_first(source.skipped)}")
        return source

    train = split("train", data.max_images, data.channels, data.bits)
    why_not, test = _why_not_probed(train), None
    if not why_not or unlabeled_test:
        try:
            test = split("test", data.max_test_images, train.channels, train.bits)
        except (FileNotFoundError, SplitError) as error:
            why_not = str(error)
    if test is not None and not (test.labels or why_not):
        why_not = "the test images have no labels"
    if test is None or why_not:
        return Images(train, None, notes, why_not, test)
    for factor in train.labels:
        notes += _absent(train, test, factor)
    return Images(train, LabeledImages(train, test), notes, test=test)


def _why_not_probed(train: Source) -> str:
    """Why nothing can be learned from the training images' labels; empty if something can."""
    if not train.labels:
        return "the images have no labels"
    if len(train) < FEWEST_IMAGES:
        return f"there are only {len(train)} training images"
    if all(len(np.unique(ids)) == 1 for ids in train.labels.values()):
        return "all training images are of one class"
    return ""


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
            notes.append(f"{split} has no images of {count}, {so}: {_first(names)}")
    return notes


def _class_name(source: Source, factor: str, index: int) -> str:
    names = source.classes[factor]
    return names[index] if index < len(names) else str(index)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
