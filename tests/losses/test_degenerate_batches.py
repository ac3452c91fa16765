"""Batches too small for a loss: its formula's exact value, or an error; never NaN by accident.

A mean over no images is an error, a sum over none is 0; so is the loss of an anchor without
negatives, whose probability to find its positive is 1.
"""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mast_ext import losses

DIM = 8
WITHOUT_BATCHES = ["AugmentationMasks", "HardViewSelector", "MASTTerms"]  # they average nothing
WITHOUT_BATCHES += ["VISRegLossComponents"]


def embeddings(*shape):
    return torch.randn(*shape, DIM, requires_grad=True)


def two_views(images):
    return embeddings(images), embeddings(images)


def with_negatives(images):
    return *two_views(images), embeddings(5)


def no_negatives(images):
    return *two_views(images), embeddings(0)


def three_views(images):
    return *two_views(images), embeddings(images)


def stacked_views(images):
    return embeddings(2, images), embeddings(2, images)


def one_stacked_view(images):
    return embeddings(1, images), embeddings(1, images)


def crops(images):
    return embeddings(2, images), embeddings(3, images)


def patches(images):
    """Half of an image's patches are masked."""
    mask = torch.arange(4).expand(images, 4).view(images, 2, 2) % 2 == 0
    return embeddings(2 * images), embeddings(2 * images), mask


def no_masked_patch(images):
    return embeddings(0), embeddings(0), torch.zeros(images, 2, 2, dtype=torch.bool)


def all_patches(images):
    """The teacher's logits of all of them."""
    _, student, mask = patches(images)
    return embeddings(4 * images), student, mask


def pairs(images):
    return *two_views(images), torch.ones(images, 3, dtype=torch.bool)


def uncertain_pairs(images):
    return *pairs(images), torch.randn(images, requires_grad=True)


def msn(images):
    return embeddings(2 * images), embeddings(images), embeddings(6)


def tokens(images):
    return embeddings(images, 4), embeddings(images, 4)


def no_tokens(images):
    return embeddings(images, 0), embeddings(images, 0)


def masked_tokens(images):
    """Of the first image all are masked."""
    return *tokens(images), torch.arange(images)[:, None].expand(images, 4) == 0


def regions(images):
    mask = torch.arange(4).expand(images, 4) // 2
    return *(embeddings(images, 4) for _ in range(4)), mask, mask.flip(1)


def lonely_regions(images):
    """Of masks that the other view does not have."""
    masks = torch.arange(2)[:, None, None].expand(2, images, 2)
    return embeddings(images, 2), embeddings(images, 2), *masks


def crowds(images):
    return embeddings(images, 2), embeddings(images, 2)


def lists(images):
    return ([embeddings(images) for _ in range(3)],)


def images_of_patches(images):
    return (embeddings(images, 4),)


def rows(images):
    return (embeddings(images),)


def stacked(images):
    return (embeddings(2, images),)


def samples(images):
    return (embeddings(2 * images),)


def located_crops(images):
    crops = [(embeddings(images), embeddings(images, 2, 2)) for _ in range(3)]
    places = [torch.rand(images, 2, 2, 2) for _ in range(3)]
    return crops[:2], places[:2], crops[2:], places[2:]


def projections(images):
    return {"global_proj": embeddings(2, images), "local_proj": embeddings(3, images)}


def clips(images, frames=3):
    return {
        "predicted": embeddings(images, frames),
        "target": embeddings(images, frames),
        "embeddings": embeddings(images, 4),
    }


def clips_without_predictions(images):
    return clips(images, 0)


def mast(**options):
    return losses.MASTLoss(losses.AugmentationMasks((0.25, 0.0, 0.5), DIM), **options)


def even(mean):
    return torch.full_like(mean, 1 / len(mean))


def of_few(what, least):
    return rf"^{what} must hold {least} or more images, got [01]$"


