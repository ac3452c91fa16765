"""The images of a run: what is trained on, and what is probed by when there are labels."""

from dataclasses import dataclass
from typing import Literal

from mast_ext.data import Source, open_source
from mast_ext.train.config import DataConfig
from mast_ext.train.evaluation.evaluate import LabeledImages
from mast_ext.train.evaluation.probes import FEWEST_IMAGES

_LISTED = 20  # names of skipped images in a note


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
        if source.skipped:
            listed = ", ".join(source.skipped[:_LISTED])
            more = ", …" if len(source.skipped) > _LISTED else ""
            count = len(source.skipped)
            notes.append(f"{count} unreadable images skipped in {name}: {listed}{more}")
        return source

    train = split("train", data.max_images)
    if not train.labels:
        return Images(train, None, notes, "the images have no labels")
    if len(train) < FEWEST_IMAGES:
        return Images(train, None, notes, f"there are only {len(train)} training images")
    try:
        test = split("test", data.max_test_images)
    except FileNotFoundError as error:
        return Images(train, None, notes, str(error))
    return Images(train, LabeledImages(train, test), notes)
