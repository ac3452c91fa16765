"""MASTLoss against its definition, written out pair by pair."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import reference
from mast_ext.losses import AugmentationMasks, MASTLoss, NTXentLoss, VICRegLoss

BATCH, DIM, FREED = 24, 20, (0.3, 0.0, 0.2)
BASES = ["vicreg", "nt_xent"]
WEIGHTS = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}


def make_loss(device, base="vicreg", freed=FREED, learned=True, price=None, **options):
    generator = torch.Generator().manual_seed(0)
    masks = AugmentationMasks(
        freed, DIM, learned=learned, price=price, sharpness=1.0, generator=generator
    )
    return MASTLoss(masks, base=base, **(WEIGHTS | {"temperature": 0.3} | options)).to(device)


def make_inputs(device, dtype=torch.float32):
    """Embeddings of two views, augmentations they differ by, log-variances."""
    x = torch.randn(BATCH, DIM, device=device)
    y = x + 0.5 * torch.randn(BATCH, DIM, device=device)
    changed = torch.rand(BATCH, len(FREED), device=device) < 0.6
    log_variance = torch.randn(BATCH, device=device, requires_grad=True)
    x, y = (z.to(dtype).requires_grad_() for z in (x, y))
    return x, y, changed, log_variance


def masks_of_pairs(loss, changed):
    """Product of the masks of what a pair differs by, ``[N, D]``."""
    return torch.where(changed[:, :, None], loss.masks(), 1.0).prod(1)


def definition(loss, x, y, changed, log_variance=None):
    masks = masks_of_pairs(loss, changed)
    p = torch.ones_like(x[:, 0])
    if log_variance is not None:
        p = (-loss.softness * log_variance.detach()).exp()
        p = p / p.mean()
    if loss.base == "vicreg":
        weights = masks.square()
        squares = weights * (x - y).square()
        residual = squares.sum(1) / weights.sum(1)
        compared = (p[:, None] * weights).sum(0).clamp_min(1)
        value = loss.invariance * ((p[:, None] * squares).sum(0) / compared).mean()
        variance, covariance = reference.variance_covariance(torch.stack((x, y)))
        value = value + loss.variance * variance.mean() + loss.covariance * 2 * covariance.mean()
    else:
        each = NTXentLoss(loss.temperature, reduction="none")
        residual = torch.stack([each(x * masks[n], y * masks[n])[n] for n in range(len(x))])
        value = loss.invariance * (p * residual).mean()
    if log_variance is None:
        return value
    return value + (residual.detach() * (-log_variance).exp() + log_variance).mean() / 2


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_equals_the_definition(base, uncertain, device):
    loss = make_loss(device, base, softness=0.7)
    x, y, changed, log_variance = make_inputs(device)
    given = (log_variance,) if uncertain else ()
    found, want = loss(x, y, changed, *given).loss, definition(loss, x, y, changed, *given)
    assert_close(found, want, rtol=1e-5, atol=1e-5)
    inputs = [x, y, loss.masks.logits, *given]
    for mine, truth in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert_close(mine, truth, rtol=1e-4, atol=1e-5)


def priced_definition(loss, x, y, changed, p):
    """With what masks learn from: every dimension's saving where an augmentation frees it."""
    masks, savings = loss.masks(), torch.zeros(len(FREED), DIM)

    def mean_difference(m):
        weights = p[:, None] * torch.where(changed[:, :, None], m, 1.0).prod(1).square()
        return (weights * (x - y).square()).sum(0) / weights.sum(0)

    fixed = masks.detach()
    for k, freed in enumerate(FREED):
        if freed:
            with_mask = [fixed.clone().index_fill_(0, torch.tensor([k]), m) for m in (1.0, 0.0)]
            all_pairs, others = map(mean_difference, with_mask)
            savings[k] = (all_pairs - others).detach()
    variance, covariance = reference.variance_covariance(torch.stack((x, y)))
    terms = loss.variance * variance.mean() + loss.covariance * 2 * covariance.mean()
    terms = terms + loss.invariance * mean_difference(fixed).mean()
    learned = (1 - masks) * (loss.masks.price - savings)
    paid = loss.masks.price * (1 - fixed).mean(1).sum()
    return (
        terms
        + loss.invariance * (learned - learned.detach()).mean(1).sum()
        + (loss.invariance * paid)
    )


