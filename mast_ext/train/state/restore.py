"""Rebuilds trained networks from what a run leaves: its checkpoints or its backbone file."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import seed_everything
from torch import nn

from mast_ext.methods import Method
from mast_ext.models import load_backbone
from mast_ext.train.config import PretrainConfig
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import check_belongs, check_weights, read_checkpoint


@dataclass(frozen=True)
class Restored:
    """Trained networks.

    Attributes:
        name: The method they were trained with, or the file's name.
        backbone: The trained backbone.
        untrained: The same architecture as training began with it.
        channels: Of the images that it takes.
        method: The trained heads, when they were stored.
        start: What tables call ``untrained``.
    """

    name: str
    backbone: nn.Module
    untrained: nn.Module
    channels: int
    method: Method | None = None
    start: str = "untrained"


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
    untrained = build_networks(config).backbone
    channels = networks.spec.channels
    return Restored(
        name, networks.backbone, untrained, channels, networks.method, config.model.start
    )


def restore_backbone(path: Path) -> Restored:
    """The backbone of a ``backbone.safetensors``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a backbone of ours.
    """
    backbone, spec = load_backbone(path)
    # The file names no seed: that of a run by default, so that every evaluation gives the same.
    seed_everything(PretrainConfig().seed, workers=True, verbose=False)
    return Restored(path.name, backbone, spec.create(), spec.channels)
