"""Representations of images by a frozen backbone: its features, and a method's embedding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.data import Source
from mast_ext.methods import Method
from mast_ext.models import to_channels_last


@dataclass(frozen=True)
class Features:
    """Representations of the images of one source, in its order.

    Attributes:
        backbone: Pooled features, ``[N, F]`` float32.
        embedding: The projector's output, ``[N, D]`` float32, when there is a projector.
    """

    backbone: Tensor
    embedding: Tensor | None = None


def center_views(
    source: Source,
    recipe: AugmentationRecipe,
    batch_size: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[Tensor]:
    """All images in order, as they are: the largest central square at the recipe's size.

    Args:
        source: The images.
        recipe: Gives size and normalization.
        batch_size: Images in a batch; the last one may be smaller.
        device: Where the images go.
        workers: Threads that render ahead.

    Yields:
        Normalized images ``[B, C, S, S]`` float32, channels last.
    """
    loader = build_loader(
        source,
        ComposedPolicy(recipe.only(), views=1),
        batch_size=batch_size,
        shuffle=False,
        drop_last=False,
        workers=workers,
        keep_gb=0.0,  # each is seen once
    )
    for batch in loader.on(device):
        yield batch.images[0].contiguous(memory_format=torch.channels_last)


def extract_features(
    backbone: nn.Module,
    source: Source,
    recipe: AugmentationRecipe,
    *,
    batch_size: int = 512,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Features:
    """Features of the plain center views of all images, on the CPU.

    Args:
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``; put into evaluation mode.
        source: The images.
        recipe: Gives the views' size and normalization.
        batch_size: Images per step.
        method: Its projector gives the embedding, too.
        device: Where to compute.
        workers: Threads that render ahead.
    """
    views = center_views(source, recipe, batch_size, device, workers)
    return embed_all(backbone, views, method, device)


def embed_all(
    backbone: nn.Module,
    batches: Iterable[Tensor],
    method: Method | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of batches of images ``[B, C, S, S]`` on the device, one behind the other."""
    backbone = to_channels_last(backbone.to(device)).eval()
    if method is not None:
        method = method.to(device).eval()
    features, embeddings = [], []
    # Not before: weights that are moved in inference mode cannot be trained any more.
    with torch.inference_mode():
        for images in batches:
            pooled = backbone(images)
            features.append(pooled.float().cpu())
            if method is not None:
                embeddings.append(method.embed(pooled).float().cpu())
    return Features(torch.cat(features), torch.cat(embeddings) if embeddings else None)
