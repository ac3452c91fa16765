"""MASTLoss on the contrastive base: NT-Xent of masked embeddings in every subspace."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext.losses import MASTLoss, NTXentLoss, SubspaceMasks

VIEWS, BATCH, DIM, SUBSPACES, TEMPERATURE = 3, 10, 12, 4, 0.3


def make_loss(device, **options):
    generator = torch.Generator().manual_seed(0)
    masks = SubspaceMasks(SUBSPACES, DIM, generator=generator)
    options = {"temperature": TEMPERATURE, "sparsity": 7.0} | options
    return MASTLoss(masks, base="nt_xent", **options).to(device)


def make_views(device, dtype=torch.float32):
    return torch.randn(VIEWS, BATCH, DIM, device=device).to(dtype).requires_grad_()


def make_pairs(device):
    """Subspace 0 for half of the images, 1 and 3 elsewhere; nothing in subspace 2."""
    pairs = torch.full((VIEWS, VIEWS, BATCH), -1, device=device)
    pairs[0, 1] = pairs[1, 0] = 0
    pairs[0, 1, ::2] = pairs[1, 0, ::2] = 1
    pairs[0, 2, :5] = pairs[2, 0, :5] = 3
    return pairs


def definition(views, pairs, masks):
    """Mean over the subspaces that have pairs of the mean NT-Xent of those pairs."""
    each = NTXentLoss(TEMPERATURE, reduction="none")
    per_subspace = []
    for k, mask in enumerate(masks):
        terms = [
            each(mask * views[i], mask * views[j])[pairs[i, j] == k]
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        terms = torch.cat(terms)
        per_subspace.append(terms.mean() if len(terms) else None)
    return per_subspace


def test_equals_the_definition(device):
    loss, views, pairs = make_loss(device), make_views(device), make_pairs(device)
    masks = loss.masks()
    terms = loss(views, pairs)
    per_subspace = definition(views, pairs, masks)
    invariance = torch.stack([term for term in per_subspace if term is not None]).mean()
    want = invariance + 7.0 * masks.mean()
    assert_close(terms.loss, want, rtol=1e-5, atol=1e-5)
    for k, term in enumerate(per_subspace):
        assert_close(
            terms.logs[f"invariance/{k}"], torch.zeros_like(want) if term is None else term
        )
    inputs = (views, loss.masks.logits)
    for mine, truth in zip(
        torch.autograd.grad(terms.loss, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert_close(mine, truth, rtol=1e-4, atol=1e-6)


def test_weights_and_logs(device):
    views, pairs = make_views(device), make_pairs(device)
    terms = make_loss(device)(views, pairs)
    each = {f"invariance/{k}" for k in range(SUBSPACES)}
    assert set(terms.logs) == {"invariance", "sparsity", *each}
    heavy = make_loss(device, invariance=3.0, variance=100.0, covariance=100.0)(views, pairs)
    assert_close(heavy.loss, 3 * terms.logs["invariance"] + 7 * terms.logs["sparsity"])


def test_pair_losses(device):
    loss, views = make_loss(device, invariance=3.0), make_views(device)
    each = NTXentLoss(TEMPERATURE, reduction="none")
    masks = loss.masks()
    pairs = loss.pair_losses(views)
    assert pairs.shape == (VIEWS, VIEWS, BATCH)
    for i in range(VIEWS):
        for j in range(VIEWS):
            want = 3 * torch.stack([each(m * views[i], m * views[j]) for m in masks]).mean(0)
            assert_close(pairs[i, j], want, rtol=1e-5, atol=1e-5)


def test_no_pairs(device):
    loss, views = make_loss(device), make_views(device)
    terms = loss(views, torch.full((VIEWS, VIEWS, BATCH), -1, device=device))
    assert terms.logs["invariance"] == 0
    terms.loss.backward()
    assert not views.grad.any()


def test_a_blank_mask_finds_nothing(device):
    """Every row is as near as any other: the loss is the logarithm of their number."""
    loss, views = make_loss(device), make_views(device)
    loss.masks = SubspaceMasks(SUBSPACES, DIM, "relu").to(device)
    with torch.no_grad():
        loss.masks.logits.fill_(-1.0)
    terms = loss(views, make_pairs(device))
    assert_close(terms.logs["invariance"], torch.tensor(2.0 * BATCH - 1, device=device).log())
    terms.loss.backward()
    assert views.grad.isfinite().all() and loss.masks.logits.grad.isfinite().all()


def test_one_image(device):
    loss, views = make_loss(device), make_views(device)
    terms = loss(views[:, :1], torch.zeros(VIEWS, VIEWS, 1, dtype=torch.int64, device=device))
    assert terms.logs["invariance"].abs() < 1e-6
    terms.loss.backward()
    assert views.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(dtype, device):
    loss, views = make_loss(device), make_views(device, dtype)
    terms, exact = (loss(z, make_pairs(device)) for z in (views, views.float()))
    assert terms.loss.dtype == torch.float32
    rtol = 1e-5 if device.type == "cpu" else torch.finfo(dtype).eps  # masked rows stay 16-bit there
    assert_close(terms.loss, exact.loss, rtol=rtol, atol=0)
    terms.loss.backward()
    assert views.grad.dtype == dtype and views.grad.isfinite().all()


def test_compiles_whole(device):
    loss, views, pairs = make_loss(device), make_views(device), make_pairs(device)
    want = loss(views, pairs)
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(views, pairs)
    assert_close(got.loss, want.loss)
    grads = [torch.autograd.grad(terms.loss, loss.masks.logits)[0] for terms in (got, want)]
    assert_close(*grads)


def test_rejects_log_variances():
    with pytest.raises(ValueError, match="log_var is not used with base='nt_xent'"):
        make_loss("cpu")(make_views("cpu"), make_pairs("cpu"), torch.zeros(VIEWS, BATCH, DIM))
