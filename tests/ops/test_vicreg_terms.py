"""vicreg_terms against its definition and against the operators that it is made of."""

import sys

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

SHAPES = [
    (2, 1),
    (5, 3),  # direct
    (33, 7),
    (70, 64),
    (140, 129),  # more than a small product
    (300, 257),
    (4, 9),  # Gram
    (2, 64),
    (17, 33),
    (40, 132),
    (9, 257),
    (130, 300),
]
CHUNKS = [(1300, 110), (8300, 20), (60, 2300)]
CPU = functional.MOST_TOGETHER
SCALES, WEIGHTS = (0.01, 0.5, 1.5), (2.0, 25.0, 0.7)


@pytest.fixture(autouse=True)
def operator_alone(monkeypatch):
    """Of large views, too, of which the function takes one after the other on a CPU."""
    monkeypatch.setattr(functional, "MOST_TOGETHER", sys.maxsize)


def make_views(shape, device, dtype=torch.float32):
    x = torch.randn(shape, device=device) + 0.5
    return x.to(dtype), (x + 0.5 * torch.randn(shape, device=device)).to(dtype)


def more_inputs(kind, shape, device="cpu", dtype=torch.float32, groups=5):
    """What takes the place of the differences, by name: nothing, numbers or groups."""
    if kind == "numbers":
        return {"invariance": torch.rand(3, 131, device=device, dtype=dtype)}
    if kind == "groups":  # some pairs are in none, and some dimensions are compared by few
        weights = torch.rand(groups, shape[1], device=device, dtype=dtype)
        weights[:, ::3] /= 100
        group = torch.randint(-1, groups, shape[:1], device=device)
        return {"group": group, "group_weights": weights}
    return {}


def evaluate(function, views, more=None):
    """The total, the terms and the gradients, for a gradient of the total that is not 1."""
    x, y = (t.detach().requires_grad_() for t in views)
    more = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in (more or {}).items()}
    total, terms = function(x, y, **more, scales=SCALES, weights=WEIGHTS)
    leaves = [t for t in (x, y, *more.values()) if t.requires_grad]
    return total.detach(), *terms, *torch.autograd.grad(total, leaves, torch.full_like(total, 0.3))


def error(got, truth):
    """Norm of the error, relative where the truth is not tiny."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-6)).item()


def exact(t):
    return t.cpu().double() if t.is_floating_point() else t.cpu()


def compare(views, tolerance, more=None):
    """Ours against the truth in float64, no worse than the plain version in the inputs' dtype."""
    more = more or {}
    got = evaluate(functional.vicreg_terms, views, more)
    truth = evaluate(
        reference.vicreg_terms, map(exact, views), {k: exact(t) for k, t in more.items()}
    )
    plain = evaluate(reference.vicreg_terms, views, more)
    product = ops.vicreg_terms.op(*views, None, None, None, 1e-4, SCALES, WEIGHTS)[4]
    tolerance += torch.finfo(product.dtype).eps  # of squares; bfloat16 of bfloat16 on CUDA
    dtypes = [torch.float32] * 4 + [views[0].dtype] * 2 + [torch.float32] * bool(more)
    for mine, theirs, want, dtype in zip(got, plain, truth, dtypes, strict=True):
        assert mine.shape == want.shape
        assert error(mine, want) <= 1.5 * error(theirs, want) + tolerance
        assert mine.dtype == dtype


KINDS = ["differences", "numbers", "groups"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, kind, device):
    views = make_views(shape, device, dtype)
    compare(views, tolerance=4e-6, more=more_inputs(kind, shape, device))


@pytest.mark.parametrize("shape", [(9, 700), (600, 33)], ids=str)
def test_many_groups(shape, device):
    """More than the thread block that finishes takes, or of several slices of the rows."""
    more = more_inputs("groups", shape, device, groups=60)
    compare(make_views(shape, device), tolerance=4e-6, more=more)


@pytest.mark.parametrize("kind", ["differences", "groups"])
@pytest.mark.parametrize("shape", CHUNKS, ids=str)
def test_in_chunks(shape, kind, device):
    """Larger than what is kept for the backward, or multiplied at once."""
    compare(make_views(shape, device), tolerance=2e-6, more=more_inputs(kind, shape, device))


@pytest.mark.parametrize("shape", [(70, 64), (9, 64)], ids=["direct", "Gram"])
def test_weights_at_an_odd_address(shape, device):
    """They are not read in packets, though the views could be."""
    more = more_inputs("groups", shape, device)
    weights = more["group_weights"]
    room = weights.new_zeros(weights.numel() + 1)
    room[1:] = weights.flatten()
    more["group_weights"] = room[1:].view_as(weights)
    compare(make_views(shape, device), tolerance=4e-6, more=more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 3), (3, 7)], ids=str)
