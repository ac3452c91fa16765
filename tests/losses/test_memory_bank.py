"""NTXentLoss with a memory bank, against lightly's over several steps."""

import lightly.loss
import pytest
import torch
from torch.testing import assert_close

from mast_ext import losses

ROWS, WIDTH = 20, 6
BATCHES = [6, 6, 6, 6, 20, 3, 17, 25, 4]  # reaches the end, exactly and beyond; more than a bank


def make_pair(device, size=(ROWS, WIDTH)):
    """Ours and lightly's, which start with the same bank for the same seed."""
    made = []
    for package in (losses, lightly.loss):
        torch.manual_seed(3)
        made.append(package.NTXentLoss(0.2, memory_bank_size=size).to(device))
    return made


def make_batch(batch, device, width=WIDTH):
    return [torch.randn(batch, width, device=device).requires_grad_() for _ in range(2)]


def test_what_compared_with_the_bank_before_an_update_has_its_gradient(device):
    ours, _ = make_pair(device)
    x, y = make_batch(6, device)
    views = torch.stack((x, y))
    before = ours.memory_bank.bank.clone()
    (ours.pair_losses(views).mean() + ours(x, y)).backward()
    alone = make_pair(device)[0]
    copies = [view.detach().clone().requires_grad_() for view in (x, y)]
    alone.pair_losses(torch.stack(copies)).mean().backward()
    assert torch.equal(alone.memory_bank.bank, before)
    alone(*copies).backward()
    assert_close([x.grad, y.grad], [copy.grad for copy in copies])


def test_equals_lightly_step_by_step(device):
    ours, theirs = make_pair(device)
    for batch in BATCHES:
        views = make_batch(batch, device)
        assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
        losses_ = [loss(*views) for loss in (ours, theirs)]
        grads = [torch.autograd.grad(loss, views) for loss in losses_]
        assert_close(*losses_, rtol=1e-5, atol=2e-6)
        for mine, truth in zip(*grads, strict=True):
            assert truth.abs().max() > 0
            assert_close(mine, truth, rtol=1e-4, atol=1e-6)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)
    assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)


def test_is_updated_only_for_training(device):
    ours, theirs = make_pair(device)
    views = make_batch(5, device)
    before = ours.memory_bank.bank.clone()
    with torch.no_grad():
        frozen = [loss(*(view.detach() for view in views)) for loss in (ours, theirs)]
    ours(views[0].detach(), views[1])
    ours.pair_losses(torch.stack(views))
    assert_close(*frozen)
    assert torch.equal(ours.memory_bank.bank, before) and ours.memory_bank.bank_ptr == 0
    ours(views[0], views[1].detach())
    assert_close(ours.memory_bank.bank[:5].norm(dim=1), torch.ones(5, device=device))
    assert torch.equal(ours.memory_bank.bank[5:], before[5:]) and ours.memory_bank.bank_ptr == 5


def test_gradient_sees_the_bank_of_its_forward_pass(device):
    """A second step overwrites the bank before the first goes backward."""
    loss = make_pair(device)[0]
    first, second = make_batch(6, device), make_batch(ROWS, device)
    want = torch.autograd.grad(make_pair(device)[0](*first), first)
    value = loss(*first)
    loss(*second)
    for mine, truth in zip(torch.autograd.grad(value, first), want, strict=True):
        assert torch.equal(mine, truth)


def test_resumes(device):
    """A loss that is saved and loaded goes on as the one that was not."""
    loss, batches = make_pair(device)[0], [make_batch(7, device) for _ in range(6)]
    for views in batches[:3]:
        loss(*views)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert list(state) == ["memory_bank.bank", "memory_bank.bank_ptr"]
    resumed = losses.NTXentLoss(0.2, memory_bank_size=(ROWS, WIDTH)).to(device)
    resumed.load_state_dict(state)
    for views in batches[3:]:
        assert torch.equal(resumed(*views), loss(*views))
    for name, value in loss.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_takes_a_state_of_lightly_which_has_no_bank():
    state = lightly.loss.NTXentLoss(memory_bank_size=(ROWS, WIDTH)).state_dict()
    loss = losses.NTXentLoss(memory_bank_size=(ROWS, WIDTH))
    bank = loss.memory_bank.bank.clone()
    with pytest.warns(UserWarning, match="the memory bank stays as it is"):
        loss.load_state_dict(state)
    assert torch.equal(loss.memory_bank.bank, bank)


