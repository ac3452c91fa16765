"""Autocast is for networks: a loss computes in float32 under it, of 16-bit inputs, too.

Every class and each of its methods against itself in float32, of the same rounded inputs.
"""

import pytest
import torch
from loss_calls import CASES, EACH, inputs_of, tensors_in
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mast_ext import losses
from mast_ext.losses import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss


def test_every_class_is_here():
    classes = {name: getattr(losses, name) for name in losses.__all__}
    assert CASES.keys() == {n for n, kind in classes.items() if issubclass(kind, nn.Module)}


def results_and_gradients(
    make, call, inputs, autocast=None, *, backward_inside=False, compiled=False
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the inputs, then of the parameters; those that there are."""
    torch.manual_seed(0)
    module = make()
    leaves = [*inputs, *module.parameters()]
    call = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call

    def gradients(results):
        weights = torch.Generator().manual_seed(1)
        total = sum(
            (result * torch.rand(result.shape, generator=weights)).sum()
            for result in results
            if result.requires_grad
        )
        if not isinstance(total, Tensor):
            return []
        return [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]

    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        results = tensors_in(call(module, *inputs))
        found = gradients(results) if backward_inside else None
    return results, gradients(results) if found is None else found


def assert_like_float32(got, want):
    for mine, truth in zip(got[0], want[0], strict=True):
        assert mine.dtype == truth.dtype  # float32, or int64 of what is selected
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-5)
    for mine, truth in zip(got[1], want[1], strict=True):
        numbers = torch.finfo(mine.dtype)
        rounding = 2e-5 if mine.dtype == torch.float32 else numbers.eps
        smallest = numbers.smallest_normal * numbers.eps * mine.numel() ** 0.5  # float16's is felt
        assert (mine.float() - truth).norm() <= rounding * truth.norm() + smallest


@pytest.mark.parametrize("backward_inside", [False, True], ids=["", "backward_inside"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("make", "call"), EACH)
def test_16_bit_inputs(make, call, half, backward_inside):
    inputs = inputs_of(half)
    exact = [t.detach().float().requires_grad_() for t in inputs]
    got = results_and_gradients(make, call, inputs, half, backward_inside=backward_inside)
    assert_like_float32(got, results_and_gradients(make, call, exact))


@pytest.mark.parametrize("backward_inside", [False, True], ids=["", "backward_inside"])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_float32_inputs(make, call, backward_inside):
    inputs = inputs_of(torch.float32)
    got = results_and_gradients(make, call, inputs, torch.bfloat16, backward_inside=backward_inside)
    assert_like_float32(got, results_and_gradients(make, call, inputs))


MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float16, torch.bfloat16),
]


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize(("make", "call"), EACH)
def test_inputs_of_two_dtypes(make, call, dtypes):
    """As autocast leaves them where only one comes from a layer that computes in 16 bits."""
    inputs = inputs_of(dtypes[0])[0], inputs_of(dtypes[1])[1]
    exact = [t.detach().float().requires_grad_() for t in inputs]
    got = results_and_gradients(make, call, inputs)
    assert_like_float32(got, results_and_gradients(make, call, exact))


@pytest.mark.parametrize(
    "name",
    ["NTXentLoss", "VICRegLoss", "SigLIPLoss", "GramAnchoringLoss", "HypersphereLoss"]
    + ["CO2Regularizer", "MSNLoss"],
)
def test_float64_beside_float32(name):
    make, call = CASES[name][0]
    inputs = inputs_of(torch.float64)[0], inputs_of(torch.float32)[1]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got = results_and_gradients(make, call, inputs)
    want = tree_map(lambda x: x.to(torch.float32), results_and_gradients(make, call, exact))
    torch.testing.assert_close(tree_map(lambda x: x.to(torch.float32), got), want)


@pytest.mark.parametrize(
    ("make", "call"), [CASES[name][0] for name in ("VICRegLoss", "BarlowTwinsLoss", "NTXentLoss")]
)
def test_inputs_of_two_dtypes_compiled(make, call):
    inputs = inputs_of(torch.bfloat16)[0], inputs_of(torch.float32)[1]
    got = results_and_gradients(make, call, inputs, compiled=True)
    for mine, plain in zip(got, results_and_gradients(make, call, inputs), strict=True):
        torch.testing.assert_close(mine, plain)


def test_other_dtypes_are_refused_beside_floating_point():
    x, whole = torch.randn(8, 4), torch.ones(8, 4, dtype=torch.int64)
    for loss in (VICRegLoss(), BarlowTwinsLoss(), NTXentLoss(), NegativeCosineSimilarity()):
        for inputs in ((x, whole), (whole, x), (whole, whole)):
            with pytest.raises(TypeError):
                loss(*inputs)


@pytest.mark.parametrize(("make", "call"), [CASES["BarlowTwinsLoss"][2], CASES["MASTLoss"][0]])
def test_compiled(make, call):
    """The backward pass is traced under the autocast that is around the forward pass."""
    inputs = inputs_of(torch.float32)
    got = results_and_gradients(make, call, inputs, torch.bfloat16, compiled=True)
    assert_like_float32(got, results_and_gradients(make, call, inputs))