# The loss, its inputs, and the errors of no image and of one; None for a finite value.
ALONE = r"^views must be of 2 or more images .* a single image has no negatives, got 1$"
VICREG = r"z_a and z_b must have shape \[B, ..., D\] with B > 1, got \([01], 8\)"
VICREG_OF_4 = r"z_a and z_b must have shape \[B, ..., D\] with B > 1, got \([01], 4, 8\)"
TICO = r"z_a and z_b must have shape \[B, D\] with B > 1, got \([01], 8\)"
BARLOW = r"^z_a must hold 2 or more images, got [01]$"
CASES: dict[str, tuple[Any, ...]] = {
    "BarlowTwinsLoss": (losses.BarlowTwinsLoss, two_views, BARLOW, BARLOW),
    "VICRegLoss": (losses.VICRegLoss, two_views, VICREG, VICREG),
    "NTXentLoss": (losses.NTXentLoss, two_views, of_few("out0", 1), None),
    "NTXentLoss 3 views": (losses.NTXentLoss, three_views, of_few("out0", 1), None),
    "NTXentLoss bank": (
        lambda: losses.NTXentLoss(memory_bank_size=(4, DIM)),
        two_views,
        of_few("out0", 1),
        None,
    ),
    "NTXentLoss all_views": (
        lambda: losses.NTXentLoss(negatives="all_views"),
        three_views,
        of_few("out0", 1),
        None,
    ),
    "DCLLoss": (losses.DCLLoss, two_views, of_few("out0", 1), ALONE),
    "DCLWLoss": (losses.DCLWLoss, two_views, of_few("out0", 1), ALONE),
    "InfoNCELoss": (losses.InfoNCELoss, two_views, of_few("queries", 1), None),
    "InfoNCELoss negatives": (losses.InfoNCELoss, with_negatives, of_few("queries", 1), None),
    "InfoNCELoss no negatives": (losses.InfoNCELoss, no_negatives, of_few("queries", 1), None),
    "InfoNCELoss two_sided": (
        lambda: losses.InfoNCELoss(two_sided=True, learn_temperature=True),
        two_views,
        of_few("queries", 1),
        None,
    ),
    "SigLIPLoss": (losses.SigLIPLoss, two_views, of_few("image_features", 1), None),
    "SigLIPLoss learnable": (
        lambda: losses.SigLIPLoss(learnable=True, reduction="none"),
        two_views,
        None,
        None,
    ),
    "EquivarianceLoss": (losses.EquivarianceLoss, stacked_views, of_few("actual", 1), None),
    "EquivarianceLoss 1 view": (
        losses.EquivarianceLoss,
        one_stacked_view,
        of_few("actual", 1),
        None,
    ),
    "NegativeCosineSimilarity": (
        losses.NegativeCosineSimilarity,
        two_views,
        of_few("x0", 1),
        None,
    ),
    "KoLeoLoss": (losses.KoLeoLoss, lambda images: (embeddings(images),), of_few("x", 1), None),
    "DINOLoss": (lambda: losses.DINOLoss(DIM), crops, of_few("student_out", 1), None),
    "DINOLoss sinkhorn": (
        lambda: losses.DINOLoss(DIM, center_mode="sinkhorn"),
        crops,
        of_few("student_out", 1),
        None,
    ),
    "SwaVLoss": (losses.SwaVLoss, crops, of_few("high_resolution_outputs", 1), None),
    "IBOTPatchLoss": (lambda: losses.IBOTPatchLoss(DIM), patches, of_few("mask", 1), None),
    "IBOTPatchLoss token": (
        lambda: losses.IBOTPatchLoss(DIM, weighting="token", center_mode="sinkhorn"),
        patches,
        of_few("mask", 1),
        None,
    ),
    "IBOTPatchLoss all": (
        lambda: losses.IBOTPatchLoss(DIM, center_tokens="all"),
        all_patches,
        of_few("mask", 1),
        None,
    ),
    "IBOTPatchLoss no masked patch": (
        lambda: losses.IBOTPatchLoss(DIM),
        no_masked_patch,
        of_few("mask", 1),
        None,
    ),
    "MASTLoss": (mast, pairs, of_few("x", 2), of_few("x", 2)),
    "MASTLoss uncertain": (mast, uncertain_pairs, of_few("x", 2), of_few("x", 2)),
    "MASTLoss nt_xent": (lambda: mast(base="nt_xent"), pairs, of_few("x", 1), None),
    "MASTLoss nt_xent uncertain": (
        lambda: mast(base="nt_xent"),
        uncertain_pairs,
        of_few("x", 1),
        None,
    ),
}
# What is exactly 0 for one image: it has nothing to be told apart from.
ZERO = [
    "NTXentLoss",
    "NTXentLoss 3 views",
    "InfoNCELoss",
    "InfoNCELoss no negatives",
    "InfoNCELoss two_sided",
    "EquivarianceLoss 1 view",
    "DirectCLRLoss",
    "MACLLoss",
    "MACLLoss 3 views",
    "CO2Regularizer",
    "DetConSLoss",
    "IBOTPatchLoss no masked patch",
    "MASTLoss nt_xent",
]