@pytest.mark.parametrize("uncertain", [False, True])
def test_a_price_equals_its_definition(uncertain):
    loss = make_loss("cpu", price=0.2)
    x, y, changed, log_variance = make_inputs("cpu")
    p, given, constant = torch.ones(BATCH), (), 0.0
    if uncertain:
        given = (log_variance.detach(),)
        p = (-given[0]).exp()
        p = p / p.mean()
    found = loss(x, y, changed, *given)
    if uncertain:
        constant = found.logs["uncertainty"]
    want = priced_definition(loss, x, y, changed, p) + constant
    assert_close(found.loss, want, rtol=1e-5, atol=1e-5)
    assert_close(found.logs["freed"], (1 - loss.masks()).mean(1).sum().detach())
    inputs = [x, y, loss.masks.logits]
    for mine, truth in zip(
        torch.autograd.grad(found.loss, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert_close(mine, truth, rtol=1e-4, atol=1e-6)


def test_a_price_frees_what_saves_more(device):
    """From either side, of embeddings that change by known amounts under one augmentation."""
    torch.manual_seed(0)
    change = torch.linspace(0, 2, DIM, device=device)  # saved by half: half of the pairs differ
    for start in (0.1, 0.9):
        loss = make_loss(device, freed=(start, 0.0, 0.5), price=0.3)
        optimizer = torch.optim.Adam(loss.masks.parameters(), lr=0.1)
        for _ in range(200):
            x = torch.randn(256, DIM, device=device)
            changed = torch.rand(256, 3, device=device) < 0.5
            moved = x + changed[:, :1] * change.sqrt() * torch.randn(256, DIM, device=device)
            optimizer.zero_grad()
            loss(x, moved, changed).loss.backward()
            optimizer.step()
        freed = loss.masks()[0] < 0.5
        certain = (change / 2 - 0.3).abs() > 0.05
        assert torch.equal(freed[certain], change[certain] / 2 > 0.3)
        assert loss.masks.freed_share()[2] < 0.1  # what changes nothing frees nothing


def test_where_no_pair_shares_the_price_frees_nothing(device):
    """What freeing a dimension would save is unknown then."""
    loss = make_loss(device, freed=(0.5,), price=0.2)
    x, y, *_ = make_inputs(device)
    changed = torch.ones(BATCH, 1, dtype=torch.bool, device=device)
    (grad,) = torch.autograd.grad(loss(x, y, changed).loss, loss.masks.logits)
    assert (grad < 0).all()


def test_a_price_compiles_whole(device):
    loss = make_loss(device, price=0.2)
    inputs = make_inputs(device)[:3]
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    assert_close(got.loss, loss(*inputs).loss)


def test_a_price_of_nothing_is_the_base(device):
    x, y, *_ = make_inputs(device)
    changed = torch.rand(BATCH, 2, device=device) < 0.5
    masks = AugmentationMasks((0.0, 0.0), DIM, price=0.2).to(device)
    terms = MASTLoss(masks)(x, y, changed)
    assert_close(terms.loss, VICRegLoss()(x, y))
    assert terms.logs["freed"] == 0


def test_contrast_has_no_price():
    with pytest.raises(ValueError, match="masks must have no price on the nt_xent base, got 0.2"):
        make_loss("cpu", "nt_xent", price=0.2)


@pytest.mark.parametrize("base", BASES)
def test_logs_are_the_terms_before_their_weights(base, device):
    loss = make_loss(device, base)
    terms = loss(*make_inputs(device))
    names = [*WEIGHTS] if base == "vicreg" else ["invariance"]
    assert set(terms.logs) == {*names, "uncertainty"}
    assert not any(value.requires_grad for value in terms.logs.values())
    total = sum(WEIGHTS[name] * terms.logs[name] for name in names) + terms.logs["uncertainty"]
    assert_close(total, terms.loss.detach())
    assert set(loss(*make_inputs(device)[:3]).logs) == set(names)


@pytest.mark.parametrize("freed", [(), (0.0, 0.0)])
def test_without_masks_it_is_the_base(freed, device):
    x, y, *_ = make_inputs(device)
    changed = torch.rand(BATCH, len(freed), device=device) < 0.5
    masks = AugmentationMasks(freed, DIM).to(device)
    assert_close(MASTLoss(masks)(x, y, changed).loss, VICRegLoss()(x, y))
    assert_close(MASTLoss(masks, base="nt_xent")(x, y, changed).loss, NTXentLoss(0.2)(x, y))


def test_freed_dimensions_are_compared_only_when_their_augmentation_is_shared(device):
    """A block's dimensions have no invariance gradient from a pair that differs by it."""
    loss = make_loss(device, learned=False, variance=0.0, covariance=0.0)
    x, y, changed, _ = make_inputs(device)
    (grad,) = torch.autograd.grad(loss(x, y, changed).loss, x)
    freed = loss.masks()[0] == 0
    assert freed.sum() == 6
    assert not grad[changed[:, 0]][:, freed].any()
    assert grad[~changed[:, 0] & ~changed[:, 2]].all()


def test_a_dimension_that_few_pairs_compare_is_held_as_firmly(device):
    """The mean over its own pairs: moving all of them apart costs as much as for any other."""
    loss = make_loss(device, learned=False, variance=0.0, covariance=0.0, freed=(0.5,))
    x = torch.zeros(BATCH, DIM, device=device)
    changed = torch.ones(BATCH, 1, dtype=torch.bool, device=device)
    changed[:3] = False  # compared on all dimensions
    freed = loss.masks()[0] == 0
    apart = [x.clone() for _ in range(2)]
    apart[0][:3, freed] += 1
    apart[1][:, ~freed] += 1
    of_freed, of_others = (loss(x, y, changed).loss for y in apart)
    assert_close(of_freed, of_others)


def test_nothing_is_held_by_less_than_a_pair(device):
    """No pair shares what a learned mask has all but freed: it stays free."""
    loss = make_loss(device, variance=0.0, covariance=0.0, freed=(0.5,))
    with torch.no_grad():
        loss.masks.logits.copy_(torch.linspace(-40, 40, DIM)[None])
    x, y, *_ = make_inputs(device)
    changed = torch.ones(BATCH, 1, dtype=torch.bool, device=device)
    (grad,) = torch.autograd.grad(loss(x, y, changed).loss, x)
    per_dimension = grad.abs().mean(0)
    assert per_dimension[:8].max() < 1e-3 * per_dimension[-8:].min()


@pytest.mark.parametrize("base", BASES)
def test_uncertainty_that_float32_cannot_hold(base, device):
    """Of pairs that agree entirely, and of one that has no dimension left."""
    loss = make_loss(device, base, freed=(1 / DIM, 0.95), learned=False)
    x, *_ = make_inputs(device)
    changed = torch.zeros(BATCH, 2, dtype=torch.bool, device=device)
    changed[0] = True
    for value in (-200.0, 200.0):
        log_variance = torch.full((BATCH,), value, device=device, requires_grad=True)
        found = loss(x, x.detach(), changed, log_variance).loss
        grads = torch.autograd.grad(found, (x, log_variance))
        assert all(each.isfinite().all() for each in (found, *grads))


@pytest.mark.parametrize("base", BASES)
def test_embeddings_wider_than_the_masks(base):
    loss = make_loss("cpu", base)
    x, y, changed, _ = make_inputs("cpu", torch.float64)
    assert_close(
        loss(x, y, changed).loss.float(),
        loss(x.float(), y.float(), changed).loss,
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("base", BASES)
def test_uncertain_pairs_count_less(base, device):
    """A few among many: the others weigh hardly more than without uncertainty."""
    loss = make_loss(device, base, variance=0.0, covariance=0.0, temperature=5.0)
    x, _, changed, _ = make_inputs(device)
    changed[:] = True
    y = x.detach() + torch.randn(1, DIM, device=device)  # all alike
    log_variance = torch.zeros(BATCH, device=device)
    plain = torch.autograd.grad(loss(x, y, changed, log_variance).loss, x)[0].norm(dim=1)
    log_variance[:4] = 6.0
    grad = torch.autograd.grad(loss(x, y, changed, log_variance).loss, x)[0].norm(dim=1)
    ratio = grad / plain
    assert ratio[:4].mean() < 0.6 * ratio[4:].mean()
    if base == "vicreg":  # where pairs are apart
        weight = BATCH / (BATCH - 4)
        assert ratio[:4].max() < 0.01 and (ratio[4:] - weight).abs().max() < 0.02


@pytest.mark.parametrize("base", BASES)
def test_only_differences_of_uncertainty_are_weights(base, device):
    """A constant more in all log-variances changes the likelihood alone."""
    loss = make_loss(device, base)
    x, y, changed, log_variance = make_inputs(device)
    terms, more = (loss(x, y, changed, log_variance + add) for add in (0, 3))
    assert_close(terms.logs["invariance"], more.logs["invariance"])
    assert not terms.logs["uncertainty"].isclose(more.logs["uncertainty"])


@pytest.mark.parametrize("base", BASES)
def test_pairs_that_no_dimension_compares_have_no_weight(base, device):
    """Blocks that together free everything: the residual of a pair that differs by both is 0."""
    loss = make_loss(device, base, freed=(0.5, 0.5), learned=False)
    x, y, _, log_variance = make_inputs(device)
    changed = torch.zeros(BATCH, 2, dtype=torch.bool, device=device)
    changed[:6] = True
    log_variance = log_variance.detach()
    log_variance[:6] = -8.0  # what such a residual teaches
    found, want = (
        loss(x[rows], y[rows], changed[rows], log_variance[rows]).logs
        for rows in (slice(None), slice(6, None))
    )
    if base == "vicreg":  # on the other, these pairs are among the negatives
        assert_close(found["uncertainty"], want["uncertainty"])
        assert_close(found["invariance"], want["invariance"])
    log_variance.requires_grad_()
    (grad,) = torch.autograd.grad(loss(x, y, changed, log_variance).loss, log_variance)
    assert not grad[:6].any() and grad[6:].any()


@pytest.mark.parametrize("base", BASES)
def test_nothing_to_compare(base, device):
    loss = make_loss(device, base, freed=(0.5, 0.5), learned=False, variance=0.0, covariance=0.0)
    x, y, _, log_variance = make_inputs(device)
    changed = torch.ones(BATCH, 2, dtype=torch.bool, device=device)
    terms = loss(x, y, changed, log_variance)
    assert terms.loss == 0
    terms.loss.backward()
    assert x.grad.isfinite().all() and log_variance.grad.isfinite().all()


def test_blank_masks_have_finite_gradients(device):
    loss = make_loss(device, freed=(0.5,))
    with torch.no_grad():
        loss.masks.logits.copy_(torch.linspace(-100, 100, DIM)[None])
    views = torch.randn(2, BATCH, DIM, device=device)
    changed = torch.ones(BATCH, 1, dtype=torch.bool, device=device)
    loss.pair_losses(views, changed).sum().backward()
    assert loss.masks.logits.grad.isfinite().all()


def test_the_network_of_the_uncertainty_learns_the_residual(device):
    """The minimum of the likelihood is the log of the pair's mean squared difference."""
    loss = make_loss(device)
    x, y, changed, log_variance = make_inputs(device)
    weights = masks_of_pairs(loss, changed).square()
    residual = (weights * (x - y).square()).sum(1) / weights.sum(1)
    best = residual.log().detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x, y, changed, best).loss, best)
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("base", BASES)
def test_pair_losses(base, device):
    loss = make_loss(device, base)
    views = torch.randn(3, BATCH, DIM, device=device)
    changed = make_inputs(device)[2]
    pairs = loss.pair_losses(views, changed)
    assert pairs.shape == (3, 3, BATCH)
    masks = masks_of_pairs(loss, changed)
    for i in range(3):
        for j in range(3):
            if base == "vicreg":
                weights = masks.square()
                squares = weights * (views[i] - views[j]).square()
                want = squares.sum(1) / weights.sum(1)
            else:
                each = NTXentLoss(0.3, reduction="none")
                pair = (views[i], views[j])
                want = torch.stack([each(*(z * masks[n] for z in pair))[n] for n in range(BATCH)])
            assert_close(pairs[i, j], loss.invariance * want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_compiles_whole(base, uncertain, device):
    loss = make_loss(device, base)
    inputs = make_inputs(device)[: 4 if uncertain else 3]
    want = loss(*inputs)
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    assert_close(got.loss, want.loss)
    leaves = [inputs[0], loss.masks.logits]
    for mine, truth in zip(
        *(torch.autograd.grad(t.loss, leaves) for t in (got, want)), strict=True
    ):
        assert_close(mine, truth)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_embeddings(dtype, base, device):
    loss = make_loss(device, base)
    x, y, changed, log_variance = make_inputs(device, dtype)
    found, exact = (
        loss(a, b, changed, log_variance).loss for a, b in ((x, y), (x.float(), y.float()))
    )
    assert found.dtype == torch.float32
    assert_close(found, exact, rtol=1e-2, atol=0)
    found.backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all() and y.grad.isfinite().all()


def test_float64():
    loss = make_loss("cpu").double()
    x, y, changed, log_variance = make_inputs("cpu", torch.float64)
    assert loss(x, y, changed, log_variance).loss.dtype == torch.float64


@pytest.mark.parametrize("extreme", [-80.0, 80.0])
def test_extreme_uncertainty_is_finite(extreme, device):
    loss = make_loss(device)
    x, y, changed, _ = make_inputs(device)
    log_variance = torch.zeros(BATCH, device=device)
    log_variance[3] = extreme
    terms = loss(x, y, changed, log_variance)
    terms.loss.backward()
    assert terms.logs["invariance"].isfinite() and x.grad.isfinite().all()


def test_state_is_that_of_the_masks(device):
    assert list(make_loss(device).state_dict()) == ["masks.logits"]


def test_one_image_contrasts_with_nothing(device):
    loss = make_loss(device, "nt_xent")
    x, y, changed, _ = make_inputs(device)
    terms = loss(x[:1], y[:1], changed[:1])
    assert terms.logs["invariance"].abs() < 1e-6
    terms.loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(5, 8)}, ValueError, r"x and y must have one shape \[N, D\]"),
        (
            {"changed": torch.zeros(5, 2).bool()},
            ValueError,
            r"changed must have shape \[N, 3\], a column for every augmentation, got \[5, 2\]",
        ),
        (
            {"changed": torch.zeros(4, 3).bool()},
            ValueError,
            r"changed must have a row for each of the 5 pairs, got \[4, 3\]",
        ),
        ({"changed": torch.zeros(5, 3)}, TypeError, "changed must be bool, got torch.float32"),
        (
            {"log_variance": torch.zeros(5, 1)},
            ValueError,
            r"log_variance must have shape \[5\], one number for each pair, got \[5, 1\]",
        ),
        (
            {"x": torch.zeros(5, 8), "y": torch.zeros(5, 8)},
            ValueError,
            r"x must have 20 dimensions, those of the masks, got \[5, 8\]",
        ),
        (
            {"x": torch.zeros(5, DIM).int(), "y": torch.zeros(5, DIM).int()},
            TypeError,
            "x must be floating point",
        ),
    ],
)
def test_rejects(change, error, message):
    inputs = {"x": torch.randn(5, DIM), "y": torch.randn(5, DIM)}
    inputs |= {"changed": torch.zeros(5, 3, dtype=torch.bool)} | change
    with pytest.raises(error, match=message):
        make_loss("cpu")(**inputs)


def test_rejects_a_single_pair():
    one = torch.randn(1, DIM)
    with pytest.raises(ValueError, match="x must hold 2 or more images, got 1"):
        make_loss("cpu")(one, one, torch.zeros(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "simclr"}, "base must be 'vicreg' or 'nt_xent', got 'simclr'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"softness": -1.0}, "softness must be at least 0, got -1.0"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_loss("cpu", **arguments)
