"""Backbones: timm models without a classifier, with a stem for small images.

A backbone maps images ``[B, C, S, S]`` to pooled features ``[B, F]``. What it is stands in a
`BackboneSpec`; how both are stored in a file, in `mast_ext.models.storage`.
"""

import difflib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mast_ext.checks import OptionError
from mast_ext.models.weights import load_weights

_TIMM_WEIGHTS = "checkpoint_path"  # timm's argument for a file of weights to start from


@dataclass(frozen=True)
class _Preset:
    """A timm model under a name of ours."""

    timm_name: str
    timm_args: dict[str, Any]
    stem_stride: int = 1


PRESETS = {
    # One basic block per stage, narrow, at 1/2 of a small image's resolution: made for CPUs.
    "resnet_small": _Preset(
        "resnet18",
        {
            "layers": (1, 1, 1, 1),
            "channels": (16, 32, 64, 128),
            "stem_type": "deep",
            "stem_width": 8,
        },
        stem_stride=2,
    ),
    # 64 patches of an image of 32 pixels; images of other sizes are taken, too.
    "vit_small_images": _Preset(
        "vit_tiny_patch16_224",
        {
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
            "dynamic_img_size": True,
        },
    ),
}


@dataclass(frozen=True)
class BackboneSpec:
    """All that is needed to rebuild a backbone (without its weights).

    Attributes:
        name: A timm model's name, or a preset of ours (``resnet_small``, ``vit_small_images``).
        small_images: For ResNets: a 3x3 stem without max-pool, of stride 1 (stride 2 in
            ``resnet_small``), instead of the 7x7 stride-2 stem with max-pool.
        timm_args: Further arguments of ``timm.create_model`` (``img_size``, ``patch_size``, …).
            A file of weights (``checkpoint_path``) is left out: the weights themselves are stored.

    Raises:
        TypeError: An attribute has another type.
    """

    name: str = "resnet_small"
    small_images: bool = True
    timm_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"name": str, "small_images": bool, "timm_args": dict}
        for name, kind in kinds.items():  # a file may hold anything
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
        # Files of older runs still name the file that they started from.
        own = {name: value for name, value in self.timm_args.items() if name != _TIMM_WEIGHTS}
        object.__setattr__(self, "timm_args", own)

    @property
    def channels(self) -> int:
        """Channels of the images that the backbone takes."""
        return int(self.timm_args.get("in_chans", 3))

    def create(self) -> nn.Module:
        """The backbone with random weights; errors as `create_backbone`."""
        return create_backbone(self.name, self.small_images, **self.timm_args)[0]


