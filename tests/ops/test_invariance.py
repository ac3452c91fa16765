"""What results of no operator depend on: memory layout, threads, which gradients are wanted."""

import pytest
import torch
from operators import CALLS
from torch.testing import assert_close

# Their matrix products may be the vendor's, which sum in another order on more threads, and on a
# GPU for other strides or addresses.
WITH_PRODUCTS = {
    "variance_covariance",
    "vicreg_terms",
    "cross_correlation_penalty",
    "contrastive_logsumexp",
    "contrastive_loss",
    "sigmoid_contrast",
    "nearest_neighbor_distance",
    "gram_difference",
    "sliced_characteristic_sums",
    "sliced_characteristic_distance",
}
LAYOUTS = {
    "last dimension outermost": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "first two swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "wider rows": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "every other element": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "odd address": lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].view_as(t),
    "one row for all": lambda t: t.narrow(-2, 0, 1).expand_as(t),
    "one of the first dimension": lambda t: t[:1].expand_as(t),
}


def flat(found):
    """Results and gradients."""
    results, gradients = found
    return [*results, *gradients.values()]


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *((torch.float32, layout) for layout in LAYOUTS),
        *((torch.bfloat16, layout) for layout in ("wider rows", "odd address")),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_strides(call, dtype, layout, device):
    """Of all tensors that have the dimensions for a layout."""
    least = {"first two swapped": 2, "one row for all": 2}.get(layout, 1)
    strided = {
        name: LAYOUTS[layout](t) if t.dim() >= least else t
        for name, t in call.tensors(6, 16, device=device, dtype=dtype).items()
    }
    dense = {name: t.clone(memory_format=torch.contiguous_format) for name, t in strided.items()}
    got, want = call.with_gradients(strided), call.with_gradients(dense)
    for mine, theirs in zip(flat(got), flat(want), strict=True):
        rounding = torch.finfo(mine.dtype).eps if mine.dtype == torch.bfloat16 else 1e-5
        least = 1e-5
        if call.function.__name__ in WITH_PRODUCTS and theirs.numel() > 0:
            largest = theirs.detach().nan_to_num(0, 0, 0).abs().max().item()
            least = max(least, rounding * largest)  # a small sum may be one of large terms
        assert_close(mine, theirs, rtol=rounding, atol=least, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "size"), [(call, size) for call in CALLS for size in call.many], ids=str
)
def test_same_bits_twice_and_on_any_number_of_threads(call, size, device):
    tensors = call.tensors(*size, device=device)
    threads = torch.get_num_threads()
    first, again = (flat(call.with_gradients(tensors)) for _ in range(2))
    try:
        torch.set_num_threads(3 if threads != 3 else 1)
        other = flat(call.with_gradients(tensors))
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        if call.function.__name__ in WITH_PRODUCTS:
            assert_close(a, c, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a, c)


@pytest.mark.parametrize("threads", [(1, 5), (5, 1), (2, 17)], ids=str)
@pytest.mark.parametrize("call", [call for call in CALLS if call.leaves], ids=str)
def test_threads_may_change_before_the_backward(call, threads):
    """What the forward keeps for it does not depend on them, or says how. On the CPU."""
    tensors = call.tensors(200, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads[0])
        want = call.with_gradients(tensors)
        got = call.with_gradients(tensors, between=lambda: torch.set_num_threads(threads[1]))
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(flat(got), flat(want), strict=True):
        largest = theirs.abs().max().item() if theirs.numel() > 0 else 0
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * max(1, largest), equal_nan=True)


@pytest.mark.parametrize(
    ("call", "leaf"), [(call, leaf) for call in CALLS for leaf in call.leaves], ids=str
)
def test_gradient_wanted_alone(call, leaf, device):
    """Is what it is beside all others."""
    if len(call.leaves) == 1:
        pytest.skip("has no other")
    tensors = call.tensors(device=device)
    together, alone = call.with_gradients(tensors), call.with_gradients(tensors, [leaf])
    assert_close(alone[1][leaf], together[1][leaf])
    for mine, theirs in zip(alone[0], together[0], strict=True):
        assert torch.equal(mine, theirs)
