"""Reads weights from files, without running what is in them, and puts them into a backbone."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from mast_ext.checks import OptionError

FORMAT = "mast_ext.backbone.1"
BACKBONE_FILE = "backbone.safetensors"
"""What every run leaves in its directory."""

NO_TORCHSCRIPT = (
    "{path} is a TorchScript file, which is not read: give the run that it was exported from, or"
    " weights saved by safetensors or torch.save"
)

_SHOWN = 3  # names in a message


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no backbone file at {path}")
    try:
        data = path.read_bytes()  # safetensors opens no path that is not UTF-8
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except SafetensorError as error:
        raise OptionError(f"{path} is not a safetensors file: {error}") from error
    return tensors, header.get("__metadata__", {})


def backbone_file(path: str | os.PathLike[str]) -> Path:
    """A file of weights; of a directory, which is a run's, the one that a run leaves in it."""
    path = Path(path)
    return path / BACKBONE_FILE if path.is_dir() else path


def load_weights(backbone: nn.Module, path: str | os.PathLike[str]) -> None:
    """Puts the weights of a file into a backbone, all of them or none.

    Args:
        backbone: A timm model without a classifier.
        path: A run's directory or its ``backbone.safetensors``, a checkpoint of a run, or weights
            of the same model as timm names them, saved by safetensors or ``torch.save``. Those of
            a classifier are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no weights, or not those of this backbone.
    """
    path = backbone_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        found, metadata = read_safetensors(path)
    else:
        found = _read_torch(path)
    classifiers = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    outer = tuple(f"{name}." for name in classifiers)
    tensors = {name: value for name, value in found.items() if not name.startswith(outer)}
    # Files from before PyTorch 0.4.1, torchvision's among them, lack the number of batches that a
    # batch norm has seen, which only one without momentum uses.
    for name, value in backbone.state_dict().items():
        if name.endswith(".num_batches_tracked"):
            tensors.setdefault(name, value)
    spec = metadata.get("backbone")
    put_weights(backbone, tensors, path, f"; it is of the backbone {spec}" if spec else "")


def put_weights(
    backbone: nn.Module, tensors: dict[str, Tensor], path: Path, hint: str = ""
) -> None:
    """Puts weights into a backbone, all of them or none.

    Raises:
        ValueError: They are not those of this backbone; the message names the file they are from
            and ends with the hint.
    """
    problem = difference(backbone.state_dict(), tensors)
    if problem:
        raise OptionError(f"the weights in {path} do not fit the backbone: {problem}{hint}")
    backbone.load_state_dict(tensors)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a program, which weights are not read from: `torch.load` would warn."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # on foreign bytes it raises more than BadZipFile
        return False


def _read_torch(path: Path) -> dict[str, Tensor]:
    if is_torchscript(path):
        raise OptionError(NO_TORCHSCRIPT.format(path=path))
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises nearly anything on foreign bytes
        raise OptionError(
            f"{path} is damaged or holds more than weights ({type(error).__name__})"
        ) from error
    ours = isinstance(content, dict) and "mast_ext" in content
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise OptionError(f"{path} holds no weights by name, but a {type(content).__name__}")
    prefix = "backbone." if ours else "module."  # that of DistributedDataParallel
    if ours:
        content = {name: value for name, value in content.items() if name.startswith(prefix)}
    tensors = {str(name).removeprefix(prefix): value for name, value in content.items()}
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise OptionError(f"{path} holds other things than weights by name")
    return tensors


def difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Why tensors are not those that are expected; empty if they are."""
    shapes = {
        name: (value.shape, found[name].shape)
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    }
    if shapes:
        told = [
            f"{name} must have shape {list(ours)}, got {list(theirs)}"
            for name, (ours, theirs) in shapes.items()
        ]
        return _some(told) + _hint(shapes)
    if missing := [name for name in expected if name not in found]:
        return f"it has no {_some(missing)}"
    if unknown := [name for name in found if name not in expected]:
        return f"there is no place for {_some(unknown)}"
    return ""


def _hint(shapes: dict[str, tuple[torch.Size, torch.Size]]) -> str:
    """What may be the reason for shapes that differ, the backbone's and the file's by name."""
    (ours, theirs), *others = shapes.values()
    alike = len(ours) == len(theirs) == 4 and (ours[0], *ours[2:]) == (theirs[0], *theirs[2:])
    if alike and not others:
        return f" (the weights take images of {theirs[1]} channels, the backbone of {ours[1]})"
    if any(name.startswith("conv1.") for name in shapes):
        return " (small_images changes the stem: set it to what the weights have)"
    return ""


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
