"""view_pair_cross_entropy against its definition, its own gradient, and sums over nothing."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

SHAPES = [(2, 2, 1), (2, 2, 256), (3, 3, 7), (1, 4, 4, 130), (2, 3, 2, 2, 33), (1, 1, 9)]
MANY = [(2, 2, 1100), (3, 3, 3, 700)]  # images in several blocks
OPTIONS = [
    {"decoupled": decoupled, "reduction": reduction}
    for decoupled in (False, True)
    for reduction in ("none", "mean")
]
# By how much positives exceed other logits: a batch at the start, one that is told apart, and one
# where no positive is found.
MARGINS = [0.0, 8.0, 60.0, -60.0]


def make_logits(shape, margin=0.0):
    torch.manual_seed(0)
    lse = 3 * torch.randn(shape) + 5
    return lse, lse + margin + torch.randn(shape)


def with_gradients(function, inputs, options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    loss = function(*inputs, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(loss.shape, generator=generator).to(loss)
    return loss.detach(), *torch.autograd.grad(loss, inputs, grad)


def compare(shape, options, margin, device):
    """Errors against float64: ours, and those of plain torch."""
    inputs = make_logits(shape, margin)
    truth = with_gradients(reference.view_pair_cross_entropy, [t.double() for t in inputs], options)
    plain = with_gradients(reference.view_pair_cross_entropy, inputs, options)
    inputs = [t.to(device) for t in inputs]
    mine = with_gradients(functional.view_pair_cross_entropy, inputs, options)
    for got, theirs, exact in zip(mine, plain, truth, strict=True):
        assert got.dtype == torch.float32 and got.shape == exact.shape
        error, usual = (
            (t.cpu().double() - exact).norm().item() / max(exact.norm().item(), 1e-30)
            for t in (got, theirs)
        )
        assert error <= 1.5 * usual + 3e-7


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, options, device):
    if options["reduction"] == "mean" and shape[-2] == 1:
        pytest.skip("no two views")
    compare(shape, options, 0.0, device)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", MANY, ids=str)
def test_of_many_images(shape, options, device):
    compare(shape, options, 0.0, device)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_as_exact_as_plain_torch(options, margin, device):
    compare((3, 3, 100), options, margin, device)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient(options):
    inputs = [t.double().requires_grad_() for t in make_logits((2, 3, 3, 5))]
    assert functional.view_pair_cross_entropy(*inputs, **options).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda *inputs: functional.view_pair_cross_entropy(*inputs, **options), inputs
    )


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_of_one_alone(options, wanted, device):
    inputs = [t.to(device) for t in make_logits((2, 3, 3, 5))]
    want = with_gradients(functional.view_pair_cross_entropy, inputs, options)[1 + wanted]
    inputs[wanted].requires_grad_()
    loss = functional.view_pair_cross_entropy(*inputs, **options)
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
    assert torch.equal(torch.autograd.grad(loss, inputs[wanted], grad)[0], want)


def test_is_symmetric(device):
    loss = functional.view_pair_cross_entropy(*(t.to(device) for t in make_logits((4, 4, 50))))
    assert torch.equal(loss, loss.transpose(0, 1))


@pytest.mark.parametrize("decoupled", [False, True])
def test_mean_is_that_of_different_views(decoupled, device):
    inputs = [t.to(device) for t in make_logits((2, 3, 3, 600))]
    pairs = functional.view_pair_cross_entropy(*inputs, decoupled=decoupled)
    mean = functional.view_pair_cross_entropy(*inputs, decoupled=decoupled, reduction="mean")
    different = ~torch.eye(3, dtype=torch.bool, device=device)
    assert_close(mean, pairs[:, different].mean((1, 2)))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_of_clip_has_no_sums_within(reduction, device):
    """Where a view is not contrasted with itself, its sum is over nothing."""
    lse, positive = (t.to(device) for t in make_logits((2, 2, 40)))
    lse[[0, 1], [0, 1]], positive[[0, 1], [0, 1]] = -torch.inf, 0.0
    loss, *grads = with_gradients(
        functional.view_pair_cross_entropy, (lse, positive), {"reduction": reduction}
    )
    terms = torch.nn.functional.softplus(lse - positive)
    want = (terms[0, 1] + terms[1, 0]) / 2
    assert_close(
        loss if reduction == "mean" else loss[0, 1], want.mean() if loss.ndim == 0 else want
    )
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][[0, 1], [0, 1]].any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_negatives(options, device):
    """A single image: nothing to tell the positive from."""
    _, positive = make_logits((2, 2, 5))
    lse = torch.full_like(positive, -torch.inf)
    loss, *grads = with_gradients(
        functional.view_pair_cross_entropy, [t.to(device) for t in (lse, positive)], options
    )
    if options["decoupled"]:
        assert (loss == -torch.inf).all() and all(grad.isfinite().all() for grad in grads)
    else:
        assert not loss.any() and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("views", [(0, 1), (1, 1)])
def test_nan_stays_with_its_pairs_and_image(views, decoupled, device):
    lse, positive = make_logits((3, 3, 140))
    lse[views[0], views[1], 77] = torch.nan
    options = {"decoupled": decoupled}
    loss, *grads = with_gradients(
        functional.view_pair_cross_entropy, [t.to(device) for t in (lse, positive)], options
    )
    image = loss.isnan().cpu()
    assert not image[..., :77].any() and not image[..., 78:].any()
    pairs = torch.zeros(3, 3, dtype=torch.bool)
    if views == (1, 1):  # all pairs of view 1
        pairs[1] = pairs[:, 1] = True
    else:
        pairs[0, 1] = pairs[1, 0] = True
    assert torch.equal(image[..., 77], pairs)
    for grad in grads:
        assert grad[..., :77].isfinite().all() and grad[..., 78:].isfinite().all()
        assert grad[2, 2, 77].isfinite()


@pytest.mark.parametrize("decoupled", [False, True])
def test_mean_leaves_views_with_themselves_alone(decoupled, device):
    inputs = [t.to(device) for t in make_logits((3, 3, 20))]
    options = {"decoupled": decoupled, "reduction": "mean"}
    want = with_gradients(functional.view_pair_cross_entropy, inputs, options)
    inputs[1][[0, 1, 2], [0, 1, 2]] = torch.nan
    got = with_gradients(functional.view_pair_cross_entropy, inputs, options)
    assert all(torch.equal(mine, clean) for mine, clean in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("shape", "reduction"), [((2, 2, 0), "none"), ((0, 2, 2, 5), "none"), ((0, 2, 2, 5), "mean")]
)
def test_of_nothing(shape, reduction, device):
    inputs = [torch.zeros(shape, device=device) for _ in range(2)]
    loss, *grads = with_gradients(
        functional.view_pair_cross_entropy, inputs, {"reduction": reduction}
    )
    assert loss.shape == (shape if reduction == "none" else shape[:-3])
    assert all(grad.shape == shape for grad in grads)