def test_refuses_a_part_of_a_bank():
    loss = losses.NTXentLoss(memory_bank_size=(ROWS, WIDTH))
    state = loss.state_dict()
    del state["memory_bank.bank_ptr"]
    with pytest.raises(RuntimeError, match="memory_bank.bank_ptr"):
        loss.load_state_dict(state)


def test_without_a_bank_there_is_no_state():
    assert not losses.NTXentLoss().state_dict()
    assert not losses.NTXentLoss(memory_bank_size=(0, 128)).state_dict()


def test_pair_losses_are_those_of_forward(device):
    loss = make_pair(device)[0]
    views = torch.randn(3, 5, WIDTH, device=device)
    pairs = loss.pair_losses(views)
    loss.reduction = "none"
    for i in range(3):
        for j in range(3):
            assert_close(pairs[i, j], loss(views[i], views[j]))


def test_reductions(device):
    loss, views = make_pair(device)[0], torch.randn(2, 5, WIDTH, device=device)
    mean = loss(*views)
    loss.reduction = "none"
    each = loss(*views)
    assert each.shape == (5,)
    assert_close(mean, each.mean())
    loss.reduction = "sum"
    assert_close(loss(*views), each.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype, device):
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip("float64 is for the CPU")
    loss, theirs = make_pair(device)
    views = [view.detach().to(dtype).requires_grad_() for view in make_batch(8, device)]
    value = loss(*views)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    want = theirs.double()(*(view.detach().double() for view in views))
    assert_close(value.double(), want, rtol=1e-5, atol=0)
    assert torch.autograd.grad(value, views)[0].dtype == dtype
    assert loss.memory_bank.bank.dtype == torch.float32


def test_one_image(device):
    ours, theirs = make_pair(device)
    views = make_batch(1, device)
    assert_close(ours(*views), theirs(*views))


def test_compiles_whole(device):
    loss, compiled = make_pair(device)[0], make_pair(device)[0]
    function = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(4):
        views = make_batch(6, device)
        got, want = function(*views), loss(*views)
        assert_close(got, want)
        grads = [torch.autograd.grad(value, views)[0] for value in (got, want)]
        assert_close(*grads)
        assert_close(compiled.memory_bank.bank, loss.memory_bank.bank)
        assert torch.equal(compiled.memory_bank.bank_ptr, loss.memory_bank.bank_ptr)


@pytest.mark.parametrize("size", [5, (5,), (5, 6, 7), (-1, 6), (5, -6), -3], ids=str)
def test_rejects_sizes(size):
    with pytest.raises(ValueError):
        lightly.loss.NTXentLoss(memory_bank_size=size)
    with pytest.raises(ValueError, match=r"memory_bank_size must be \(rows, width\) or 0 for none"):
        losses.NTXentLoss(memory_bank_size=size)


def test_rejects_embeddings_of_another_width():
    loss = losses.NTXentLoss(memory_bank_size=(ROWS, WIDTH))
    message = "must have the width of the memory bank, 6, got 5"
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(3, 5), torch.ones(3, 5))
    with pytest.raises(ValueError, match=message):
        loss.pair_losses(torch.ones(2, 3, 5))


def test_takes_two_views():
    loss = losses.NTXentLoss(memory_bank_size=(ROWS, WIDTH))
    with pytest.raises(ValueError, match="a memory bank takes 2 views, got 3"):
        loss(*torch.ones(3, 4, WIDTH))


def test_a_bank_of_float64_keeps_the_digits_of_embeddings():
    loss = losses.NTXentLoss(memory_bank_size=(ROWS, WIDTH)).double()
    x, y = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    loss(x.requires_grad_(), y)
    assert_close(loss.memory_bank.bank[:6], torch.nn.functional.normalize(y), rtol=0, atol=1e-15)
