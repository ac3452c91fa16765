"""Backbones in files: the weights, and in the file's metadata what they are the weights of.

So a file alone is enough to rebuild its backbone. Weights without metadata are read by
`mast_ext.models.weights`.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from safetensors.torch import save
from torch import nn

from mast_ext.models.backbones import BackboneSpec
from mast_ext.models.images import ImageFormat
from mast_ext.models.weights import (
    FORMAT,
    backbone_file,
    load_weights,
    put_weights,
    read_safetensors,
)


def save_backbone(
    backbone: nn.Module,
    spec: BackboneSpec,
    path: str | os.PathLike[str],
    images: ImageFormat | None = None,
) -> None:
    """Writes the weights and the spec to a safetensors file, in one step (never half a file).

    Args:
        backbone: What the spec describes.
        spec: See `BackboneSpec`.
        path: The file.
        images: What it was trained on, to be stored, too.
    """
    tensors = {name: value.contiguous().cpu() for name, value in backbone.state_dict().items()}
    metadata = {"format": FORMAT, "backbone": json.dumps(dataclasses.asdict(spec))}
    if images is not None:
        metadata["images"] = json.dumps(dataclasses.asdict(images))
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(_in_order(save(tensors, metadata=metadata)))
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # of a file system that has become read-only
            partial.unlink(missing_ok=True)
        raise


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted, which safetensors writes in random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))


def load_backbone(path: str | os.PathLike[str]) -> tuple[nn.Module, BackboneSpec]:
    """A backbone with the weights of a file that `save_backbone` wrote.

    Args:
        path: The file, or the directory of a run that has left it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not one of `save_backbone`'s, or does not fit its own spec.
    """
    path = backbone_file(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a backbone of mast_ext (its metadata names none)")
    try:
        spec = BackboneSpec(**json.loads(metadata["backbone"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not say which backbone it holds: {error}") from error
    backbone = spec.create()
    put_weights(backbone, tensors, path)
    return backbone, spec


def stored_image_format(path: str | os.PathLike[str]) -> ImageFormat | None:
    """The images that a file of `save_backbone` is for; None if it does not say.

    Args:
        path: The file, or the directory of a run that has left it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or what it says is damaged.
    """
    path = backbone_file(path)
    _, metadata = read_safetensors(path)
    if "images" not in metadata:
        return None
    try:
        return ImageFormat.parse(json.loads(metadata["images"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not say which images it takes: {error}") from error


def load_timm_folder(
    path: str | os.PathLike[str],
) -> tuple[nn.Module, BackboneSpec, ImageFormat]:
    """A backbone from a folder as timm writes them for its hub, and as `export_backbone` does.

    Args:
        path: A folder with ``config.json`` (timm's: ``architecture``, ``pretrained_cfg`` and
            perhaps ``model_args``) and weights, ``model.safetensors`` or ``pytorch_model.bin``.

    Returns:
        The backbone without its classifier, what it is, and which images it takes.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: They are not timm's, or do not fit each other.
    """
    path = Path(path)
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no backbone of timm: it has no config.json")
    try:
        config = json.loads(file.read_bytes())
        spec = BackboneSpec(config["architecture"], False, config.get("model_args", {}))
        images = config["pretrained_cfg"]
        images = {"size": images["input_size"][-1], "mean": images["mean"], "std": images["std"]}
        found = ImageFormat.parse(images)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} does not describe a backbone of timm ({type(error).__name__}: {error})"
        ) from error
    weights = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
    if not (present := [each for each in weights if each.is_file()]):
        raise FileNotFoundError(f"{path} has no weights: model.safetensors or pytorch_model.bin")
    backbone = spec.create()
    load_weights(backbone, present[0])
    return backbone, spec, found
