"""Image files under a folder, with their classes when sub-folders name them."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mast_ext.data.encoded import EncodedSource, Progress
from mast_ext.data.files import ARRAY_SUFFIXES, SUFFIXES, UNREAD_SUFFIXES
from mast_ext.data.splits import FOLDER_NAMES, SplitError, share, split_folders


class FolderSource(EncodedSource):
    """Images of a folder in one of three layouts.

    ``DIR/train`` beside ``DIR/test`` or ``DIR/val``, each with one folder per class or with files
    only; ``DIR/<class>/``; or files directly under ``DIR``. In the last two a tenth of each class
    (chosen by a hash of the names) is the test split. Names that start with a dot are ignored, and
    links are followed.
    ``training``, ``testing``, ``valid`` and ``validation`` are names of splits, too, in any case of
    letters. Of several test folders the first counts that has images; one without a class of the
    training split (files without labels, say) is passed over.
    Where there are no image files, ``.npy`` files are the images: each an array ``[H, W]`` or
    ``[H, W, C]`` of uint8 or uint16.

    Args:
        path: The folder.
        split: ``"train"`` or ``"test"``.
        on_bad_image: ``"error"`` raises for a file that cannot be decoded (a large image whose
            header is sound: when it is first used); ``"skip"`` leaves such files out.
        max_images: Keep at most this many, spread evenly over the sorted files.
        channels: Of the images, 1 or 3 for pictures that are gray or in color; by default their
            own, 3 where some are gray.
        bits: Likewise, 8 or 16; by default 16 if all files have them, else 8.
        progress: Called with how many of how many files have been read.

    Attributes:
        files: Paths of the images, in order.
        skipped: Names of the files that were left out.
        unread: How many files of pictures of other kinds there are, by their endings. Those of a
            folder without splits count for ``"train"``.
        beside: Folders with images beside that of the training split, which are of no split.

    Raises:
        FileNotFoundError: The folder, or the split in it, does not exist.
        SplitError: The split has no images, or classes that the training split has not.
        ValueError: The layout is ambiguous, or images have different numbers of channels.
        BadImageError: A file cannot be decoded and ``on_bad_image`` is ``"error"``.
        OSError: A folder cannot be read.
    """

    name = "folder"

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
        self.unread: Counter[str] = Counter()
        paths, ids, names = _select(Path(path), split, self.unread)
        self.beside: list[str] = []
        if split == "train":
            arrays = paths[0].name.lower().endswith(ARRAY_SUFFIXES)
            self.beside = _beside(Path(path), ARRAY_SUFFIXES if arrays else SUFFIXES)
        super().__init__(
            paths,
            {"class": ids} if names else {},
            {"class": names} if names else {},
            where=f"under {path}",
            on_bad_image=on_bad_image,
            max_images=max_images,
            channels=channels,
            bits=bits,
            progress=progress,
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
    for suffixes in (SUFFIXES, ARRAY_SUFFIXES):
        paths, names, where = _files(root, split, suffixes, unread)
        flat = [path for members in paths.values() for path in members]
        if flat:
            break
    else:
        others = f", but {unread.total()} of other kinds ({', '.join(unread)})" if unread else ""
        kinds = ", ".join((*SUFFIXES, *ARRAY_SUFFIXES))
        raise SplitError(f"no images ({kinds}) in {where}{others}")
    ids = [i for name, members in paths.items() for i in [names.index(name)] * len(members)]
    return flat, np.array(ids, np.int64), [] if names == [""] else names


def _files(
    root: Path, split: str, suffixes: Sequence[str], unread: Counter[str]
) -> tuple[dict[str, list[Path]], list[str], str]:
    """Files of a split by class, the classes of the training split, and where it was looked."""
    training = split_folders(root, "train")[:1]
    if not training:
        files = _list(root, suffixes, unread if split == "train" else Counter())
        return _split(files, root, split), list(files), f"the {split} split of {root}"
    if split == "train":
        paths = _list(training[0], suffixes, unread)
        return paths, list(paths), str(training[0])
    name = f"{training[0].name}/"
    names = list(_list(training[0], suffixes, Counter()))
    folders = split_folders(root, split)
    if not folders:
        accepted = "/, ".join(FOLDER_NAMES[split])
        raise FileNotFoundError(f"image folder {root} has {name} but none of {accepted}/")
    misfit = ""
    for folder in folders:
        paths = _list(folder, suffixes, unread)
        unknown = [each or "files without a class" for each in paths if each not in names]
        if paths and not unknown:
            return paths, names, str(folder)
        if unknown:
            misfit = misfit or f"{folder} has classes that {name} has not: {', '.join(unknown)}"
            if len(unknown) < len(paths):
                break
    if misfit:
        raise SplitError(misfit)
    return {}, names, " or ".join(map(str, folders))


def _beside(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Names of folders with images beside that of the training split, which are of no split.

    Deeper folders than those in them are not looked into: there may be much that is no image.
    """
    if not split_folders(root, "train"):
        return []
    splits = {each for split in ("train", "test") for each in split_folders(root, split)}
    others = sorted(each for each in root.iterdir() if each.is_dir() and each not in splits)
    return [
        each.name
        for each in others
        if not each.name.startswith(".")
        and any(
            file.name.lower().endswith(tuple(suffixes))
            for pattern in ("[!.]*", "[!.]*/[!.]*")
            for file in each.glob(pattern)
        )
    ]


def _list(folder: Path, suffixes: Sequence[str], unread: Counter[str]) -> dict[str, list[Path]]:
    """Sorted image files of every class under a folder; the class is "" for loose files.

    Counts pictures of other kinds in ``unread``.
    """
    unread.clear()
    loose: list[Path] = []
    classes: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # In the order of their parts, as paths are compared, which is slower.
            names = sorted(_walk(entry, suffixes, unread), key=lambda name: name.split(os.sep))
            if names:
                classes[entry.name] = [Path(name) for name in names]
        elif _counts(entry.name, suffixes, unread):
            loose.append(entry)
    if loose and classes:
        raise ValueError(
            f"image folder {folder} has images beside class folders ({loose[0].name} beside "
            f"{next(iter(classes))}/): move them into a class, or all into one folder"
        )
    return classes or ({"": loose} if loose else {})


def _split(files: dict[str, list[Path]], root: Path, split: str) -> dict[str, list[Path]]:
    """A tenth of each class as the test split, the rest as train; by a hash of the names."""
    start = len(os.fsencode(root / "x")) - 1  # of the names in the root
    chosen = {}
    for name, members in files.items():
        kept = share([os.fsencode(path)[start:] for path in members], split)
        chosen[name] = [members[i] for i in kept]
    return chosen


def _walk(
    folder: str | Path, suffixes: Sequence[str], unread: Counter[str], above: Sequence[str] = ()
) -> Iterator[str]:
    """Image files at any depth under a folder. Counts pictures of other kinds.

    Links are followed, but not back to a folder that the walk is in: it would not end. A folder
    that cannot be read is an OSError, which `os.walk` would pass over.
    """
    real = os.path.join(os.path.realpath(folder), "")
    if any(each.startswith(real) for each in above):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from _walk(entry.path, suffixes, unread, (*above, real))
            elif _counts(entry.name, suffixes, unread):
                yield entry.path


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is one, or a link to one. A link that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _counts(name: str, suffixes: Sequence[str], unread: Counter[str]) -> bool:
    """Whether a file of this name counts as an image. Counts it if it is of another kind."""
    ending = os.path.splitext(name)[1].lower()
    if ending in UNREAD_SUFFIXES and not name.startswith("."):
        unread[ending] += 1
    return ending in suffixes and not name.startswith(".")
