"""Every operator as torch sees it: registration, compilation, autocast, and what has a gradient."""

import re

import operators
import pytest
import torch
from operators import Recorder
from torch.testing import assert_close
from torch.utils._pytree import tree_map_only

pytestmark = pytest.mark.dispatch

# Calls that differ from another in the kernel alone.
SAME = {"distance", "paper", "teachers", "tiles", "2 views", "3 views", "5 views", "odd rows"}
CALLS = [call for call in operators.CALLS if call.form not in SAME]
every_call = pytest.mark.parametrize("call", CALLS, ids=str)
differentiable_calls = pytest.mark.parametrize(
    "call", [call for call in CALLS if call.differentiable], ids=str
)

# Of the columns of a batch: at least two rows; of large ones no copy is kept for the backward.
OF_COLUMNS = {"variance_covariance", "cross_correlation_penalty", "vicreg_terms"}
SIZES = [
    (call, *size)
    for call in CALLS
    for size in ((3, 5), (66, 1030) if call.function.__name__ in OF_COLUMNS else (0, 5))
    if call.form not in ("direct", "direct, masks") or size != (66, 1030)
]
# test_compiles_whole is the fourth of torch's checks, beside the derivative's operators.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(("call", "n", "d"), SIZES, ids=str)
def test_registration(call, n, d, device):
    """Schemas and shape-only kernels, with all gradients and with one, and without images."""
    tensors = call.tensors(n, d, device=device)
    with Recorder() as recorder:
        call.with_gradients(tensors)
        if len(call.leaves) > 1:
            call.with_gradients(tensors, call.leaves[-1:])
    assert recorder.calls
    for op, *arguments in recorder.calls:
        constant = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), arguments)
        torch.library.opcheck(op, *constant, test_utils=CHECKS)
        if "backward" not in op.name():  # a derivative has none of its own
            leaves = tree_map_only(
                torch.Tensor,
                lambda t: t.detach().clone().requires_grad_(t.is_floating_point()),
                arguments,
            )
            torch.library.opcheck(op, *leaves, test_utils=CHECKS)


# Calls with arguments that another has, too; and a draw, which breaks a graph.
NOT_COMPILED = {
    *("subspace_similarity", "subspace_nll", "subspace_nll, diagonal", "variance_covariance, Gram"),
    *("variance_covariance, direct", "contrastive_logsumexp", "select_hard_pairs"),
    *("select_hard_crops, limit", "gather_views, numbers"),
}


@pytest.mark.parametrize("call", [call for call in CALLS if str(call) not in NOT_COMPILED], ids=str)
def test_compiles_whole(call, device):
    """As one graph for all numbers of images and dimensions."""

    def step(tensors):
        return call(**{name: t * 2 if name in scaled else t for name, t in tensors.items()})

    torch._dynamo.reset_code_caches()  # of one function they take a few calls only
    scaled = {name for name, t in call.tensors().items() if t.is_floating_point()}
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, d in ((9, 12), (10, 13)):
        tensors = call.tensors(n, d, device=device)
        found = [gradients_of(function, tensors, call.leaves) for function in (compiled, step)]
        for mine, plain in zip(*found, strict=True):
            scale = max(1.0, plain.abs().max().item()) if plain.numel() else 1.0
            assert_close(mine, plain, rtol=1e-5, atol=2e-6 * scale)


def gradients_of(function, tensors, leaves):
    """Results, and the gradients of a sum of them."""
    tensors = {name: t.detach().requires_grad_(name in leaves) for name, t in tensors.items()}
    results = function(tensors)
    total = sum(r[r.isfinite()].square().sum() for r in results if r.requires_grad)
    if not leaves:
        return results
    return *results, *torch.autograd.grad(total, [tensors[name] for name in leaves])


@every_call
def test_autocast_leaves_operators_alone(call, device):
    """Whatever it makes of a layer before them: embeddings in bfloat16, and their gradients."""
    tensors = call.tensors(20, device=device)
    want = call.with_gradients(tensors)
    with torch.autocast(device.type, torch.bfloat16):
        got = call.with_gradients(tensors)
    for mine, plain in zip((*got[0], *got[1].values()), (*want[0], *want[1].values()), strict=True):
        assert torch.equal(mine, plain)


@differentiable_calls
def test_behind_a_layer_under_autocast(call, device):
    """Embeddings are in bfloat16, beside masks and centers in float32, as are results."""
    tensors = call.tensors(5, device=device, dtype=torch.bfloat16)
    first = call.leaves[0]
    if tensors[first].dtype != torch.bfloat16:
        pytest.skip("takes no embeddings")
    layer = torch.nn.Linear(*2 * tensors[first].shape[-1:], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        results = call(**{**tensors, first: layer(tensors[first].float())})
    outputs = [result for result in results if result.requires_grad]
    kept = torch.bfloat16 if call.function.__name__ == "gather_views" else torch.float32
    assert outputs and {output.dtype for output in outputs} == {kept}
    sum(output[output.isfinite()].float().mean() for output in outputs).backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


@pytest.mark.parametrize("call", [call for call in CALLS if not call.differentiable], ids=str)
def test_choices_and_assignments_have_no_gradient(call, device):
    tensors = call.tensors(device=device)
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    assert any(leaf.requires_grad for leaf in leaves.values())
    assert not any(result.requires_grad for result in call(**leaves))


@pytest.mark.parametrize("power", [1, 2])
@differentiable_calls
def test_second_derivative_is_refused(call, power, device):
    name = re.sub("_with_(mean|residual)$", "", call.function.__name__)
    if name == "gather_views":
        pytest.skip("is linear: it has all derivatives")
    tensors = call.tensors(device=device)
    leaf = tensors[call.leaves[0]].requires_grad_()
    result = next(result for result in call(**tensors) if result.requires_grad)
    total = result[result.isfinite()].pow(power).sum()
    (grad,) = torch.autograd.grad(total, [leaf], create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{name}(_with_grad)? has no second derivative"):
        grad.sum().backward()
