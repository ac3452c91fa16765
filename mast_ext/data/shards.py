"""Tar shards in the layout of WebDataset, read at random without unpacking.

Opening scans the headers of the archives once for where every member lies; after that a sample is a
seek and a read, so the order of an epoch and the shares of ranks are those of any other source.
Nothing is cached in files.
"""

import glob
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mast_ext.data.decoding import BadImageError
from mast_ext.data.encoded import EncodedSource, Progress
from mast_ext.data.files import SUFFIXES, Member
from mast_ext.data.labels import numbered
from mast_ext.data.splits import SPLIT_NAMES, SplitError, share, split_folders

LABEL_FIELDS = ("label", "class", "cls")
"""Fields of a ``.json`` member that hold the label; the first that is there counts."""

_MOST_CLASSES = 1 << 20


class ShardsSource(EncodedSource):
    """Images in tar archives (``.tar``, not compressed).

    A sample is the members of one archive that share a key: the name up to the first dot after the
    last slash. It has one image (an extension such as ``jpg``; of several, the one without a
    further dot, so ``jpg`` before ``mask.png``) and may have a label: ``cls`` (a number or a name)
    or ``json`` (such a value, or an object with one as ``label``, ``class`` or ``cls``). Other
    members are ignored.

    Args:
        path: An archive, a pattern (``*``, ``?``, ``[...]``) of some, or a folder. The folder has
            ``train/`` beside ``test/`` or ``val/`` with archives in them; or archives with
            ``train`` in their names beside others with ``test`` or ``val``; or archives, of whose
            samples a tenth, chosen by a hash of the keys, is the test split.
        split: ``"train"`` or ``"test"``.
        on_bad_image: ``"error"`` raises for a sample that cannot be used; ``"skip"`` leaves such
            samples out, and archives that cannot be read.
        max_images: Keep at most this many, spread evenly over the samples.
        channels: As of a `FolderSource`.
        bits: As of a `FolderSource`.
        progress: As of a `FolderSource`.

    Attributes:
        files: Where the images are, in the order of the sorted archives.
        skipped: Names of the samples and archives that were left out.

    Raises:
        FileNotFoundError: There are no archives, or none of the split.
        SplitError: The split has no samples, no image of it can be decoded, or one has a class
            that the training split has not and ``on_bad_image`` is ``"error"``.
        ValueError: An archive cannot be read to its end, or an archive is empty.
        BadImageError: A sample cannot be used and ``on_bad_image`` is ``"error"``.
    """

    name = "shards"

    def __init__(
        self,
        path: str | Path,
        split: Literal["train", "test"],
        *,
        on_bad_image: Literal["error", "skip"] = "error",
        max_images: int | None = None,
        channels: int | None = None,
        bits: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        skip = on_bad_image == "skip"
        archives, own = _archives(Path(path), split)
        samples, unusable = _samples(archives, skip)
        labeled = any(sample.label is not None for sample in samples)
        beside = {extension for sample in samples for extension in sample.beside}
        names = _class_names(samples)
        if names and split == "test" and own:
            train, _ = _samples(_archives(Path(path), "train")[0], skip=True)
            names = _class_names(train)
        if not own:
            keys = [sample.key.encode("utf-8", "surrogateescape") for sample in samples]
            samples = [samples[i] for i in share(keys, split)]
            if not samples:
                raise SplitError(f"no samples in the {split} split of {path}")

        good: list[_Sample] = []
        for sample in samples:
            problem = sample.problem(labeled, names, beside)
            if problem and not skip:
                kind = SplitError if sample.is_of_unknown_class(names) else BadImageError
                raise kind(f"{sample}: {problem}")
            if problem:
                unusable.append(str(sample))
            else:
                good.append(sample)
        if not good:
            raise SplitError(f"no usable samples in the {split} split of {path}")
        labels: dict[str, NDArray[np.int64]] = {}
        classes: dict[str, list[str]] = {}
        if labeled:
            ids = np.array([_class_id(sample.label, names) for sample in good], np.int64)
            labels = {"class": ids}
            classes = {"class": numbered(list(names), ids)}
        super().__init__(
            [sample.images[0] for sample in good],
            labels,
            classes,
            where=f"in {path}",
            on_bad_image=on_bad_image,
            max_images=max_images,
            channels=channels,
            bits=bits,
            progress=progress,
        )
        self.skipped = unusable + self.skipped


Label = int | str
"""A class id, or a name of a class."""


@dataclass(slots=True)
class _Sample:
    """What an archive has under one key."""

    archive: Path
    key: str
    images: list[Member] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)  # "mask.png", of images that are not the one
    label: Label | None = None
    bad_label: str = ""
    missing_bytes: bool = False

    def __str__(self) -> str:
        return f"sample {self.key} in {self.archive}"

    def problem(self, labeled: bool, names: Mapping[str, int], beside: Set[str]) -> str:
        """Why the sample cannot be used; empty if it can.

        Args:
            labeled: Whether samples have labels.
            names: Ids of the names of classes.
            beside: What samples have as `beside`.
        """
        if not self.images:
            return f"it has no image ({', '.join(SUFFIXES)})"
        if all(_extension(image) in beside for image in self.images):
            listed = ", ".join(Path(image.name).name for image in self.images)
            return f"it has no image, but what others have beside theirs: {listed}"
        if len(self.images) > 1:
            listed = ", ".join(Path(image.name).name for image in self.images)
            return f"it has more than one image: {listed}"
        if self.missing_bytes:
            return "the archive ends before the sample does"
        if self.bad_label:
            return self.bad_label
        if labeled and self.label is None:
            return "it has no label, as others have"
        if isinstance(self.label, int) and (names or not 0 <= self.label < _MOST_CLASSES):
            wrong = "is a number, others are names" if names else "is out of range"
            return f"its label {self.label} {wrong}"
        if self.is_of_unknown_class(names):
            return f"its class {self.label!r} is not among those of the training split"
        return ""

    def is_of_unknown_class(self, names: Mapping[str, int]) -> bool:
        """Whether the label is a name that the training split has not."""
        return isinstance(self.label, str) and self.label not in names