CASES |= {
    "MSNLoss": (losses.MSNLoss, msn, of_few("targets", 1), None),
    "PMSNLoss": (losses.PMSNLoss, msn, of_few("targets", 1), None),
    "PMSNCustomLoss": (lambda: losses.PMSNCustomLoss(even), msn, of_few("targets", 1), None),
    "CAPILoss": (losses.CAPILoss, tokens, of_few("student_logits", 1), None),
    "CAPILoss no tokens": (
        losses.CAPILoss,
        no_tokens,
        of_few("student_logits", 1),
        of_few("the second dimension of student_logits", 1),
    ),
    "IBOTPlusPlusPatchLoss": (
        lambda: losses.IBOTPlusPlusPatchLoss(DIM),
        tokens,
        of_few("teacher_out", 1),
        None,
    ),
    "IBOTPlusPlusPatchLoss masked": (
        lambda: losses.IBOTPlusPlusPatchLoss(DIM, center_mode="sinkhorn"),
        masked_tokens,
        of_few("teacher_out", 1),
        None,
    ),
    "IBOTPlusPlusPatchLoss no tokens": (
        lambda: losses.IBOTPlusPlusPatchLoss(DIM),
        no_tokens,
        of_few("teacher_out", 1),
        of_few("the second dimension of teacher_out", 1),
    ),
    "DirectCLRLoss": (lambda: losses.DirectCLRLoss(4), two_views, of_few("out0", 1), None),
    "MACLLoss": (losses.MACLLoss, two_views, of_few("z0", 1), None),
    "MACLLoss 3 views": (losses.MACLLoss, three_views, of_few("z0", 1), None),
    "CO2Regularizer": (losses.CO2Regularizer, two_views, of_few("out0", 1), None),
    "CO2Regularizer bank": (
        lambda: losses.CO2Regularizer(memory_bank_size=(4, DIM)),
        two_views,
        of_few("out0", 1),
        None,
    ),
    "HypersphereLoss": (
        losses.HypersphereLoss,
        two_views,
        of_few("z_a", 2),
        of_few("z_a", 2),
    ),
    "DetConBLoss": (losses.DetConBLoss, regions, of_few("pred_view0", 1), None),
    "DetConSLoss": (losses.DetConSLoss, lonely_regions, of_few("pred_view0", 1), None),
    "MMCRLoss": (losses.MMCRLoss, crowds, of_few("online", 1), None),
    "EMPSSLLoss": (losses.EMPSSLLoss, lists, of_few("z_views", 1), None),
    "FroSSLLoss": (losses.FroSSLLoss, lists, of_few("z_views", 1), None),
    "TiCoLoss": (losses.TiCoLoss, two_views, TICO, TICO),
    # The mean over images with two tokens is 0 where there is none, as in lightly.
    "PatchKernelAlignmentLoss": (losses.PatchKernelAlignmentLoss, tokens, None, None),
    "GramAnchoringLoss": (
        losses.GramAnchoringLoss,
        tokens,
        of_few("student_features", 1),
        None,
    ),
    "DSERegularizer": (
        losses.DSERegularizer,
        images_of_patches,
        r"must have shape \[B, N, D\], none of them 0, got \[0, 4, 8\]",
        None,
    ),
    "WMSELoss": (
        lambda: losses.WMSELoss(DIM, w_size=16),
        samples,
        of_few("input", 16),
        of_few("input", 16),
    ),
    "Whitening2d": (lambda: losses.Whitening2d(DIM), rows, of_few("x", 2), of_few("x", 2)),
    "SIGReg": (losses.SIGReg, rows, of_few("proj", 1), None),
    "SIGReg pooled": (
        lambda: losses.SIGReg(pooled=True, interval="symmetric", seed=1),
        stacked,
        of_few("proj", 1),
        None,
    ),
    "LeJEPALoss": (losses.LeJEPALoss, projections, of_few("global_proj", 1), None),
    "LeWMLoss": (losses.LeWMLoss, clips, of_few("embeddings", 1), None),
    "LeWMLoss no predictions": (
        losses.LeWMLoss,
        clips_without_predictions,
        of_few("embeddings", 1),
        of_few("a clip of predicted", 1),
    ),
    "VISRegLoss": (
        losses.VISRegLoss,
        projections,
        of_few("global_proj", 2),
        of_few("global_proj", 2),
    ),
    "VICRegLLoss": (losses.VICRegLLoss, located_crops, VICREG_OF_4, VICREG_OF_4),
}


