"""SubspaceMasks: budgets, gradients, reports, state."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext.losses import SubspaceMasks

PARAMETERIZATIONS = ["balanced", "softmax", "sigmoid", "relu"]
SIZES = [(1, 7), (4, 256), (7, 33), (12, 5)]


def make(subspaces, dim, parameterization, **options):
    return SubspaceMasks(
        subspaces, dim, parameterization, generator=torch.Generator().manual_seed(0), **options
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_masks_are_non_negative_and_differ(size, parameterization):
    masks = make(*size, parameterization)()
    assert masks.shape == size and masks.dtype == torch.float32
    assert masks.isfinite().all() and (masks >= 0).all() and (masks.sum(1) > 0).all()
    if size[0] > 1:
        assert (masks[0] - masks[1]).abs().max() > 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("spread", "iterations", "tolerance"), [(1.0, 10, 1e-3), (3.0, 40, 1e-3), (0.0, 1, 1e-6)]
)
def test_balanced_budgets(size, spread, iterations, tolerance):
    subspaces, dim = size
    weights = make(*size, "balanced", spread=spread, iterations=iterations)().square()
    assert_close(weights.sum(0), torch.full((dim,), float(subspaces)), rtol=1e-5, atol=0)
    assert_close(weights.sum(1), torch.full((subspaces,), float(dim)), rtol=tolerance, atol=0)


def test_balanced_is_the_nearest_matrix():
    """What balancing adds to the logits is a number per subspace plus a number per dimension."""
    masks = make(3, 8, "balanced", iterations=100)
    with torch.no_grad():
        added = masks().square().log() - masks.logits
    interaction = added - added.mean(0) - added.mean(1, keepdim=True) + added.mean()
    assert_close(interaction, torch.zeros_like(interaction), atol=1e-5, rtol=0)


def test_extreme_logits_stay_finite():
    masks = make(4, 16, "balanced")
    with torch.no_grad():
        masks.logits.mul_(200)
    values = masks()
    values.square().sum().backward()
    assert values.isfinite().all() and masks.logits.grad.isfinite().all()
    assert_close(values.square().sum(0), torch.full((16,), 4.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_softmax_budget(size):
    weights = make(*size, "softmax")().square()
    assert_close(weights.sum(1), torch.full((size[0],), float(size[1])), rtol=1e-5, atol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradients(parameterization):
    masks = make(3, 5, parameterization).double()

    def values(logits):
        return torch.func.functional_call(masks, {"logits": logits})

    assert torch.autograd.gradcheck(values, (masks.logits.detach().requires_grad_(),))


def test_initialization_follows_the_generator():
    first, again = make(3, 4, "balanced"), make(3, 4, "balanced")
    assert torch.equal(first.logits, again.logits)
    other = SubspaceMasks(3, 4, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.logits, other.logits)
    torch.manual_seed(5)
    by_default = SubspaceMasks(3, 4).logits
    torch.manual_seed(5)
    assert torch.equal(by_default, SubspaceMasks(3, 4).logits)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_l1_is_the_mean(parameterization):
    masks = make(3, 40, parameterization)
    assert_close(masks.l1(), masks().sum() / (3 * 40))
    masks.l1().backward()
    assert masks.logits.grad.abs().sum() > 0


def test_sparsity_concentrates_balanced_masks():
    """With budgets fixed, a smaller L1 norm can only come from more uneven masks."""
    masks = make(4, 64, "balanced")
    before = masks.effective_dimensions()
    optimizer = torch.optim.SGD(masks.parameters(), lr=50.0)
    for _ in range(50):
        optimizer.zero_grad()
        masks.l1().backward()
        optimizer.step()
    assert (masks.effective_dimensions() < 0.7 * before).all()


def test_reports():
    masks = SubspaceMasks(3, 4, "relu")
    with torch.no_grad():
        masks.logits.copy_(torch.tensor([[1.0, 1, 1, 1], [0, 3, 0, 0], [0, 0, 2, 2]]))
    assert_close(masks.effective_dimensions(), torch.tensor([4.0, 1, 2]))
    half, root = 0.5, 0.5**0.5
    want = torch.tensor([[1, half, root], [half, 1, 0], [root, 0, 1]])
    assert_close(masks.overlap(), want)
    assert not masks.overlap().requires_grad


def test_an_empty_mask_is_reported_as_no_dimensions():
    masks = SubspaceMasks(2, 4, "relu")
    with torch.no_grad():
        masks.logits[0] = -1
    assert masks.effective_dimensions()[0] == 0
    assert masks.overlap()[0].eq(0).all()


@pytest.mark.parametrize("size", [(1, 7), (4, 256), (3, 8)])
def test_blocks(size):
    subspaces, dim = size
    masks = make(*size, "blocks")
    weights = masks().square()
    assert (weights > 0).sum(0).eq(1).all() and (weights > 0).sum(1).min() == dim // subspaces
    assert_close(weights.sum(1), torch.full((subspaces,), float(dim)))
    assert_close(masks.overlap(), torch.eye(subspaces))
    assert not list(masks.parameters()) and not masks.state_dict()
    masks.reset_parameters()
    assert masks.double()().dtype == torch.float64


def test_ones_are_no_masks():
    masks = make(3, 5, "ones")
    assert torch.equal(masks(), torch.ones(3, 5))
    assert not list(masks.parameters()) and not masks.state_dict()


def test_blocks_need_a_dimension_each():
    with pytest.raises(ValueError, match="dim must be at least 4, one per subspace, got 3"):
        SubspaceMasks(4, 3, "blocks")


def test_state_returns():
    saved = make(3, 6, "balanced")
    loaded = SubspaceMasks(3, 6, "balanced")
    loaded.load_state_dict(saved.state_dict())
    assert list(saved.state_dict()) == ["logits"]
    assert torch.equal(saved(), loaded())


def test_masks_of_half_precision_parameters_are_float32():
    masks = make(3, 64, "balanced").bfloat16()
    assert masks().dtype == torch.float32
    assert_close(masks().square().sum(0), torch.full((64,), 3.0), rtol=1e-5, atol=0)


def test_representation():
    assert repr(make(2, 3, "balanced")) == (
        "SubspaceMasks(2, 3, 'balanced', spread=1, iterations=10)"
    )
    assert repr(make(2, 3, "relu", spread=0.5)) == "SubspaceMasks(2, 3, 'relu', spread=0.5)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subspaces": 0}, "subspaces must be at least 1, got 0"),
        ({"dim": -2}, "dim must be at least 1, got -2"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"parameterization": "hard"}, "parameterization must be one of balanced, .*got 'hard'"),
        ({"spread": -1.0}, "spread must not be negative, got -1"),
        ({"spread": float("nan")}, "spread must not be negative, got nan"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubspaceMasks(**({"subspaces": 2, "dim": 3} | arguments))
