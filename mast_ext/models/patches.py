"""Patches of an image inside a backbone: their features, and how to hide them from it.

A vision transformer's patches are its tokens, and a hidden one is a learned token in place of the
patch's embedding (iBOT, Zhou et al. 2022). In a convolutional network they are the cells of the
last feature map, and a hidden one is a learned color in place of its pixels. What is learned for
hidden patches belongs to whoever trains: the backbone stays as timm makes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mast_ext.checks import OptionError
from mast_ext.models.backbones import at_any_size, evaluating, feature_width


@dataclass(frozen=True)
class PatchLayout:
    """The patches of the images that a backbone is trained on.

    Attributes:
        grid: Height and width of an image in patches.
        token_dim: Width of what stands for a hidden patch: a patch embedding's in a transformer, a
            color's (as many numbers as the images have channels) in a convolutional network.
    """

    grid: tuple[int, int]
    token_dim: int


def patch_layout(backbone: nn.Module, size: int) -> PatchLayout:
    """The layout of images of ``size`` pixels a side.

    Raises:
        ValueError: The backbone is neither a vision transformer of timm's nor a network that ends
            in a feature map, drops patches at random, or does not take images of this size.
    """
    kind = type(backbone).__name__
    network: Any = backbone
    if isinstance(backbone, VisionTransformer) and not isinstance(network.patch_drop, nn.Identity):
        raise OptionError(f"{kind} drops patches (patch_drop_rate): their places would be unknown")
    weight = next(backbone.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), evaluating(backbone):
            found = network.forward_features(weight.new_zeros(1, _channels(backbone), size, size))
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise OptionError(f"{kind} gives no patches of {size} pixel images ({error})") from error
    if isinstance(backbone, VisionTransformer):
        height, width = network.patch_embed.dynamic_feat_size((size, size))
        return PatchLayout((height, width), network.embed_dim)
    width = feature_width(backbone)
    if found.ndim != 4 or found.shape[1] != width:
        raise OptionError(
            f"{kind} has no patches that can be hidden: a VisionTransformer or a network with a"
            f" feature map [N, {width}, H, W], as many as its features, is needed, got"
            f" {list(found.shape)}"
        )
    return PatchLayout((found.shape[2], found.shape[3]), _channels(backbone))


def _channels(backbone: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution."""
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def forward_patches(
    backbone: nn.Module,
    images: Tensor,
    hidden: Tensor | None = None,
    token: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of images and of all of their patches.

    Args:
        backbone: One that `patch_layout` takes.
        images: ``[N, C, S, S]``.
        hidden: Patches that the backbone is not to see, bool ``[N, H, W]``; None hides none.
        token: What stands for a hidden patch, ``[token_dim]``.

    Returns:
        Pooled features ``[N, F]``, as the backbone gives them, and patches ``[N, H, W, F]``.
    """
    network: Any = backbone
    images = images.contiguous(memory_format=torch.channels_last)
    if not isinstance(backbone, VisionTransformer):
        if hidden is not None and token is not None:
            pixels = hidden[:, None].float()
            pixels = torch.nn.functional.interpolate(pixels, images.shape[-2:])
            images = torch.where(pixels > 0, token.to(images.dtype)[:, None, None], images)
        found = network.forward_features(images)
        return network.forward_head(found), found.permute(0, 2, 3, 1)
    with _hidden_patches(network, hidden, token):
        tokens = at_any_size(network, images, network.forward_features)
    grid = network.patch_embed.dynamic_feat_size(images.shape[-2:])
    patches = tokens[:, network.num_prefix_tokens :]
    return network.forward_head(tokens), patches.unflatten(1, grid)


@contextmanager
def _hidden_patches(
    transformer: Any, hidden: Tensor | None, token: Tensor | None
) -> Iterator[None]:
    """Puts the token in place of hidden patches' embeddings, before positions are added."""
    if hidden is None or token is None:
        yield
        return

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        chosen = hidden.view(*embedded.shape[:-1], 1)
        return torch.where(chosen, token.to(embedded.dtype), embedded)

    hook = transformer.patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
