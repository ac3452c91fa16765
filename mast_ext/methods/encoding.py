"""Sends a batch's views through the student's and the teacher's backbone, for `Method.forward`.

Views of one size are one batch to a backbone. The teacher sees full-size views only, and all their
patches; the student does not see those that the batch's masks hide.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mast_ext.augment import HiddenPlaces, ViewBatch
from mast_ext.methods.method import AnchoredPatches, Encoded, HiddenPatches, Method
from mast_ext.models import EMATeacher, forward_patches, forward_views


def encode(
    method: Method,
    backbone: nn.Module,
    teacher: nn.Module | None,
    batch: ViewBatch,
    *,
    gram_teacher: EMATeacher | None = None,
    taught: slice | None = None,
    with_center: bool | None = None,
) -> Encoded:
    """Sends a batch's views through the backbones.

    Args:
        method: Says which views it wants.
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``.
        teacher: Images to the teacher's embeddings ``[N, D]``; of a method that hides patches an
            `EMATeacher` of the backbone and a head.
        batch: The views.
        gram_teacher: A backbone of an earlier step, for patches to be anchored to; None for none.
        taught: Which full-size views the teacher embeds; by default those that the method wants.
        with_center: Whether the last full-size view is the plain one; by default as the method
            wants it.
    """
    spec, token = method.teacher(), method.hidden_token()
    if taught is None:
        taught = slice(None) if spec is None else spec.views
    if with_center is None:
        with_center = method.with_center
    images, shown = batch.images[method.student_views], batch.images[taught]
    masks = None if token is None else batch.masks

    patches = anchored = None
    if masks is None and gram_teacher is None:
        features = forward_views(backbone, images)
    else:
        hidden = None if masks is None else _of_all_views(masks, len(images))
        features, patches = forward_patches(backbone, images.flatten(0, 1), hidden, token)
        features = features.unflatten(0, images.shape[:2])
    if gram_teacher is not None and patches is not None:
        own = patches.flatten(1, 2).unflatten(0, images.shape[:2])[taught]
        anchored = AnchoredPatches(own.flatten(0, 1), _patches_of(gram_teacher, shown))
    if batch.local_images is not None:
        full = len(features) - with_center
        local = forward_views(backbone, batch.local_images)
        features = torch.cat((features[:full], local, features[full:]))

    if teacher is None:
        return Encoded(features, anchored=anchored)
    if masks is None or patches is None:
        return Encoded(features, forward_views(teacher, shown), anchored=anchored)
    places = _hidden_places(batch.hidden, masks)
    targets, taught_patches = _teach(teacher, shown, places)
    hidden_patches = HiddenPatches(_patches_at(patches, places), taught_patches, masks)
    return Encoded(features, targets, hidden_patches, anchored)


def _of_all_views(masks: Tensor, views: int) -> Tensor:
    """Masks ``[F, B, H, W]`` of the first views, and of the others, which hide nothing.

    Returns:
        ``[views · B, H, W]``.
    """
    nothing = masks.new_zeros((views - len(masks), *masks.shape[1:]))
    return torch.cat((masks, nothing)).flatten(0, 1)


@torch.no_grad()
def _patches_of(teacher: EMATeacher, images: Tensor) -> Tensor:
    """All patches of views ``[V, B, C, S, S]`` in a teacher's backbone, ``[V · B, N, F]``."""
    return forward_patches(teacher.module, images.flatten(0, 1))[1].flatten(1, 2)


@torch.no_grad()
def _teach(teacher: nn.Module, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's embeddings of views ``[V, B, D]`` and of their hidden patches ``[P, D]``."""
    if not isinstance(teacher, EMATeacher):
        raise TypeError(f"hidden patches need an EMATeacher, got {type(teacher).__name__}")
    modules: Any = teacher.module
    backbone, head = modules
    features, found = forward_patches(backbone, images.flatten(0, 1))
    return head.both(features.unflatten(0, images.shape[:2]), _patches_at(found, places))


def _hidden_places(hidden: HiddenPlaces | None, masks: Tensor) -> Tensor:
    """Flat indices ``[P]`` of the hidden patches in ``masks``."""
    return masks.flatten().nonzero()[:, 0] if hidden is None else hidden.flat


def _patches_at(found: Tensor, places: Tensor) -> Tensor:
    """The patches ``[P, F]`` at flat indices ``[P]`` into ``[N, H, W]``, of ``[N, H, W, F]``."""
    patches = found.flatten(1, 2)  # a view; flattening the images, too, would copy
    count = patches.shape[1]
    return patches[places // count, places % count]
