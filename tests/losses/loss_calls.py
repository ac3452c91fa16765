"""One table of calls: every loss, and each of its methods. A new class has to be entered."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mast_ext.losses import (
    AugmentationMasks,
    BarlowTwinsLoss,
    CAPILoss,
    CO2Regularizer,
    DCLLoss,
    DCLWLoss,
    DetConBLoss,
    DetConSLoss,
    DINOLoss,
    DirectCLRLoss,
    DSERegularizer,
    EMPSSLLoss,
    EquivarianceLoss,
    FroSSLLoss,
    GramAnchoringLoss,
    HardViewSelector,
    HypersphereLoss,
    IBOTPatchLoss,
    IBOTPlusPlusPatchLoss,
    InfoNCELoss,
    KoLeoLoss,
    LeJEPALoss,
    LeWMLoss,
    MACLLoss,
    MASTLoss,
    MMCRLoss,
    MSNLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    PatchKernelAlignmentLoss,
    PMSNCustomLoss,
    PMSNLoss,
    SigLIPLoss,
    SIGReg,
    SwaVLoss,
    TiCoLoss,
    VICRegLLoss,
    VICRegLoss,
    VISRegLoss,
    Whitening2d,
    WMSELoss,
)

VIEWS, BATCH, DIM, FREED = 3, 24, 40, (0.3, 0.0, 0.2)
MASK = (torch.arange(2 * VIEWS * BATCH) % 2 == 0).view(BATCH, VIEWS, 2)  # for every row of inputs
REGIONS = torch.arange(BATCH * VIEWS).view(2, BATCH // 2, VIEWS) % 4  # of what masks
PLACES = torch.rand(2, BATCH, 2, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
CHANGED = torch.arange(BATCH)[:, None] // torch.tensor([1, 2, 4]) % 2 == 0


def agreement(anchors, others):
    return (anchors * others).sum(1)


def views_of(x):
    """Two views of regions: ``[BATCH / 2, VIEWS, DIM]`` each."""
    return x.transpose(0, 1).chunk(2)


def seeded(loss):
    """With the same random draws in every call."""
    torch.manual_seed(0)
    return loss


def crops_of(x):
    """Of two crops an embedding, and features of ``2 × 2`` positions."""
    return [(x[v], x[v].unflatten(1, (2, 2, -1))) for v in range(2)]


def mast(**options):
    return MASTLoss(AugmentationMasks(FREED, DIM), **options)


def rows(views):
    return views.flatten(0, 1)


# By class: how it is made, and a call of it with x and y, [V, B, D].
CASES: dict[str, list[tuple[Any, ...]]] = {
    "AugmentationMasks": [
        (
            lambda: AugmentationMasks(FREED, DIM),
            lambda masks, x, y: (masks(), masks.group_weights(), masks.overlap()),
        ),
    ],
    "BarlowTwinsLoss": [
        (BarlowTwinsLoss, lambda loss, x, y: loss(x[0], y[0])),
        (BarlowTwinsLoss, lambda loss, x, y: loss.pair_losses(x)),
        (BarlowTwinsLoss, lambda loss, x, y: loss.pair_losses(x, chunks=3)),
        (lambda: BarlowTwinsLoss(variant="paper"), lambda loss, x, y: loss(x[0], y[0])),
    ],
    "DCLLoss": [
        (DCLLoss, lambda loss, x, y: loss(*x)),
        (DCLLoss, lambda loss, x, y: loss.pair_losses(x)),
        (lambda: DCLLoss(weight_fn=agreement), lambda loss, x, y: loss(*x)),
    ],
    "DCLWLoss": [
        (DCLWLoss, lambda loss, x, y: loss(*x)),
        (DCLWLoss, lambda loss, x, y: loss.pair_losses(x)),
    ],
    "DINOLoss": [
        (lambda: DINOLoss(DIM), lambda loss, x, y: (loss(y[:2], x), loss.center)),
        (lambda: DINOLoss(DIM, center_mode="sinkhorn"), lambda loss, x, y: loss(y[:2], x)),
        (lambda: DINOLoss(DIM, reduction="none"), lambda loss, x, y: loss(y[:2], x)),
        (lambda: DINOLoss(DIM), lambda loss, x, y: loss.crop_losses(y[:2], x)),
    ],
    "EquivarianceLoss": [
        (EquivarianceLoss, lambda loss, x, y: loss(x, y)),
        (EquivarianceLoss, lambda loss, x, y: loss.pair_losses(x, y)),
    ],
    "HardViewSelector": [
        (HardViewSelector, lambda select, x, y: select(x.mT[:, :VIEWS])),
        (
            lambda: HardViewSelector("all", "softmax", fraction=0.5),
            lambda select, x, y: select(x.mT[:, :VIEWS]),
        ),
    ],
    "IBOTPatchLoss": [
        (lambda: IBOTPatchLoss(DIM), lambda loss, x, y: loss(rows(y), rows(x), MASK)),
        (
            lambda: IBOTPatchLoss(DIM, center_tokens="all", weighting="token"),
            lambda loss, x, y: (loss(rows(y).repeat(2, 1), rows(x), MASK), loss.center.value),
        ),
        (lambda: IBOTPatchLoss(DIM), lambda loss, x, y: loss.patch_losses(rows(y), rows(x), MASK)),
    ],
    "InfoNCELoss": [
        (InfoNCELoss, lambda loss, x, y: loss(x[0], y[0])),
        (InfoNCELoss, lambda loss, x, y: loss.pair_losses(x)),
        (InfoNCELoss, lambda loss, x, y: loss(x[0], x[1], y[0])),
        (InfoNCELoss, lambda loss, x, y: loss.pair_losses(x, y[0])),
        (
            lambda: InfoNCELoss(two_sided=True, learn_temperature=True),
            lambda loss, x, y: loss(x[0], y[0]),
        ),
    ],
    "KoLeoLoss": [
        (KoLeoLoss, lambda loss, x, y: loss(rows(x))),
        (lambda: KoLeoLoss(p=3), lambda loss, x, y: loss(rows(x))),
        (lambda: KoLeoLoss(topk=2, group_size=12), lambda loss, x, y: loss(rows(x))),
    ],
    "MASTLoss": [
        (mast, lambda loss, x, y: loss(x[0], y[0], CHANGED)),
        (mast, lambda loss, x, y: loss(x[0], y[0], CHANGED, x[1, :, 0])),
        (mast, lambda loss, x, y: loss.pair_losses(x, CHANGED)),
        (lambda: mast(base="nt_xent"), lambda loss, x, y: loss(x[0], y[0], CHANGED)),
        (lambda: mast(base="nt_xent"), lambda loss, x, y: loss.pair_losses(x, CHANGED)),
    ],
    "NTXentLoss": [
        (NTXentLoss, lambda loss, x, y: loss(x[0], y[0])),
        (NTXentLoss, lambda loss, x, y: loss(*x)),
        (lambda: NTXentLoss(negatives="all_views"), lambda loss, x, y: loss(*x)),
        (NTXentLoss, lambda loss, x, y: loss.pair_losses(x)),
        (
            lambda: NTXentLoss(memory_bank_size=(50, DIM)),
            lambda loss, x, y: (loss(x[0], y[0]), loss.memory_bank.bank),
        ),
    ],
    "NegativeCosineSimilarity": [
        (NegativeCosineSimilarity, lambda loss, x, y: loss(rows(x), rows(y))),
        (NegativeCosineSimilarity, lambda loss, x, y: loss.pair_losses(x, y)),
    ],
    "SwaVLoss": [
        (SwaVLoss, lambda loss, x, y: loss(x[:2], x[2:], y[:2])),
        (SwaVLoss, lambda loss, x, y: loss.crop_losses(x[:2], x[2:])),
    ],
    "VICRegLoss": [
        (VICRegLoss, lambda loss, x, y: loss(x[0], y[0])),
        (VICRegLoss, lambda loss, x, y: loss(x.mT, y.mT)),
        (VICRegLoss, lambda loss, x, y: loss.pair_losses(x)),
    ],
}
CASES |= {
    "CAPILoss": [
        (CAPILoss, lambda loss, x, y: loss(y.mT, x.mT)),
        (lambda: CAPILoss(reduction="none"), lambda loss, x, y: loss(y.mT, x.mT)),
    ],
    "CO2Regularizer": [
        (CO2Regularizer, lambda loss, x, y: loss(x[0], y[0])),
        (
            lambda: CO2Regularizer(memory_bank_size=(50, DIM), reduction="none"),
            lambda loss, x, y: (loss(x[0], y[0]), loss.memory_bank.bank),
        ),
    ],
    "DetConBLoss": [
        (DetConBLoss, lambda loss, x, y: loss(*views_of(x), *views_of(y), *REGIONS)),
        (
            lambda: DetConBLoss(reduction="none"),
            lambda loss, x, y: loss(*views_of(x), *views_of(y), *REGIONS),
        ),
    ],
    "DetConSLoss": [(DetConSLoss, lambda loss, x, y: loss(*views_of(x), *REGIONS))],
    "DirectCLRLoss": [
        (lambda: DirectCLRLoss(9), lambda loss, x, y: loss(*x)),
        (lambda: DirectCLRLoss(9), lambda loss, x, y: loss.pair_losses(x)),
    ],
    "HypersphereLoss": [
        (HypersphereLoss, lambda loss, x, y: loss(x[0], y[0])),
        (HypersphereLoss, lambda loss, x, y: loss.pair_losses(x)),
        (lambda: HypersphereLoss(alpha=1.0), lambda loss, x, y: loss.pair_losses(x)),
    ],
    "IBOTPlusPlusPatchLoss": [
        (
            lambda: IBOTPlusPlusPatchLoss(DIM),
            lambda loss, x, y: (
                loss(y, x, CHANGED.T),
                loss.center.value,
            ),
        ),
        (
            lambda: IBOTPlusPlusPatchLoss(DIM, reduction="none"),
            lambda loss, x, y: loss(y, x),
        ),
    ],
    "MACLLoss": [
        (MACLLoss, lambda loss, x, y: loss(*x)),
        (MACLLoss, lambda loss, x, y: loss.pair_losses(x)),
    ],
    "MSNLoss": [(MSNLoss, lambda loss, x, y: loss(rows(x), x[0], y[0]))],
    "PMSNCustomLoss": [
        (lambda: PMSNCustomLoss(torch.square), lambda loss, x, y: loss(rows(x), x[0], y[0])),
    ],
    "PMSNLoss": [(PMSNLoss, lambda loss, x, y: loss(rows(x), x[0], y[0]))],
    "VICRegLLoss": [
        (
            lambda: VICRegLLoss(num_matches=(3, 2)),
            lambda loss, x, y: loss(crops_of(x), PLACES, crops_of(y), PLACES),
        ),
    ],
    "DSERegularizer": [
        (
            lambda: DSERegularizer(global_clusters=6),
            lambda loss, x, y: seeded(loss)(x[:2]),
        ),
    ],
    "EMPSSLLoss": [
        (EMPSSLLoss, lambda loss, x, y: loss(x)),
        (EMPSSLLoss, lambda loss, x, y: loss(x.mT)),
    ],
    "FroSSLLoss": [
        (FroSSLLoss, lambda loss, x, y: loss(x)),
        (FroSSLLoss, lambda loss, x, y: loss(x.mT)),
    ],
    "GramAnchoringLoss": [
        (GramAnchoringLoss, lambda loss, x, y: loss(x, y)),
        (
            lambda: GramAnchoringLoss(per_image=False, remove_neg=False),
            lambda loss, x, y: loss(x, y),
        ),
        (
            lambda: GramAnchoringLoss(remove_neg=False, remove_only_teacher_neg=True),
            lambda loss, x, y: loss(x.mT, y.mT),
        ),
    ],
    "MMCRLoss": [(MMCRLoss, lambda loss, x, y: loss(x, y))],
    "PatchKernelAlignmentLoss": [
        (PatchKernelAlignmentLoss, lambda loss, x, y: loss(x, y)),
        (
            PatchKernelAlignmentLoss,
            lambda loss, x, y: loss(x.mT, y.mT, CHANGED.T[..., :1].expand(-1, DIM)),
        ),
    ],
    "SIGReg": [
        (SIGReg, lambda loss, x, y: seeded(loss)(x)),
        (
            lambda: SIGReg(interval="symmetric", t_max=5.0, pooled=True, seed=3),
            lambda loss, x, y: (loss(x), loss(y[0])),
        ),
    ],
    "LeJEPALoss": [
        (LeJEPALoss, lambda loss, x, y: seeded(loss)(global_proj=x, local_proj=y)),
        (
            lambda: LeJEPALoss(0.5, invariance_weight=1.0),
            lambda loss, x, y: seeded(loss)(global_proj=x[:1], local_proj=y),
        ),
    ],
    "LeWMLoss": [
        (
            lambda: LeWMLoss(normalize=True),
            lambda loss, x, y: seeded(loss)(predicted=x, target=y, embeddings=x),
        ),
    ],
    "VISRegLoss": [
        (
            lambda: VISRegLoss(num_slices=50),
            lambda loss, x, y: seeded(loss).forward_components(global_proj=x, local_proj=y),
        ),
    ],
    "SigLIPLoss": [
        (SigLIPLoss, lambda loss, x, y: loss(x[0], y[0])),
        (SigLIPLoss, lambda loss, x, y: loss.pair_losses(x)),
        (
            lambda: SigLIPLoss(learnable=True, reduction="none"),
            lambda loss, x, y: loss(x[0], y[0]),
        ),
    ],
    "TiCoLoss": [(TiCoLoss, lambda loss, x, y: (loss(x[0], y[0]), loss.C))],
    "WMSELoss": [
        (
            lambda: WMSELoss(DIM // 4, w_size=BATCH),
            lambda loss, x, y: seeded(loss)(torch.cat((x[0], y[0]))[:, : DIM // 4]),
        ),
    ],
    "Whitening2d": [
        (lambda: Whitening2d(DIM // 4), lambda layer, x, y: layer(x[0, :, : DIM // 4])),
        (lambda: Whitening2d(DIM).eval(), lambda layer, x, y: layer(x[0])),
    ],
}
EACH = [
    pytest.param(*case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


def inputs_of(dtype) -> tuple[Tensor, Tensor]:
    """Numbers that 16 bits of this dtype hold."""
    generator = torch.Generator().manual_seed(0)
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    x = torch.randn(VIEWS, BATCH, DIM, generator=generator)
    y = x + torch.randn(x.shape, generator=generator)
    return x.to(half).to(dtype).requires_grad_(), y.to(half).to(dtype).requires_grad_()


def tensors_in(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        result = result.values()
    return [tensor for part in result for tensor in tensors_in(part)]