def create_backbone(
    name: str, small_images: bool = False, *, weights: str | Path | None = None, **timm_args: Any
) -> tuple[nn.Module, int]:
    """A backbone and its number of features.

    Args:
        name: A timm model's name, or one made for small images on a CPU: ``resnet_small``, a
            narrow ResNet of four basic blocks (0.3 million parameters), or ``vit_small_images``, a
            vision transformer of four blocks on patches of 4 pixels (0.8 million), both with 128
            features.
        small_images: See `BackboneSpec`.
        weights: A file with weights to start from, see `load_weights`; random ones by default.
        **timm_args: Passed to ``timm.create_model``. Nothing is fetched from a network.
            ``checkpoint_path`` is another name of ``weights``.

    Returns:
        The module, images ``[B, C, S, S]`` (``C`` is ``in_chans``, by default 3) to features
        ``[B, F]``, and ``F``.

    Raises:
        ValueError: Unknown name, arguments that the model does not take or that leave it without
            pooled features, ``small_images`` for a model that is not a ResNet, or weights that are
            not those of this model (with ``small_images``: of its stem, too).
        FileNotFoundError: There is no file of weights.
    """
    weights = timm_args.pop(_TIMM_WEIGHTS, "") or weights
    preset = PRESETS.get(name, _Preset(name, {}))
    if preset.timm_name not in timm.list_models():
        close = difflib.get_close_matches(name, [*PRESETS, *timm.list_models()], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise OptionError(f"no backbone is called {name!r} in timm{hint}")
    if "pretrained" in timm_args:
        raise OptionError(
            "pretrained is not an option, since nothing is fetched; weights names a file instead"
        )
    arguments = {**preset.timm_args, **timm_args, "num_classes": 0, "pretrained": False}
    backbone: Any
    try:
        backbone = timm.create_model(preset.timm_name, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # timm checks few of its arguments, and fails in many ways
        if not timm_args:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise OptionError(f"timm cannot build {name!r} with {timm_args}: {reason}") from error
    # Neither features_only nor a global_pool of "" leaves one vector per image.
    if not hasattr(backbone, "num_features") or timm_args.get("global_pool", "avg") == "":
        raise OptionError(f"{name!r} with {timm_args} gives no pooled features")
    if small_images:
        _use_small_stem(backbone, name, preset.stem_stride)
    if weights:
        load_weights(backbone, Path(weights))
    return backbone, feature_width(backbone)


def feature_width(backbone: nn.Module) -> int:
    """The number of features that a timm model gives without its classifier.

    It differs from ``num_features`` where a layer stands between pooling and classifier, or where
    pooling gives two numbers per channel (average and maximum).
    """
    network: Any = backbone
    hidden = getattr(network, "head_hidden_size", None)
    if hidden not in (None, network.num_features):
        return int(hidden)
    pools = [m for m in backbone.modules() if isinstance(m, SelectAdaptivePool2d)]
    return int(network.num_features) * (pools[-1].feat_mult() if pools else 1)


def is_resnet(name: str) -> bool:
    """Whether a model is a ResNet of timm's, which `BackboneSpec.small_images` needs."""
    timm_name = PRESETS[name].timm_name if name in PRESETS else name
    return timm.models.is_model_in_modules(timm_name, ["resnet", "resnest", "res2net", "sknet"])


def to_channels_last(backbone: nn.Module) -> nn.Module:
    """The backbone with its convolutions' weights in the layout that is fast on CPUs and GPUs."""
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Puts modules in evaluation mode, and those that were not back in training mode after it."""
    training = {m for network in networks for m in network.modules() if m.training}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def forward_views(network: nn.Module, views: Tensor) -> Tensor:
    """``[V, B, C, S, S]`` to ``[V, B, F]``, as one batch: batch norm sees all views together."""
    images = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return at_any_size(network, images).unflatten(0, views.shape[:2])


def at_any_size(
    network: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Calls a network on images of any size that it takes, deterministically.

    timm interpolates the position embeddings of a transformer with ``dynamic_img_size`` by an
    operator whose gradient torch refuses to compute deterministically on a GPU. Here the same
    interpolation is a matrix product, and timm gets position embeddings that fit.

    Args:
        network: Any network; only timm's transformers need this.
        images: ``[N, C, S, S]``.
        function: A method of the network to call instead, such as ``forward_features``.
    """
    transformer: Any = network
    function = network if function is None else function
    if not isinstance(network, VisionTransformer) or not transformer.dynamic_img_size:
        return function(images)
    patches, positions = transformer.patch_embed, transformer.pos_embed
    own, grid = patches.grid_size, patches.dynamic_feat_size(images.shape[-2:])
    if positions is None or tuple(own) == tuple(grid):
        return function(images)
    prefix = 0 if transformer.no_embed_class else transformer.num_prefix_tokens
    precise = torch.promote_types(positions.dtype, torch.float32)
    matrix = _interpolation(tuple(own), tuple(grid)).to(positions.device, precise)
    with torch.autocast(positions.device.type, enabled=False):
        of_patches = (matrix @ positions[:, prefix:].to(precise)).to(positions.dtype)
        moved = torch.cat((positions[:, :prefix], of_patches), dim=1)
    patches.grid_size = grid
    try:
        caller = _Caller(network, function)
        return torch.func.functional_call(caller, {"network.pos_embed": moved}, (images,))
    finally:
        patches.grid_size = own


class _Caller(nn.Module):
    """Calls a function of a network as a module, since `functional_call` takes modules only."""

    function: Callable[[Tensor], Tensor]

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        object.__setattr__(self, "function", function)  # which may be the network itself

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _interpolation(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic antialiased interpolation between grids, ``[new patches, old patches]`` float32."""
    count = old[0] * old[1]
    images = torch.eye(count, dtype=torch.float32, device="cpu").view(count, 1, *old)
    moved = nn.functional.interpolate(images, new, mode="bicubic", antialias=True)
    return moved.flatten(1).T.contiguous()


def _use_small_stem(backbone: nn.Module, name: str, stride: int) -> None:
    if not isinstance(backbone, ResNet):
        raise OptionError(
            f"small_images changes the stem of ResNets, and {name!r} is none; set it to false"
            " (a vision transformer takes img_size and patch_size in timm_args)"
        )
    resnet: Any = backbone  # timm declares narrower types than it uses
    if isinstance(resnet.conv1, nn.Sequential):
        first: Any = resnet.conv1[0]
        first.stride = (stride, stride)
    else:
        channels = resnet.conv1.in_channels, resnet.conv1.out_channels
        stem = nn.Conv2d(*channels, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        resnet.conv1 = stem
    resnet.maxpool = nn.Identity()
