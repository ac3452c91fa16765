"""The images of a run: what is trained on, and what is probed by when there are labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.console import Console

from mast_ext.data import FolderSource, Source, SplitError, open_source
from mast_ext.data.encoded import EncodedSource
from mast_ext.train.config import DataConfig
from mast_ext.train.evaluation.evaluate import LabeledImages
from mast_ext.train.evaluation.probes import FEWEST_IMAGES
from mast_ext.train.waiting import told_while_waiting

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


def open_images(data: DataConfig, console: Console | None = None) -> Images:
    """Opens the splits that a run needs.

    Training needs neither labels nor test images: without them there are no probes.

    Args:
        data: Where they are. Test images have the channels and bits of those to train on.
        console: Where a line says what is going on while it takes long, if it is a terminal.

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
        if isinstance(source, EncodedSource) and source.reduced:
            notes.append(
                f"{source.reduced} images of 16 bits are read with 8 in {name}, as many as the"
                " others have (data.bits 16 keeps them)"
            )
        if source.skipped:
            count = len(source.skipped)
            notes.append(f"{count} unreadable images skipped in {name}: {_listed(source.skipped)}")
        return source

    train = split("train", data.max_images, data.channels, data.bits)
    if not train.labels:
        return Images(train, None, notes, "the images have no labels")
    if len(train) < FEWEST_IMAGES:
        return Images(train, None, notes, f"there are only {len(train)} training images")
    if all(len(np.unique(ids)) == 1 for ids in train.labels.values()):
        return Images(train, None, notes, "all training images are of one class")
    try:
        test = split("test", data.max_test_images, train.channels, train.bits)
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
