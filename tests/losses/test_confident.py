"""Losses of confident batches: how far a probability is from 1 is what there is to learn.

`log_softmax` keeps that difference, a loss that takes ``lse - positive`` loses it to rounding. The
rule: over probabilities of the right answer from 0.5 to 0.9999, the error against float64 is at
most 1.5 times that of the plain version in the same dtype, for values and for gradients.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mast_ext import functional, losses, reference

IMAGES, DIM, PROTOTYPES = 64, 128, 256
PROBABILITIES = [0.5, 0.9, 0.99, 0.999, 0.9999]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def against_all(rows: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every row finding row ``positive[r]`` among the others, as one writes it."""
    unit = F.normalize(rows, dim=1)
    logits = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, positive, reduction="none")


def plain_nt_xent(views: Tensor, temperature: float) -> Tensor:
    rows = torch.arange(2 * IMAGES, device=views.device)
    terms = against_all(views.flatten(0, 1), rows.roll(IMAGES), temperature)
    return terms.view(2, IMAGES).mean(0)


def plain_info_nce(views: Tensor, temperature: float) -> Tensor:
    queries, keys = F.normalize(views, dim=2)
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(IMAGES, device=views.device), reduction="none")


def plain_queue(views: Tensor, temperature: float, queue: Tensor) -> Tensor:
    queries, keys = F.normalize(views, dim=2)
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat((positive, queries @ F.normalize(queue.to(views), dim=1).T), 1)
    target = torch.zeros(IMAGES, dtype=torch.long, device=views.device)
    return F.cross_entropy(logits / temperature, target, reduction="none")


def plain_decoupled(views: Tensor, temperature: float) -> Tensor:
    unit = F.normalize(views.flatten(0, 1), dim=1)
    logits = unit @ unit.T / temperature
    image = torch.arange(2 * IMAGES, device=views.device) % IMAGES
    negatives = logits.masked_fill(image[:, None] == image, -torch.inf).logsumexp(1)
    positive = logits.diagonal(IMAGES)
    return negatives.view(2, IMAGES).mean(0) - positive


def make_masks() -> losses.AugmentationMasks:
    generator = torch.Generator().manual_seed(8)
    return losses.AugmentationMasks((0.5,), DIM, sharpness=1.0, generator=generator)


def masks_loss(views: Tensor, temperature: float) -> Tensor:
    loss = losses.MASTLoss(make_masks(), base="nt_xent", temperature=temperature).to(views.device)
    changed = torch.ones(IMAGES, 1, dtype=torch.bool, device=views.device)
    return loss.pair_losses(views, changed)[0, 1]


def plain_masks(views: Tensor, temperature: float) -> Tensor:
    return plain_nt_xent(views * make_masks()()[0].detach().to(views), temperature)


QUEUE = torch.randn(256, DIM, generator=torch.Generator().manual_seed(7))

Contrast = Callable[[Tensor, float], Tensor]
# name: (the loss as users call it, the plain version), of views [2, B, D] and a temperature
CONTRASTIVE: dict[str, tuple[Contrast, Contrast]] = {
    "NTXentLoss": (lambda v, t: losses.NTXentLoss(t, reduction="none")(*v), plain_nt_xent),
    "NTXentLoss pairs": (
        lambda v, t: losses.NTXentLoss(t).pair_losses(v)[0, 1],
        plain_nt_xent,
    ),
    "DCLLoss": (lambda v, t: losses.DCLLoss(t, reduction="none")(*v), plain_decoupled),
    "InfoNCELoss": (lambda v, t: losses.InfoNCELoss(t, reduction="none")(*v), plain_info_nce),
    "InfoNCELoss two-sided": (
        lambda v, t: losses.InfoNCELoss(t, two_sided=True, reduction="none")(*v),
        lambda v, t: (plain_info_nce(v, t) + plain_info_nce(v.flip(0), t)) / 2,
    ),
    "InfoNCELoss queue": (
        lambda v, t: losses.InfoNCELoss(t, reduction="none")(*v, QUEUE.to(v)),
        lambda v, t: plain_queue(v, t, QUEUE),
    ),
    "EquivarianceLoss": (
        lambda v, t: losses.EquivarianceLoss(t, reduction="none")(v[:1], v[1:]),
        plain_nt_xent,  # of one view and its prediction
    ),
    "MASTLoss": (masks_loss, plain_masks),
}


def make_views(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, IMAGES, DIM, generator=generator)
    return images + 0.3 * torch.randn(2, IMAGES, DIM, generator=generator)


def temperature_for(probability: float, loss: Callable[[float], Tensor]) -> float:
    """At which ``exp(-loss)`` is this probability, in the geometric mean."""
    low, high = 0.01, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        confident = loss(middle).mean().neg().exp() > probability
        low, high = (middle, high) if confident else (low, middle)
    return low


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    values = loss(x)
    (grad,) = torch.autograd.grad(values.sum(dtype=torch.promote_types(x.dtype, torch.float32)), x)
    return values.detach().cpu().double(), grad.cpu().double()


