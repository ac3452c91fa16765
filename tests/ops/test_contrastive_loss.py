"""contrastive_loss against its definition and against the operators that it is made of."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

SHAPES = [  # V, N, D
    (2, 1, 8),
    (2, 2, 3),
    (2, 65, 33),
    (3, 70, 130),
    (4, 33, 96),
    (2, 300, 257),  # wider than tiles
    (2, 520, 16),  # more anchors than one thread block takes
    (5, 210, 12),
]
OPTIONS = [
    {"temperature": 0.5},
    {"temperature": 0.1, "decoupled": True},
    {"temperature": 0.02},
    {"temperature": 0.07, "within_views": False},
    {"temperature": 0.2, "within_views": False, "one_sided": True},
    {"temperature": 0.3, "one_sided": True, "decoupled": True},
]
FORMS = ["stacked", "list", "backwards", "apart"]


def make_views(shape, form, device, dtype=torch.float32):
    """Views that lie in memory as they may: one after the other, or in any order."""
    torch.manual_seed(0)
    views = torch.randn(shape, device=device)
    views = (views + torch.randn(shape[1:], device=device)).to(dtype)
    if form == "stacked":
        return list(views.unbind())
    if form == "backwards":
        return list(views.flip(0).clone().unbind())[::-1]
    if form == "apart":  # rows with strides, at unequal distances
        memory = torch.empty(shape[0] ** 2, shape[1], shape[2] + 3, device=device, dtype=dtype)
        return [memory[i**2, :, 1:-2].copy_(view) for i, view in enumerate(views)]
    return [view.clone() for view in views]


def evaluate(function, views, options):
    """The loss and the gradients of the views, for a gradient of the loss that is not 1."""
    leaves = [view.detach().requires_grad_() for view in views]
    loss = function(leaves, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, torch.full_like(loss, 0.3))


def composed(views, *, temperature, decoupled=False, within_views=True, one_sided=False):
    lse, positive = functional.contrastive_logsumexp(
        torch.stack(tuple(views)),
        temperature=temperature,
        exclude_positive=True,
        within_views=within_views,
    )
    if one_sided:
        excess = torch.logaddexp(lse[0, 0, :1], lse[0, 0, 1:]) - positive[0, 0, 1:]
        return (excess if decoupled else torch.nn.functional.softplus(excess)).mean()
    losses = functional.view_pair_cross_entropy(
        lse, positive, decoupled=decoupled, reduction="mean"
    )
    return losses[0]


def error(got, truth):
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-6)).item()


def is_defined(shape, options):
    return shape[1] > 1 or not options.get("decoupled")


CASES = [(shape, options) for shape in SHAPES for options in OPTIONS if is_defined(shape, options)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_matches_definition(shape, options, dtype, device):
    """No worse than the operators that it is made of, whose own tests bound their errors."""
    views = make_views(shape, "list", device, dtype)
    got = evaluate(functional.contrastive_loss, views, options)
    made = evaluate(composed, views, options)
    truth = evaluate(
        reference.contrastive_loss, [view.detach().cpu().double() for view in views], options
    )
    for mine, theirs, want, leaf in zip(got, made, truth, (None, *views), strict=True):
        assert mine.shape == want.shape
        assert mine.dtype == (torch.float32 if leaf is None else leaf.dtype)
        assert error(mine, want) <= 1.2 * error(theirs, want) + 3e-6


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 5, 2)], ids=str)
def test_gradient(shape, options):
    views = make_views(shape, "list", "cpu", torch.float64)

    def loss(*views):
        return functional.contrastive_loss(views, **options)

    assert torch.autograd.gradcheck(loss, [view.requires_grad_() for view in views])


@pytest.mark.parametrize("decoupled", [False, True])
def test_gradient_of_the_temperature(decoupled, device):
    """That of CLIP learns its temperature."""
    views = make_views((2, 40, 24), "list", device)
    found = []
    for function, dtype in ((functional.contrastive_loss, torch.float32), (None, torch.float64)):
        temperature = torch.tensor(0.2, dtype=dtype, device="cpu" if function is None else device)
        temperature.requires_grad_()
        of = views if function else [view.cpu().double() for view in views]
        loss = (function or reference.contrastive_loss)(
            of, temperature=temperature, decoupled=decoupled, within_views=False
        )
        found.append((3 * loss, *torch.autograd.grad(3 * loss, temperature)))
    assert_close(*found, rtol=2e-5, atol=1e-5, check_dtype=False, check_device=False)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_gradient_of_some_views(wanted, device):
    views = make_views((3, 20, 16), "list", device)
    want = evaluate(functional.contrastive_loss, views, OPTIONS[0])[1 + wanted]
    views[wanted].requires_grad_()
    loss = functional.contrastive_loss(views, **OPTIONS[0])
    (found,) = torch.autograd.grad(loss, views[wanted], torch.full_like(loss, 0.3))
    assert torch.equal(found, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 30, 40), (3, 130, 7), (2, 540, 16), (2, 20, 257)], ids=str)
def test_equal_bits_on_every_run_and_in_any_memory(shape, dtype, device):
    found = [
        evaluate(functional.contrastive_loss, make_views(shape, form, device, dtype), OPTIONS[0])
        for form in FORMS
    ]
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_no_negatives(device):
    """A single image has nothing to be told from; where the blocks of a view are left out, too."""
    views = make_views((2, 1, 8), "list", device)
    for within in (True, False):
        loss, *grads = evaluate(
            functional.contrastive_loss, views, {"temperature": 0.1, "within_views": within}
        )
        assert loss == 0 and not any(grad.any() for grad in grads)
    loss, *grads = evaluate(
        functional.contrastive_loss, views, {"temperature": 0.1, "decoupled": True}
    )
    assert loss == -torch.inf and all(grad.isfinite().all() for grad in grads)


def test_nan_of_a_query_does_not_reach_other_queries(device):
    """Where the keys are no anchors and queries are not compared with each other."""
    views = make_views((2, 6, 7), "list", device)
    views[0][2] = torch.nan
    options = {"temperature": 0.5, "within_views": False, "one_sided": True}
    _, queries, keys = evaluate(functional.contrastive_loss, views, options)
    assert queries.isnan().any(1).nonzero().flatten().tolist() == [2]
    assert keys.isnan().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_whose_norm_overflows_has_no_gradient(options):
    """On the CPU; CUDA's tiles make it NaN."""
    views = make_views((2, 6, 7), "list", "cpu")
    views[0][2] *= 1e20
    _, *grads = evaluate(functional.contrastive_loss, views, options)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][2].any()


def test_scaled_gradients_of_float16(device):
    """A loss scaler's factor multiplies the gradients before they are rounded."""
    views = make_views((2, 90, 32), "list", device, torch.float16)
    leaves = [view.requires_grad_() for view in views]
    scaled = torch.autograd.grad(
        functional.contrastive_loss(leaves, temperature=0.5) * 2**14, leaves
    )
    truth = evaluate(
        reference.contrastive_loss,
        [view.detach().cpu().double() for view in views],
        {"temperature": 0.5},
    )[1:]
    for got, want in zip(scaled, truth, strict=True):
        assert error(got, want / 0.3 * 2**14) < 1e-3


def test_slopes_are_kept_for_a_gradient_only():
    views = make_views((2, 9, 8), "list", "cpu")
    lse, slopes, _, products = ops.contrastive_loss.op(views, None, 0.5, False, True, False, True)[
        1:
    ]
    assert slopes.shape == (2, *lse.shape) and products.numel()
    *_, slopes, _, products = ops.contrastive_loss.op(views, None, 0.5, False, True, False, False)
    assert not slopes.numel() and not products.numel()