def _archives(path: Path, split: str) -> tuple[list[Path], bool]:
    """Archives to read for a split, and whether they are of that split alone."""
    if path.is_file():
        return [path], False
    if not path.is_dir():
        found = [Path(name) for name in sorted(glob.glob(str(path)))]
        if not found:
            reason = "no archives match" if glob.has_magic(str(path)) else "there is no"
            raise FileNotFoundError(f"{reason} {path}")
        return found, False
    own, where = True, path
    if split_folders(path, "train"):
        folders = split_folders(path, split)
        where = folders[0] if folders else path
        found = _tars(where) if folders else []
    else:
        found = _tars(path)
        parts = _named_splits(found)
        own = bool(parts["train"])
        found = parts[split] if own else found
    if not found:
        raise FileNotFoundError(f"no shards (.tar) of the {split} split in {where}")
    return found, own


def _extension(image: Member) -> str:
    return Path(image.name).name.partition(".")[2].lower()


def _named_splits(archives: Sequence[Path]) -> dict[str, list[Path]]:
    """Archives that have the name of a split in theirs.

    There it begins a word ("a-train-0.tar", "aTrain0.tar"), unlike in "strain-0.tar"; or archives
    of both splits have the same before it ("digitstrain-0.tar", "digitstest-0.tar").
    """
    words = {split: {a: _split_words(a.name, split) for a in archives} for split in SPLIT_NAMES}
    before = [
        {start for found in of_split.values() for start, _ in found} for of_split in words.values()
    ]
    of_both = set.intersection(*before)
    parts = {
        split: [
            archive
            for archive, found in of_split.items()
            if any(start in of_both or _begins_word(start, word) for start, word in found)
        ]
        for split, of_split in words.items()
    }
    # "test-of-train" is of the training split.
    parts["test"] = [archive for archive in parts["test"] if archive not in parts["train"]]
    return parts


def _split_words(name: str, split: str) -> list[tuple[str, str]]:
    """Names of a split in that of an archive, and before each what comes before it."""
    found = re.finditer("|".join(SPLIT_NAMES[split]), name, re.IGNORECASE)
    return [(name[: at.start()], at[0]) for at in found]


