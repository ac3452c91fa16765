"""Rebuilds trained networks: from what a run leaves, from timm's folders, from bare weights."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import seed_everything
from timm.data import resolve_model_data_config
from torch import nn

from mast_ext.methods import Method
from mast_ext.models import (
    BackboneSpec,
    ImageFormat,
    load_backbone,
    load_timm_folder,
    load_weights,
    stored_image_format,
)
from mast_ext.models.backbones import PRESETS
from mast_ext.train.config import PretrainConfig, WeightsConfig
from mast_ext.train.networks import build_networks, image_format
from mast_ext.train.state.checkpoint import check_belongs, check_weights, read_checkpoint


@dataclass(frozen=True)
class Restored:
    """Trained networks.

    Attributes:
        name: The method they were trained with, or the file's name.
        backbone: The trained backbone.
        spec: What it is.
        untrained: The same architecture as training began with it.
        method: The trained heads, when they were stored.
        start: What tables call ``untrained``.
        images: What images the backbone takes, where that is known.
    """

    name: str
    backbone: nn.Module
    spec: BackboneSpec
    untrained: nn.Module
    method: Method | None = None
    start: str = "untrained"
    images: ImageFormat | None = None


def restore_checkpoint(path: Path, config: PretrainConfig) -> Restored:
    """The networks of a checkpoint of a run with these settings.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, or does not fit the settings.
    """
    checkpoint = read_checkpoint(path)
    networks = build_networks(config)
    name = networks.name
    check_belongs(checkpoint, {"method": name}, path)
    both = nn.ModuleDict({"backbone": networks.backbone, "method": networks.method})
    teachers = ("teacher.", "gram_teacher.")  # which train and are not evaluated
    weights = checkpoint["state_dict"].items()
    weights = {name: value for name, value in weights if not name.startswith(teachers)}
    check_weights(weights, both.state_dict(), path)
    both.load_state_dict(weights)
    return Restored(
        name,
        networks.backbone,
        networks.spec,
        build_networks(config).backbone,
        networks.method,
        config.model.start,
        image_format(config.augment),
    )


def restore_backbone(path: Path) -> Restored:
    """The backbone of a ``backbone.safetensors``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a backbone of ours.
    """
    return _restored(path, *load_backbone(path), stored_image_format(path))


def restore_timm(path: Path) -> Restored:
    """The backbone of a folder that ``mast-ext export --format timm`` or timm has written.

    Raises:
        FileNotFoundError: A file is missing in it.
        ValueError: It is none of timm's, or its files do not fit each other.
    """
    return _restored(path, *load_timm_folder(path))


def restore_weights(path: Path, model: WeightsConfig) -> Restored:
    """The backbone of a timm model with weights from a file, see `load_weights`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such model, or the weights are not of this one.
    """
    spec = BackboneSpec(str(model.name), model.small_images, dict(model.timm_args))
    backbone = spec.create()
    load_weights(backbone, path)
    return _restored(path, backbone, spec, _images_of_timm(backbone, spec))


def _restored(
    path: Path, backbone: nn.Module, spec: BackboneSpec, images: ImageFormat | None
) -> Restored:
    # The file names no seed: that of a run by default, so that every evaluation gives the same.
    seed_everything(PretrainConfig().seed, workers=True, verbose=False)
    return Restored(path.name, backbone, spec, spec.create(), images=images)


def _images_of_timm(backbone: nn.Module, spec: BackboneSpec) -> ImageFormat | None:
    """The images that timm's own weights of a model are made for."""
    if spec.small_images or spec.name in PRESETS:
        return None
    found = resolve_model_data_config(backbone)
    return ImageFormat(found["input_size"][-1], tuple(found["mean"]), tuple(found["std"]))
