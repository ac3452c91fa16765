"""MASTLoss against its definition, written out pair by pair."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import reference
from mast_ext.losses import MASTLoss, SubspaceMasks, VICRegLoss

VIEWS, BATCH, DIM, SUBSPACES = 3, 12, 20, 4
WEIGHTS = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0, "sparsity": 7.0}
UNCERTAINTIES = ["none", "subspace", "diagonal"]


def make_masks(device, subspaces=SUBSPACES, dim=DIM):
    return SubspaceMasks(subspaces, dim, generator=torch.Generator().manual_seed(0)).to(device)


def make_pairs(device):
    """Subspace 0 for half of the images, 1 and 3 elsewhere; nothing in subspace 2."""
    pairs = torch.full((VIEWS, VIEWS, BATCH), -1, device=device)
    pairs[0, 1] = pairs[1, 0] = 0
    pairs[0, 1, ::2] = pairs[1, 0, ::2] = 1
    pairs[0, 2, :5] = pairs[2, 0, :5] = 3
    return pairs


def make_inputs(uncertainty, device):
    views = 0.3 * torch.randn(VIEWS, BATCH, DIM, device=device)
    last = {"none": None, "subspace": SUBSPACES, "diagonal": DIM}[uncertainty]
    log_var = None if last is None else torch.randn(VIEWS, BATCH, last, device=device)
    return tuple(t if t is None else t.requires_grad_() for t in (views, log_var))


def definition(views, pairs, masks, log_var, uncertainty):
    """The loss, one pair of one image at a time."""
    weights = masks.square()
    sums, compared = torch.zeros_like(weights[0]), torch.zeros_like(weights[0])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for b in range(views.shape[1]):
            k = int(pairs[i, j, b])
            if k < 0:
                continue
            term = (views[i, b] - views[j, b]).square()
            if uncertainty != "none":
                of = (slice(None),) if uncertainty == "diagonal" else (k,)
                s = log_var[i, b][of].exp() + log_var[j, b][of].exp()
                term = (term / s + s.log()) / 2
            sums = sums + weights[k] * term
            compared = compared + weights[k]
    invariance = (sums / compared).mean()
    variance, covariance = reference.variance_covariance(views)
    loss = (
        WEIGHTS["invariance"] * invariance
        + WEIGHTS["variance"] * variance.mean()
        + WEIGHTS["covariance"] * 2 * covariance.mean()
        + WEIGHTS["sparsity"] * masks.mean()
    )
    return loss


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_equals_the_definition(uncertainty, device):
    loss = MASTLoss(make_masks(device), **WEIGHTS, uncertainty=uncertainty)
    views, log_var = make_inputs(uncertainty, device)
    pairs = make_pairs(device)
    terms = loss(views, pairs, log_var)
    want = definition(views, pairs, loss.masks(), log_var, uncertainty)
    assert_close(terms.loss, want, rtol=1e-5, atol=1e-5)
    assert terms.logs["invariance/2"] == 0  # nothing belongs to it

    inputs = [t for t in (views, log_var, loss.masks.logits) if t is not None]
    for mine, truth in zip(
        torch.autograd.grad(terms.loss, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert_close(mine, truth, rtol=1e-4, atol=1e-5)


def test_logs_are_the_terms_before_their_weights(device):
    loss = MASTLoss(make_masks(device), **WEIGHTS)
    terms = loss(make_inputs("none", device)[0], make_pairs(device))
    assert set(terms.logs) == {*WEIGHTS, *(f"invariance/{k}" for k in range(SUBSPACES))}
    assert not any(value.requires_grad for value in terms.logs.values())
    total = sum(weight * terms.logs[name] for name, weight in WEIGHTS.items())
    assert_close(total, terms.loss.detach())


def test_even_masks_and_two_views_are_vicreg(device):
    """All views in one subspace of all ones: the loss is VICReg's."""
    masks = make_masks(device, subspaces=1)  # balanced over one subspace: all ones
    views = torch.randn(2, BATCH, DIM, device=device)
    pairs = torch.zeros(2, 2, BATCH, dtype=torch.int64, device=device)
    assert_close(MASTLoss(masks)(views, pairs).loss, VICRegLoss()(*views))


def test_pairs_are_read_above_the_diagonal(device):
    loss = MASTLoss(make_masks(device))
    views = make_inputs("none", device)[0]
    pairs = make_pairs(device)
    want = loss(views, pairs).loss
    order = torch.arange(VIEWS, device=device)
    pairs[order[:, None] >= order] = 2
    assert torch.equal(loss(views, pairs).loss, want)


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_no_pairs_leave_the_batch_terms(uncertainty, device):
    loss = MASTLoss(make_masks(device), uncertainty=uncertainty)
    views, log_var = make_inputs(uncertainty, device)
    terms = loss(views, torch.full((VIEWS, VIEWS, BATCH), -1, device=device), log_var)
    assert terms.logs["invariance"] == 0 and terms.loss > 0
    terms.loss.backward()
    assert views.grad.isfinite().all()