def _begins_word(start: str, word: str) -> bool:
    return not start[-1:].isalpha() or (start[-1].islower() and word[0].isupper())


def _tars(folder: Path) -> list[Path]:
    found = (e for e in folder.iterdir() if e.suffix.lower() == ".tar" and e.is_file())
    return sorted(archive for archive in found if not archive.name.startswith("."))


def _samples(archives: Sequence[Path], skip: bool) -> tuple[list["_Sample"], list[str]]:
    """Samples of all archives in order, and the archives that cannot be read if skipped."""
    samples: list[_Sample] = []
    skipped = []
    with ThreadPoolExecutor(4) as pool:
        for archive, (found, problem) in zip(archives, pool.map(_scan, archives), strict=True):
            if problem and not skip:
                raise ValueError(f"cannot read shard {archive}: {problem}")
            if problem:
                skipped.append(f"{archive} ({problem})")
            samples += found
    if not samples:
        raise ValueError(f"no samples in {len(archives)} shards, the first is {archives[0]}")
    return samples, skipped


def _scan(archive: Path) -> tuple[list["_Sample"], str]:
    """Samples of an archive in order, and why it cannot be read (to its end), if so."""
    samples: dict[str, _Sample] = {}
    problem = ""
    try:
        size = archive.stat().st_size
        with tarfile.open(archive, "r:") as tar:
            for key, extension, member in _members(tar):
                sample = samples.setdefault(key, _Sample(archive, key))
                if not member.isreg():  # a link to what the archive has not
                    continue
                place = Member(archive, member.name, member.offset_data, member.size)
                if extension in ("cls", "json"):
                    _read_label(sample, tar, member, extension)
                elif f".{extension}".endswith(SUFFIXES):
                    sample.images.append(place)
                    sample.missing_bytes |= place.offset + place.size > size
    except MemoryError:
        raise
    except Exception as error:  # tarfile raises nearly anything on damaged headers
        problem = str(error) or type(error).__name__
    for sample in samples.values():
        plain = [image for image in sample.images if Path(image.name).name.count(".") == 1]
        if len(plain) == 1:
            sample.beside = [_extension(each) for each in sample.images if each not in plain]
            sample.images = plain
    return list(samples.values()), problem or ("" if samples else "it has no samples")


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension in lower case and header of every file and link.

    A link to a file before it has that file's header, under its own name: tar stores a link where
    one file has two names.
    """
    files: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if member.issym() or member.islnk():
            start = folder if member.issym() else ""
            target = files.get(posixpath.normpath(posixpath.join(start, member.linkname)))
            if target is not None:
                name, member = member.name, copy(target)
                member.name = name
            elif not base.lower().endswith(SUFFIXES):  # to a folder, say
                continue
        elif not member.isreg():
            continue
        if member.isreg():
            files[posixpath.normpath(member.name)] = member
        if stem and extension:
            yield f"{folder}/{stem}" if folder else stem, extension.lower(), member


def _read_label(
    sample: "_Sample", tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str
) -> None:
    """Takes the label from a ``cls`` or ``json`` member; ``cls`` goes before ``json``."""
    if extension == "json" and sample.label is not None:
        return
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    try:
        value: Any = data.decode().strip() if extension == "cls" else json.loads(data)
        if isinstance(value, dict):
            value = next((value[name] for name in LABEL_FIELDS if name in value), None)
            if value is None:
                return
        if isinstance(value, str) and value.removeprefix("-").isdecimal():
            value = int(value)
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        sample.bad_label = f"{member.name} cannot be read: {error}"
        return
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        sample.bad_label = f"{member.name} has no number or name as its label, but {value!r}"
    else:
        sample.label = value
        if extension == "cls":  # whatever a json before it has
            sample.bad_label = ""


def _class_names(samples: Sequence["_Sample"]) -> dict[str, int]:
    """Ids of the names of classes, which are sorted; empty where labels are numbers."""
    names = sorted({sample.label for sample in samples if isinstance(sample.label, str)})
    return {name: i for i, name in enumerate(names)}


def _class_id(label: Label | None, names: Mapping[str, int]) -> int:
    return names[label] if isinstance(label, str) else int(label or 0)