def test_gradient(shape, kind):
    torch.manual_seed(0)
    more = more_inputs(kind, shape, dtype=torch.float64, groups=2)
    names = [name for name, t in more.items() if t.is_floating_point()]

    def total(x, y, *others):
        given = {**more, **dict(zip(names, others, strict=True))}
        return functional.vicreg_terms(x, y, **given, scales=SCALES, weights=WEIGHTS)[0]

    leaves = [*make_views(shape, "cpu", torch.float64), *(more[name] for name in names)]
    assert torch.autograd.gradcheck(total, [t.requires_grad_() for t in leaves])


@pytest.mark.parametrize("kind", ["differences", "groups"])
@pytest.mark.parametrize("shape", [(70, 66), (9, 66)], ids=["direct", "Gram"])
def test_equals_the_operators_that_it_is_made_of(shape, kind, device):
    """Views with strides, which are not aligned to packets, too."""
    x, y = make_views((shape[0], shape[1] + 1), device)
    more = more_inputs(kind, shape, device)

    def composed(x, y, group=None, group_weights=None, **options):
        if group is None:
            first = functional.subspace_similarity(x[None], y[None], metric="sqeuclidean")
        else:
            found = functional.grouped_squared_difference(x, y, group, len(group_weights))
            first = functional.grouped_means(group_weights, *found)
        both = functional.variance_covariance(torch.stack((x, y)))
        return functional.weighted_terms(first, *both, **options)

    def sliced(function):
        return lambda x, y, **options: function(x[:, 1:], y[:, :-1], **options)

    found = evaluate(sliced(functional.vicreg_terms), (x, y), more)
    want = evaluate(sliced(composed), (x, y), more)
    for mine, theirs in zip(found, want, strict=True):
        assert_close(mine, theirs, rtol=2e-5, atol=2e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("shape", [(12, 10), (4, 31)], ids=["direct", "Gram"])
def test_a_weight_of_zero_is_no_gradient(shape, which, device):
    """Of one view the gradient is asked for, of the other not."""
    x, y = make_views(shape, device)
    weights = [0.0, 0.0, 0.0]
    weights[which] = 3.0
    found, want = [], []
    for function, dtype, out in (
        (functional.vicreg_terms, torch.float32, found),
        (reference.vicreg_terms, torch.float64, want),
    ):
        leaf = y.cpu().to(dtype) if dtype == torch.float64 else y
        other = x.cpu().to(dtype) if dtype == torch.float64 else x
        leaf = leaf.detach().requires_grad_()
        total, terms = function(other, leaf, scales=SCALES, weights=weights)
        assert not terms.requires_grad
        out += torch.autograd.grad(total, leaf)
    assert_close(found[0].cpu().double(), want[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["differences", "groups"])
@pytest.mark.parametrize("shape", [(12, 10), (4, 31)], ids=["direct", "Gram"])
def test_equal_bits_on_every_run(shape, kind, device):
    views, more = make_views(shape, device), more_inputs(kind, shape, device)
    first, second = (evaluate(functional.vicreg_terms, views, more) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_large_views_one_after_the_other(monkeypatch, kind):
    """What a CPU does with them gives the same."""
    x, y = make_views((300, 257), "cpu")
    assert x.numel() > CPU
    more = more_inputs(kind, x.shape)
    together = evaluate(functional.vicreg_terms, (x, y), more)
    calls = []
    apart = functional.variance_covariance
    monkeypatch.setattr(
        functional, "variance_covariance", lambda *a, **k: calls.append(0) or apart(*a, **k)
    )
    monkeypatch.setattr(functional, "MOST_TOGETHER", CPU)
    for got, want in zip(evaluate(functional.vicreg_terms, (x, y), more), together, strict=True):
        assert_close(got, want)
    assert len(calls) == 2  # a view each


def test_large_views_are_checked_as_small_ones(monkeypatch):
    monkeypatch.setattr(functional, "MOST_TOGETHER", CPU)
    x = torch.randn(300, 257)
    for other in (x.half(), x[:, :-1]):
        with pytest.raises((TypeError, ValueError), match="y must "):
            functional.vicreg_terms(x, other, scales=SCALES, weights=WEIGHTS)
    more = more_inputs("groups", x.shape)
    for wrong, message in (
        ({"group": more["group"]}, "given together"),
        ({**more, "invariance": x}, "invariance must be None beside group"),
        ({**more, "group_weights": torch.ones(2, 256)}, r"group_weights must .*, got \[2, 256\]"),
        ({**more, "group_weights": torch.ones(0, 257)}, r"group_weights must .*, got \[0, 257\]"),
        ({**more, "group_weights": torch.ones(2, 257).double()}, "group_weights must be Float"),
        ({**more, "group_weights": torch.ones(2, 257).half()}, "group_weights must be Float"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            functional.vicreg_terms(x, x, **wrong, scales=SCALES, weights=WEIGHTS)