def test_uncertain_pairs_count_less(device):
    loss = MASTLoss(make_masks(device), variance=0.0, covariance=0.0, uncertainty="subspace")
    views, _ = make_inputs("subspace", device)
    log_var = torch.zeros(VIEWS, BATCH, SUBSPACES, device=device)
    log_var[:, 0] = 4.0
    loss(views, make_pairs(device), log_var).loss.backward()
    sure, unsure = views.grad[0, 2].norm(), views.grad[0, 0].norm()  # both in subspace 1
    assert unsure < 0.2 * sure


def test_a_nan_in_an_unused_pair_is_not_an_invariance(device):
    loss = MASTLoss(make_masks(device), uncertainty="subspace")
    views, log_var = make_inputs("subspace", device)
    log_var = log_var.detach()
    log_var[:, :, 2] = float("nan")  # no pair belongs to subspace 2
    assert loss(views, make_pairs(device), log_var).logs["invariance"].isfinite()


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_pair_losses(uncertainty, device):
    loss = MASTLoss(make_masks(device), **WEIGHTS, uncertainty=uncertainty)
    views, log_var = make_inputs(uncertainty, device)
    pairs = loss.pair_losses(views, log_var)
    assert pairs.shape == (VIEWS, VIEWS, BATCH)
    masks = loss.masks()
    if uncertainty == "none":
        distance = reference.subspace_similarity(views, masks=masks, metric="sqeuclidean")
        terms = distance / masks.square().sum(1)[:, None, None, None]
    else:
        terms = reference.subspace_nll(views, log_var, masks=masks, variance=uncertainty)
    assert_close(pairs, WEIGHTS["invariance"] * terms.mean(0))


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_compiles_whole(uncertainty, device):
    loss = MASTLoss(make_masks(device), uncertainty=uncertainty)
    views, log_var = make_inputs(uncertainty, device)
    pairs = make_pairs(device)
    want = loss(views, pairs, log_var)
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(views, pairs, log_var)
    assert_close(got.loss, want.loss)
    for name, value in want.logs.items():
        assert_close(got.logs[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_embeddings(dtype, device):
    loss = MASTLoss(make_masks(device))
    views = make_inputs("none", device)[0].detach().to(dtype).requires_grad_()
    terms = loss(views, make_pairs(device))
    assert terms.loss.dtype == torch.float32
    assert_close(terms.loss, loss(views.float(), make_pairs(device)).loss, rtol=1e-2, atol=0)
    terms.loss.backward()
    assert views.grad.dtype == dtype and views.grad.isfinite().all()


def test_a_blank_mask_has_no_distance(device):
    masks = SubspaceMasks(2, DIM, "relu").to(device)
    with torch.no_grad():
        masks.logits[0] = -1
    views = make_inputs("none", device)[0]
    pairs = torch.zeros(VIEWS, VIEWS, BATCH, dtype=torch.int64, device=device)
    terms = MASTLoss(masks)(views, pairs)
    assert terms.logs["invariance"] == 0
    terms.loss.backward()
    assert masks.logits.grad.isfinite().all() and views.grad.isfinite().all()


def test_state_is_that_of_the_masks(device):
    loss = MASTLoss(make_masks(device))
    assert list(loss.state_dict()) == ["masks.logits"]


@pytest.mark.parametrize(
    ("uncertainty", "change", "error", "message"),
    [
        (
            "none",
            {"pair_subspace": torch.zeros(2, 2, 5, dtype=torch.int64)},
            ValueError,
            r"pair_subspace must have shape \[3, 3, 5\] to fit views of shape \[3, 5, 20\], got "
            r"\[2, 2, 5\]",
        ),
        (
            "none",
            {"pair_subspace": torch.full((3, 3, 5), 4)},
            ValueError,
            "pair_subspace must lie below 4, the number of subspaces, got 4",
        ),
        ("none", {"log_var": torch.zeros(3, 5, 4)}, ValueError, "log_var is not used with"),
        ("subspace", {}, ValueError, "log_var must be given with uncertainty='subspace'"),
        (
            "subspace",
            {"log_var": torch.zeros(3, 5, 20)},
            ValueError,
            r"log_var_x must have shape \[3, 5, 4\]",
        ),
        ("none", {"views": torch.zeros(3, 1, 20)}, ValueError, "with N >= 2"),
        ("none", {"views": torch.zeros(3, 5, 8)}, ValueError, r"masks must have shape \[K, 8\]"),
        ("none", {"views": torch.zeros(3, 5, 20).int()}, TypeError, "x must be float32"),
    ],
)
def test_rejects(uncertainty, change, error, message):
    inputs = {"views": torch.randn(3, 5, DIM), "log_var": None} | change
    batch = inputs["views"].shape[1]
    inputs.setdefault("pair_subspace", torch.zeros(3, 3, batch, dtype=torch.int64))
    with pytest.raises(error, match=message):
        MASTLoss(make_masks("cpu"), uncertainty=uncertainty)(**inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uncertainty": "full"}, "uncertainty must be 'none', .* got 'full'"),
        ({"base": "simclr"}, "base must be 'vicreg' or 'nt_xent', got 'simclr'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (
            {"base": "nt_xent", "uncertainty": "subspace"},
            "uncertainty must be 'none' with base='nt_xent', got 'subspace'",
        ),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MASTLoss(make_masks("cpu"), **arguments)
