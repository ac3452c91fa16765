"""Image files under a folder, with their classes when sub-folders name them."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mast_ext.data.encoded import SUFFIXES, UNREAD_SUFFIXES, EncodedSource, SplitError, is_image

TEST_FRACTION = 0.1
"""Share of the images that is the test split of a folder which has no split of its own."""

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
"""Names of the folders of each split."""


class FolderSource(EncodedSource):
    """Images of a folder in one of three layouts.

    ``DIR/train`` beside ``DIR/test`` or ``DIR/val``, each with one folder per class or with files
    only; ``DIR/<class>/``; or files directly under ``DIR``. In the last two a tenth of each class
    (chosen by a hash of the names) is the test split. Names that start with a dot are ignored.

    Args:
        path: The folder.
        split: ``"train"`` or ``"test"``.
        on_bad_image: ``"error"`` raises for a file that cannot be decoded (a large image whose
            header is sound: when it is first used); ``"skip"`` leaves such files out.
        max_images: Keep at most this many, spread evenly over the sorted files.

    Attributes:
        files: Paths of the images, in order.
        skipped: Names of the files that were left out.
        unread: How many files of pictures of other kinds there are, by their endings. Those of a
            folder without splits count for ``"train"``.

    Raises:
        FileNotFoundError: The folder, or the split in it, does not exist.
        SplitError: The split has no images, or classes that the training split has not.
        ValueError: The layout is ambiguous.
        BadImageError: A file cannot be decoded and ``on_bad_image`` is ``"error"``.
    """

    name = "folder"

    def __init__(
        self,
        path: str | Path,
        split: Literal["train", "test"],
        *,
        on_bad_image: Literal["error", "skip"] = "error",
        max_images: int | None = None,
    ) -> None:
        self.unread: Counter[str] = Counter()
        paths, ids, names = _select(Path(path), split, self.unread)
        super().__init__(
            paths,
            {"class": ids} if names else {},
            {"class": names} if names else {},
            where=f"under {path}",
            on_bad_image=on_bad_image,
            max_images=max_images,
        )


def _select(
    root: Path, split: str, unread: Counter[str]
) -> tuple[list[Path], NDArray[np.int64], list[str]]:
    """Files of a split, their class ids ``[N]`` and the names of the classes ([] without).

    Counts pictures of other kinds in ``unread``.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {root} {reason}")
    if not (root / "train").is_dir():
        files = _list(root, unread if split == "train" else Counter())
        paths, names = _split(files, root, split), list(files)
        where = f"the {split} split of {root}"
    else:
        folders = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
        if not folders:
            wanted = " or ".join(f"{name}/" for name in SPLIT_FOLDERS[split])
            raise FileNotFoundError(f"image folder {root} has train/ but no {wanted}")
        paths = _list(folders[0], unread)
        names = list(paths if split == "train" else _list(root / "train", Counter()))
        where = str(folders[0])
        unknown = [name or "files without a class" for name in paths if name not in names]
        if unknown:
            raise SplitError(f"{where} has classes that train/ has not: {', '.join(unknown)}")
    flat = [path for members in paths.values() for path in members]
    if not flat:
        others = f", but {unread.total()} of other kinds ({', '.join(unread)})" if unread else ""
        raise SplitError(f"no images ({', '.join(SUFFIXES)}) in {where}{others}")
    ids = [names.index(name) for name, members in paths.items() for _ in members]
    return flat, np.array(ids, np.int64), [] if names == [""] else names


def _list(folder: Path, unread: Counter[str]) -> dict[str, list[Path]]:
    """Sorted image files of every class under a folder; the class is "" for loose files.

    Counts pictures of other kinds in ``unread``.
    """
    loose: list[Path] = []
    classes: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = sorted(_walk(entry, unread))
            if files:
                classes[entry.name] = files
        elif _counts(entry.name, unread):
            loose.append(entry)
    if loose and classes:
        raise ValueError(
            f"image folder {folder} has images beside class folders ({loose[0].name} beside "
            f"{next(iter(classes))}/): move them into a class, or all into one folder"
        )
    return classes or ({"": loose} if loose else {})


def _split(files: dict[str, list[Path]], root: Path, split: str) -> dict[str, list[Path]]:
    """A tenth of each class as the test split, the rest as train; by a hash of the names."""

    def rank(path: Path) -> tuple[int, Path]:
        return zlib.crc32(os.fsencode(path.relative_to(root).as_posix())), path

    chosen = {}
    for name, members in files.items():
        count = max(round(TEST_FRACTION * len(members)), 1) if len(members) > 1 else 0
        test = set(sorted(members, key=rank)[:count])
        chosen[name] = [path for path in members if (path in test) == (split == "test")]
    return chosen


def _walk(folder: Path, unread: Counter[str]) -> Iterator[Path]:
    """Image files at any depth under a folder. Counts pictures of other kinds."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # not to be entered
        yield from (Path(parent, name) for name in names if _counts(name, unread))


def _counts(name: str, unread: Counter[str]) -> bool:
    """Whether a file of this name counts as an image. Counts it if it is of another kind."""
    ending = os.path.splitext(name)[1].lower()
    if ending in UNREAD_SUFFIXES and not name.startswith("."):
        unread[ending] += 1
    return is_image(name)
