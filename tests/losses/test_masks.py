"""AugmentationMasks: budgets, groups of pairs, and what is learned."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mast_ext.losses import AugmentationMasks

FREED = (0.25, 0.0, 0.5)


def make(freed=FREED, dim=64, **options):
    return AugmentationMasks(freed, dim, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("dim", [4, 64, 257])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_budgets_hold_for_any_logits(scale, dim, device):
    masks = make(dim=dim).to(device)
    with torch.no_grad():
        masks.logits.mul_(scale)
    found = masks()
    assert found.shape == (3, dim) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert_close(found.mean(1).cpu(), 1 - torch.tensor(FREED), rtol=0, atol=2e-5)
    assert (found[1] == 1).all()


def test_budgets_hold_while_masks_are_learned(device):
    """Every dimension wants to be freed, some more than others."""
    masks = make().to(device)
    optimizer = torch.optim.Adam(masks.parameters(), lr=0.1)
    price = torch.linspace(0, 1, 64, device=device)
    for _ in range(200):
        optimizer.zero_grad()
        (masks() * price).sum().backward()
        optimizer.step()
    found = masks()
    assert_close(found.mean(1).cpu(), 1 - torch.tensor(FREED), rtol=0, atol=2e-5)
    assert found[0, :44].min() > 0.9 and found[0, -12:].max() < 0.1  # the dearest are freed


def test_gradient():
    """Of the mean budget's own derivative, too: against finite differences."""
    torch.manual_seed(0)
    masks = make(dim=7, sharpness=2.0).double()

    def weights(logits):
        masks._parameters["logits"] = logits
        return masks.group_weights(), masks()

    assert torch.autograd.gradcheck(weights, torch.randn(2, 7).double().requires_grad_())


@pytest.mark.parametrize("learned", [True, False])
def test_group_weights_are_products_of_squared_masks(learned, device):
    freed = (0.25, 0.0, 0.3, 0.2)
    masks = make(freed, learned=learned).to(device)
    weights = masks.group_weights()
    assert weights.shape == (masks.groups, 64) == (8, 64)
    generator = torch.Generator().manual_seed(1)
    changed = (torch.rand(50, 4, generator=generator) < 0.5).to(device)
    group = masks.group(changed)
    assert group.dtype == torch.int64 and group.min() >= 0 and group.max() < 8
    for n in range(50):
        want = torch.ones(64, device=device)
        for k in range(4):
            if changed[n, k]:
                want = want * masks()[k].square()
        assert_close(weights[group[n]], want, rtol=1e-4, atol=1e-6)


def test_blocks_are_apart_and_of_their_size(device):
    found = make(learned=False).to(device)()
    assert ((found == 0) | (found == 1)).all()
    assert (found == 0).sum(1).tolist() == [16, 0, 32]
    assert (found == 0).sum(0).max() == 1
    assert not list(make(learned=False).parameters()) and not make(learned=False).state_dict()


def test_nothing_freed_has_nothing_to_learn(device):
    masks = make((0.0, 0.0)).to(device)
    assert not list(masks.parameters()) and masks.groups == 1
    assert (masks() == 1).all() and (masks.group_weights() == 1).all()
    assert masks.group(torch.ones(3, 2, dtype=torch.bool, device=device)).tolist() == [0, 0, 0]
    assert make(()).group(torch.ones(3, 0, dtype=torch.bool)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 8.0])
def test_masks_with_a_price_start_with_their_shares_freed(sharpness, device):
    masks = make(dim=256, price=0.3, sharpness=sharpness).to(device)
    assert_close(masks.freed_share().cpu(), torch.tensor(FREED), rtol=0, atol=1e-5)
    other = AugmentationMasks((0.5, 0.0, 0.5), 256, price=0.3, sharpness=sharpness).to(device)
    assert not torch.equal(other(), masks())
    other.load_state_dict(masks.state_dict())
    assert torch.equal(other(), masks())


