"""The losses that are measured, with the inputs that each process has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mast_ext import losses


@dataclass(frozen=True)
class Case:
    """A loss, and what it is called with on every process.

    Attributes:
        sizes: In words, for the table.
        make: Takes a function from a shape to a tensor; returns what computes the loss.
        check: The same with sizes that this machine computes in milliseconds.
    """

    sizes: str
    make: Callable[[Callable[..., Tensor]], Callable[[], Tensor]]
    check: Callable[[Callable[..., Tensor]], Callable[[], Tensor]] | None = None


def two(loss: Callable[[], torch.nn.Module], batch: int, dim: int) -> Callable:
    """A loss of two views."""
    return lambda new: partial(loss(), new(batch, dim), new(batch, dim))


def of(loss: Callable[[], torch.nn.Module], *shape: int) -> Callable:
    return lambda new: partial(loss(), new(*shape))


def dino(batch: int, prototypes: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        teacher = [new(batch, prototypes).detach() for _ in range(2)]
        student = [new(batch, prototypes) for _ in range(10)]
        loss = losses.DINOLoss(prototypes).to(teacher[0].device)
        return partial(loss, teacher, student)

    return make


def swav(batch: int, prototypes: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        high = [new(batch, prototypes) for _ in range(2)]
        low = [new(batch, prototypes) for _ in range(6)]
        return partial(losses.SwaVLoss(sinkhorn_gather_distributed=True), high, low)

    return make


def mast(batch: int, dim: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        x, y = new(batch, dim), new(batch, dim)
        masks = losses.AugmentationMasks((0.125, 0.0), dim).to(x.device)
        changed = torch.ones(batch, 2, dtype=torch.bool, device=x.device)
        loss = losses.MASTLoss(masks, gather_distributed=True)
        return lambda: loss(x, y, changed).loss

    return make


def lejepa(batch: int, dim: int) -> Callable:
    def make(new: Callable[..., Tensor]) -> Callable[[], Tensor]:
        views = [new(2, batch, dim), new(6, batch, dim)]
        loss = losses.LeJEPALoss(gather_distributed=True)
        return lambda: loss(global_proj=views[0], local_proj=views[1])

    return make


NTXENT = partial(losses.NTXentLoss, gather_distributed=True)
CLIP = partial(losses.InfoNCELoss, two_sided=True, gather_distributed=True)
SIGLIP = partial(losses.SigLIPLoss, gather_distributed=True)
VICREG = partial(losses.VICRegLoss, gather_distributed=True)
BARLOW = partial(losses.BarlowTwinsLoss, gather_distributed=True)
KOLEO = partial(losses.KoLeoLoss, gather_distributed=True)
FROSSL = partial(losses.FroSSLLoss, gather_distributed=True)
EMPSSL = partial(losses.EMPSSLLoss, gather_distributed=True)
TICO = partial(losses.TiCoLoss, gather_distributed=True)

CASES = {
    "NTXentLoss": Case("2 views, B 256, D 256", two(NTXENT, 256, 256), two(NTXENT, 64, 128)),
    "InfoNCELoss, two-sided": Case("B 256, D 512", two(CLIP, 256, 512), two(CLIP, 64, 128)),
    "SigLIPLoss": Case("B 256, D 512", two(SIGLIP, 256, 512), two(SIGLIP, 64, 128)),
    "VICRegLoss": Case("2 views, B 64, D 8192", two(VICREG, 64, 8192), two(VICREG, 64, 512)),
    "BarlowTwinsLoss": Case("2 views, B 64, D 8192", two(BARLOW, 64, 8192), two(BARLOW, 64, 512)),
    "MASTLoss": Case("2 views, B 64, D 8192", mast(64, 8192), mast(64, 512)),
    "TiCoLoss": Case("2 views, B 64, D 2048", two(TICO, 64, 2048), two(TICO, 64, 512)),
    "FroSSLLoss": Case("4 views, B 64, D 2048", of(FROSSL, 4, 64, 2048), of(FROSSL, 4, 64, 256)),
    "EMPSSLLoss": Case("20 views, B 64, D 1024", of(EMPSSL, 20, 64, 1024)),
    "KoLeoLoss": Case("B 64, D 1024", of(KOLEO, 64, 1024), of(KOLEO, 64, 256)),
    "LeJEPALoss": Case("2 + 6 views, B 64, D 512", lejepa(64, 512), lejepa(64, 64)),
    "DINOLoss": Case("2 + 8 views, B 32, C 65536", dino(32, 65536), dino(16, 4096)),
    "SwaVLoss": Case("2 + 6 views, B 64, C 3000", swav(64, 3000), swav(64, 1000)),
}
