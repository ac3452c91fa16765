"""MASTLoss on a VICReg base, with learned masks, against what one writes in plain torch.

Beside it runs VICRegLoss, which does without masks and groups.
"""

import functools

import torch
from torch import Tensor

from mast_ext.benchmarks.harness import Workload
from mast_ext.losses import AugmentationMasks, MASTLoss, VICRegLoss

FREED = (0.25, 0.2, 0.15, 0.1, 0.05)
VICREG = VICRegLoss()


@functools.cache
def loss_of(dim: int, device: torch.device) -> MASTLoss:
    """Made once, as users do."""
    generator = torch.Generator().manual_seed(0)
    return MASTLoss(AugmentationMasks(FREED, dim, generator=generator)).to(device)


def make_inputs(batch, dim, dtype):
    x = torch.randn(batch, dim, dtype=dtype)
    changed = torch.rand(batch, len(FREED)) < 0.5
    logits = loss_of(dim, x.device).masks.logits
    assert logits is not None  # masks are learned
    return x, (x + 0.5 * torch.randn(batch, dim)).to(dtype), logits.detach(), changed


def mast(x: Tensor, y: Tensor, logits: Tensor, changed: Tensor) -> Tensor:
    loss = loss_of(x.shape[1], x.device)
    # Takes the parameter's place: the tensor whose gradient is asked for, which is no Parameter.
    loss.masks._parameters["logits"] = logits  # type: ignore[assignment]
    return loss(x, y, changed).loss


def plain(x: Tensor, y: Tensor, logits: Tensor, changed: Tensor) -> Tensor:
    """Masks by bisection, a mask for every pair, and VICReg's terms by its authors' code."""
    scaled = 4 * logits
    kept = 1 - torch.tensor(FREED, device=x.device)
    with torch.no_grad():
        low, high = scaled.amin(1) - kept.logit(), scaled.amax(1) - kept.logit()
        for _ in range(24):
            middle = (low + high) / 2
            above = torch.sigmoid(scaled - middle[:, None]).mean(1) > kept
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        slope = torch.sigmoid(scaled - low[:, None])
        slope = slope * (1 - slope)
        slope = slope / slope.sum(1, keepdim=True)
    moves = (slope * scaled).sum(1)
    masks = torch.sigmoid(scaled - (low + moves - moves.detach())[:, None])
    weights = torch.where(changed[:, :, None], masks, 1.0).prod(1).square()  # [N, D]
    x, y = x.float(), y.float()
    loss = 25 * ((weights * (x - y).square()).sum(0) / weights.sum(0).clamp_min(1)).mean()
    rows, dim = x.shape
    for z in (x, y):
        z = z - z.mean(0)
        covariance = z.T @ z / (rows - 1)
        variance = covariance.diagonal()
        loss = loss + 12.5 * torch.relu(1 - (variance + 1e-4).sqrt()).mean()
        loss = loss + (covariance.square().sum() - variance.square().sum()) / dim
    return loss


def vicreg(x: Tensor, y: Tensor, logits: Tensor, changed: Tensor) -> Tensor:
    return VICREG(x, y) + 0 * logits.sum()  # gradients of all inputs are asked for


def least(batch: int, dim: int) -> tuple[int, int]:
    """As VICReg's."""
    return 6 * batch * dim, 8 * min(batch, dim) * batch * dim


WORKLOAD = Workload(
    name="mast",
    measured="MASTLoss",
    cases=[{"batch": 256, "dim": 256}, {"batch": 256, "dim": 2048}, {"batch": 1024, "dim": 2048}],
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": mast,
        "plain torch": plain,
        "torch.compile(plain)": torch.compile(plain, dynamic=False),
    },
    beside={"VICRegLoss": vicreg},
)