def test_masks_with_a_price_are_sigmoids(device):
    masks = make(price=0.3).to(device)
    with torch.no_grad():
        masks.logits.sub_(0.5)
    want = (4 * masks.logits).sigmoid()
    assert_close(masks()[[0, 2]], want)
    assert_close(masks.group_weights()[3], want.square().prod(0))
    assert_close(masks.freed_share()[[0, 2]], 1 - want.mean(1))


def test_overlap_and_invariant_dimensions():
    masks = make(learned=False)
    assert_close(masks.invariant_dimensions(), torch.tensor([48.0, 64.0, 32.0]))
    assert_close(masks.overlap(), torch.eye(3))
    masks = make((0.25, 0.25))
    with torch.no_grad():
        masks.logits[1] = masks.logits[0]
    assert_close(masks.overlap(), torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_modules_keep_their_budget(dtype):
    masks = make((0.1, 0.3), dim=2048).to(dtype)
    assert masks().dtype == torch.float32
    assert_close(masks().mean(1), torch.tensor([0.9, 0.7]), rtol=0, atol=2e-5)
    assert make().double()().dtype == torch.float64


def test_masks_of_zero_have_finite_gradients():
    """Squares that underflow, and their roots."""
    masks = make((0.5,), dim=8, sharpness=1.0)
    with torch.no_grad():
        masks.logits.copy_(torch.linspace(-100, 100, 8)[None])
    masks().sum().backward()
    assert masks.logits.grad.isfinite().all()


def test_generator_decides_the_logits():
    assert torch.equal(make().logits, make().logits)
    other = AugmentationMasks(FREED, 64, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(make().logits, other.logits)


def test_state(device):
    masks = make().to(device)
    assert list(masks.state_dict()) == ["logits"]
    other = AugmentationMasks(FREED, 64).to(device)
    other.load_state_dict(masks.state_dict())
    assert torch.equal(other(), masks())


def test_compiles_whole(device):
    masks = make().to(device)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.masks = masks

        def forward(self, changed):
            return self.masks.group_weights(), self.masks.group(changed)

    changed = torch.rand(5, 3, device=device) < 0.5
    both = Both()
    for mine, truth in zip(
        torch.compile(both, fullgraph=True, backend="aot_eager")(changed),
        both(changed),
        strict=True,
    ):
        assert_close(mine, truth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"freed": (1.0,)}, r"freed must hold shares .* from 1e-06 to 0.999999, got \(1.0,\)"),
        ({"freed": (1e-9,)}, r"freed must hold shares .* got \(1e-09,\)"),
        ({"freed": (-0.1,)}, r"freed must hold shares .* got \(-0.1,\)"),
        ({"freed": (0.1,) * 9}, "freed must be above 0 for at most 8 augmentations"),
        ({"sharpness": 0.0}, "sharpness must be positive, got 0.0"),
        ({"price": 0.0}, "price must be positive, got 0.0"),
        ({"price": float("nan")}, "price must be positive, got nan"),
        (
            {"price": 0.5, "learned": False},
            "price must be None for masks that are not learned, got 0.5",
        ),
        ({"sharpness": float("inf")}, "sharpness must be positive and finite, got inf"),
        (
            {"freed": (0.6, 0.6), "learned": False},
            r"freed must leave room for blocks of 64 dimensions, .* got \(0.6, 0.6\)",
        ),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (torch.ones(5, 2).bool(), ValueError, r"changed must have shape \[N, 3\], .* \[5, 2\]"),
        (torch.ones(3).bool(), ValueError, r"changed must have shape \[N, 3\], .* got \[3\]"),
        (torch.ones(5, 3), TypeError, "changed must be bool, got torch.float32"),
    ],
)
def test_rejects_what_is_no_choice_of_augmentations(changed, error, message):
    with pytest.raises(error, match=message):
        make().group(changed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_budgets_do_not_depend_on_the_default_dtype(dtype):
    try:
        torch.set_default_dtype(dtype)
        masks = AugmentationMasks((0.25, 0.0, 0.5), 16).float()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(masks.freed_share(), torch.tensor([0.25, 0.0, 0.5]), rtol=0, atol=1e-5)