def call(loss, inputs):
    return loss(**inputs) if isinstance(inputs, dict) else loss(*inputs)


def require_finite(loss, inputs):
    """The value and all gradients, of the loss's parameters and buffers too."""
    value = call(loss, inputs)
    value = value.loss if isinstance(value, losses.MASTTerms) else value
    if value.requires_grad:
        value.sum().backward()
    parts = [value, *loss.state_dict().values(), *(p.grad for p in loss.parameters())]
    for part in [*parts, *(x.grad for x in tree_leaves(inputs))]:
        assert part is None or part.isfinite().all()
    return value.detach()


def test_every_loss_is_looked_at():
    assert {name.split()[0] for name in CASES} == {*losses.__all__} - {*WITHOUT_BATCHES}


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_means(name, images):
    make, inputs, *errors = CASES[name]
    loss = make()
    if errors[images] is None:
        value = require_finite(loss, inputs(images))
        assert name not in ZERO or value == 0
        return
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    with pytest.raises((ValueError, AssertionError), match=errors[images]):
        call(loss, inputs(images))
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", [name for name in CASES if hasattr(CASES[name][0](), "reduction")])
def test_sums_over_no_images(name, reduction):
    make, inputs, *_ = CASES[name]
    loss = make()
    loss.reduction = reduction
    value = require_finite(loss, inputs(0))
    assert value.shape == ((0,) if reduction == "none" else ()) and value.sum() == 0


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_pair_losses(name, images):
    """Per image, so that no image has none; a statistic over one is an error, as in the loss."""
    make, inputs, *errors = CASES[name]
    loss, views = make(), embeddings(3, images)
    if not hasattr(loss, "pair_losses"):
        return
    given = [torch.ones(images, 3, dtype=torch.bool)] if name.startswith("MAST") else []
    given = [views] if name.startswith("Equivariance") else given
    needs_two = name.startswith("Barlow") or (name.startswith("DCL") and images == 1)
    if needs_two:
        with pytest.raises(ValueError, match=r"^views must "):
            loss.pair_losses(views, *given)
        return
    value = loss.pair_losses(views, *given)
    assert value.shape == (3, 3, images) and value.isfinite().all()


def test_equivariance_needs_a_view():
    with pytest.raises(ValueError, match=r"^actual must have shape \[V, B, D\] with V >= 1"):
        losses.EquivarianceLoss()(embeddings(0, 4), embeddings(0, 4))
