"""Checkpoints: written in one step, read without running code, refused when they are not ours.

A checkpoint is Lightning's (weights, optimizer, schedule, loops) with a section ``mast_ext`` that
says which run it belongs to, where in the data it stands, and the state of every random number
generator of every process. The first process writes; all of them must see the file to resume.
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from mast_ext.models.weights import NO_TORCHSCRIPT, difference, is_torchscript
from mast_ext.train.errors import CheckpointError
from mast_ext.train.state.run_directory import make_folder, replacing

FORMAT = "mast_ext.checkpoint.1"

_PARTS = (
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step"),
    *("epoch", "pytorch-lightning_version"),
)
_OWN_PARTS = ("identity", "loader", "generators")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, read with ``weights_only=True``.

    Raises:
        CheckpointError: There is no such file, it is damaged, or another program wrote it.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no run or checkpoint at {path}")
    if is_torchscript(path):
        raise CheckpointError(NO_TORCHSCRIPT.format(path=path))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the unpickler raises nearly anything on foreign bytes
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of mast-ext ({type(error).__name__})"
        ) from error
    header = checkpoint.get("mast_ext") if isinstance(checkpoint, dict) else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of mast-ext: another program wrote it")
    return checkpoint


def check_belongs(checkpoint: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """Raises a CheckpointError unless the checkpoint was made by a run of this identity.

    It has to be complete, too.
    """
    for part, names in (("", _PARTS), ("mast_ext/", _OWN_PARTS)):
        section = checkpoint["mast_ext"] if part else checkpoint
        if missing := [part + name for name in names if name not in section]:
            raise CheckpointError(f"{path} is not whole: it has no {', '.join(missing)}")
    for name, value in identity.items():
        found = checkpoint["mast_ext"]["identity"].get(name)
        if found != value and name == "images":
            raise CheckpointError(
                f"{path} is of a run on {found} training images, and there are {value} now: "
                "bring back those of then, or begin a new run"
            )
        if found != value:
            raise CheckpointError(
                f"{path} belongs to another run: its {name} is {found}, this run's is {value}"
            )


def check_weights(weights: dict[str, Any], expected: dict[str, Tensor], path: Path) -> None:
    """Raises a CheckpointError unless the weights of a checkpoint are those that are expected.

    Those of another version of the program may have other names.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if problem := difference(expected, tensors):
        raise CheckpointError(f"{path} does not fit the run's settings: {problem}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, forces it to the disk, then moves it there.

    On a full disk it leaves nothing beside, and the checkpoint before stays.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        make_folder(path.parent)
        with replacing(path) as partial, _failures_of_the_disk(), partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


@contextmanager
def _failures_of_the_disk() -> Iterator[None]:
    """Raises the OSError that torch's writer met: it fails once more when it closes the file."""
    try:
        yield
    except RuntimeError as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, OSError):
            behind = behind.__cause__ or behind.__context__
        if behind is not None:
            raise behind from None
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise OSError(errno.EIO, "perhaps there is no space left on the disk") from error
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copies a file in one step.

    The copy is a second name where the file system has hard links, since checkpoints are replaced
    and never written into.

    Raises:
        RunError: The copy cannot be written.
    """
    with replacing(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def generator_states() -> dict[str, Any]:
    """The states of this process's random number generators."""
    kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Puts this process's random number generators into states of `generator_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