def assert_as_exact(mine, plain, inputs: list[Tensor], dtype: torch.dtype, device) -> None:
    """Of values and gradients over all inputs together, in the norm."""
    found = []
    for x in inputs:
        rounded = x.to(device, dtype)
        truth = value_and_gradient(plain, rounded.cpu().double())
        found.append([value_and_gradient(loss, rounded) for loss in (mine, plain)] + [truth])
    for part, name in enumerate(("values", "gradients")):
        ours, theirs, exact = (
            torch.cat([case[which][part].flatten() for case in found]) for which in range(3)
        )
        error, plain_error = (ours - exact).norm(), (theirs - exact).norm()
        # A gradient is rounded to the inputs' dtype, by the plain version, too.
        rounding = torch.finfo(dtype if name == "gradients" else torch.float32).eps
        assert error <= 1.5 * plain_error + rounding * exact.norm(), (
            f"{name}: error {error / exact.norm():.1e}, plain {plain_error / exact.norm():.1e}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", PROBABILITIES)
@pytest.mark.parametrize("name", CONTRASTIVE)
def test_contrastive_losses(name, probability, dtype, device):
    mine, plain = CONTRASTIVE[name]
    if name == "DCLLoss":  # has no probabilities
        temperature = {0.5: 0.5, 0.9: 0.2, 0.99: 0.1, 0.999: 0.07, 0.9999: 0.05}[probability]
    else:
        exact = make_views(0).double()
        temperature = temperature_for(probability, lambda t: plain(exact, t))
    views = [make_views(seed) for seed in range(4)]
    assert_as_exact(
        lambda v: mine(v, temperature), lambda v: plain(v, temperature), views, dtype, device
    )


def plain_cross_entropy(logits: Tensor) -> Tensor:
    """DINO's of a student and a teacher ``[2, B, C]``, with its teacher's temperature."""
    student, teacher = logits
    return -((teacher.detach() / 0.04).softmax(1) * (student / 0.1).log_softmax(1)).sum(1)


def make_logits(seed: int, probability: float) -> Tensor:
    """Student and teacher ``[2, B, C]`` that agree, the student with this probability."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, IMAGES, PROTOTYPES, generator=generator)
    logits[1] /= 2
    right = torch.randint(PROTOTYPES, (IMAGES, 1), generator=generator)
    others = (logits[0] / 0.1).scatter(1, right, -torch.inf).logsumexp(1, keepdim=True)
    wanted = 0.1 * (others + math.log(probability / (1 - probability)))
    return logits.scatter(2, right.expand(2, -1, 1), wanted.expand(2, -1, 1))


def mine_cross_entropy(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    return functional.prototype_cross_entropy(
        logits[:1], logits[1:], student_temperature=0.1, teacher_temperature=0.04, weights=weights
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", PROBABILITIES)
@pytest.mark.parametrize("weighted", [False, True])
def test_prototype_cross_entropy(weighted, probability, dtype, device):
    logits = [make_logits(seed, probability) for seed in range(32 if weighted else 4)]
    if weighted:
        weights = torch.full((1, 1, IMAGES), 1 / IMAGES, device=device)
        assert_as_exact(
            lambda x: mine_cross_entropy(x, weights),
            lambda x: plain_cross_entropy(x).mean(),
            logits,
            dtype,
            device,
        )
    else:
        mine = lambda x: mine_cross_entropy(x)[0, 0]  # noqa: E731
        assert_as_exact(mine, plain_cross_entropy, logits, dtype, device)


def plain_swapped(crops: Tensor, temperature: float) -> Tensor:
    """SwaV's of two crops ``[2, B, C]``."""
    codes = [reference.sinkhorn_knopp(x.detach(), temperature=0.05, iterations=3) for x in crops]
    log_p = (crops / temperature).log_softmax(-1)
    return -(codes[0] * log_p[1] + codes[1] * log_p[0]).sum(1) / 2


def make_cosines(seed: int) -> Tensor:
    """Of two crops of images with their prototypes, one near each, ``[2, B, C]``."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.randn(IMAGES, DIM, generator=generator), dim=1)
    noise = 0.3 * torch.randn(2, IMAGES, DIM, generator=generator) / DIM**0.5
    return F.normalize(prototypes + noise, dim=2) @ prototypes.T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_swav(probability, dtype, device):
    exact = make_cosines(0).double()
    temperature = temperature_for(probability, lambda t: plain_swapped(exact, t))
    assert_as_exact(
        lambda x: losses.SwaVLoss(temperature=temperature, reduction="none")(list(x), []),
        lambda x: plain_swapped(x, temperature),
        [make_cosines(seed) for seed in range(4)],
        dtype,
        device,
    )
