"""variance_covariance against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

# V, N, D, K (None: no masks)
SHAPES = [
    (1, 2, 1, None),
    (0, 3, 4, 2),
    (2, 3, 5, 0),
    (2, 5, 3, 3),  # direct
    (3, 33, 7, None),
    (2, 70, 65, 6),
    (2, 300, 257, None),
    (2, 4, 9, None),  # Gram
    (1, 3, 20, 2),
    (2, 2, 64, 5),
    (1, 17, 33, 1),
    (3, 40, 130, 1),
    (2, 9, 257, None),
    (1, 261, 521, None),
]
FORMS = [(2, 12, 10, 3), (2, 4, 31, 3)]  # direct, Gram


def make_inputs(shape, device, dtype=torch.float32, requires_grad=False):
    views, rows, dim, subspaces = shape
    z = (torch.randn(views, rows, dim, device=device) + 0.5).to(dtype)
    masks = None
    if subspaces is not None:
        accumulation = torch.promote_types(dtype, torch.float32)
        masks = torch.rand(subspaces, dim, device=device, dtype=accumulation)
    return tuple(t if t is None else t.requires_grad_(requires_grad) for t in (z, masks))


def copies(tensors, dtype, device=None):
    """Leaf copies in another dtype."""
    return tuple(
        t if t is None else t.detach().to(device or t.device, dtype).requires_grad_()
        for t in tensors
    )


def evaluate(function, inputs, grads):
    """Both results and the gradients of all inputs, for gradients of the results."""
    results = function(*inputs)
    grads = [g.to(r) for g, r in zip(grads, results, strict=True)]
    return *results, *torch.autograd.grad(results, [t for t in inputs if t is not None], grads)


def error(got, truth):
    """Norm of the error, relative where the truth is not tiny."""
    return ((got.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-6)).item()


def compare(inputs, tolerance):
    """Ours against the truth in float64, no worse than the plain version in the inputs' dtype."""
    shape = (1 if inputs[1] is None else len(inputs[1]), len(inputs[0]))
    grads = torch.randn(2, *shape, device=inputs[0].device)
    got = evaluate(functional.variance_covariance, inputs, grads)
    truth = evaluate(reference.variance_covariance, copies(inputs, torch.float64, "cpu"), grads)
    plain = evaluate(reference.variance_covariance, copies(inputs, inputs[0].dtype), grads)
    product = ops.variance_covariance.op(*inputs, 1e-4)[4]  # bfloat16 of bfloat16 on CUDA
    tolerance += torch.finfo(product.dtype).eps / 4
    for mine, theirs, want in zip(got, plain, truth, strict=True):
        assert mine.shape == want.shape
        assert error(mine, want) <= 1.5 * error(theirs, want) + tolerance
    assert got[0].dtype == got[1].dtype == torch.float32
    assert got[2].dtype == inputs[0].dtype


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # the definition, without views
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    compare(make_inputs(shape, device, dtype, requires_grad=True), tolerance=4e-6)


@pytest.mark.parametrize(
    "shape",
    [(2, 1300, 110, None), (1, 8300, 32, 2), (4, 33, 2050, None), (1, 20, 1200, 3)],
    ids=str,
)
def test_in_stretches(shape, device):
    """Larger than what is kept for the backward, or multiplied at once."""
    compare(make_inputs(shape, device, requires_grad=True), tolerance=2e-6)


@pytest.mark.parametrize(
    "shape", [(1, 2, 1, None), (2, 6, 3, 2), (2, 3, 7, None), (1, 3, 13, 2)], ids=str
)
def test_gradient(shape):
    torch.manual_seed(0)
    inputs = make_inputs(shape, "cpu", torch.float64, requires_grad=True)
    given = [t for t in inputs if t is not None]
    assert torch.autograd.gradcheck(functional.variance_covariance, given)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_only_wanted_gradients(shape, wanted, device):
    inputs = make_inputs(shape, device)
    for tensor, flag in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(flag)
    one = wanted.index(True)
    alone = torch.autograd.grad(sum(functional.variance_covariance(*inputs)).sum(), [inputs[one]])
    every = copies(inputs, torch.float32)
    together = torch.autograd.grad(sum(functional.variance_covariance(*every)).sum(), every)
    assert_close(alone[0], together[one])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_each_result_alone(shape, which, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    got = torch.autograd.grad(functional.variance_covariance(*inputs)[which].sum(), inputs)
    exact = copies(inputs, torch.float64, "cpu")
    want = torch.autograd.grad(reference.variance_covariance(*exact)[which].sum(), exact)
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-4, atol=1e-6)


def test_a_large_mean_costs_no_digits(device):
    z = torch.randn(2, 64, 200, device=device)
    shifted = (z * 2**-4).round() * 2**4 + 4096  # exact in float32
    got = functional.variance_covariance(shifted)
    want = reference.variance_covariance(shifted.cpu().double())
    for mine, truth in zip(got, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-7)


def test_constant_dimensions(device):
    """Variance 0: the hinge is at its top, and nothing pulls."""
    z = torch.ones(2, 4, 30, device=device, requires_grad=True)
    variance, covariance = functional.variance_covariance(z, eps=1e-4)
    assert_close(variance, torch.full_like(variance, 0.99))
    assert_close(covariance, torch.zeros_like(covariance))
    (grad,) = torch.autograd.grad(variance.sum() + covariance.sum(), [z])
    assert_close(grad, torch.zeros_like(grad))


def test_blank_mask(device):
    z, masks = make_inputs((2, 6, 9, 2), device)
    masks[0] = 0
    masks.requires_grad_()
    variance, covariance = functional.variance_covariance(z, masks)
    assert_close(variance[0], torch.full_like(variance[0], 0.99))
    assert torch.equal(covariance[0], torch.zeros_like(covariance[0]))
    (grad,) = torch.autograd.grad(variance.sum() + covariance.sum(), [masks])
    assert grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_non_finite_stays_in_its_view(shape, bad, device):
    z, masks = make_inputs(shape, device)
    clean = functional.variance_covariance(z, masks)
    z[1, 3, 7] = bad
    got = functional.variance_covariance(z, masks)
    for mine, before in zip(got, clean, strict=True):
        assert mine[:, 1].isnan().all()
        assert torch.equal(mine[:, 0], before[:, 0])


@pytest.mark.parametrize("shape", [(2, 300, 70, 5), (2, 40, 900, 2), (1, 600, 500, None)], ids=str)
def test_same_bits_twice_and_on_any_number_of_threads(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    grads = torch.randn(2, shape[3] or 1, shape[0], device=device)
    threads = torch.get_num_threads()
    first = evaluate(functional.variance_covariance, inputs, grads)
    again = evaluate(functional.variance_covariance, inputs, grads)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = evaluate(functional.variance_covariance, inputs, grads)
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        # The matrix products are the vendor's, which may share them out otherwise.
        assert_close(a, c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),  # [N, V, D] in memory
        lambda z: z.movedim(-1, 0).contiguous().movedim(0, -1),  # D is not the dense dimension
        lambda z: torch.cat([z, z], -1)[..., : z.shape[-1]],  # rows wider than D
        lambda z: z[:1].expand_as(z),
        lambda z: torch.cat([z.flatten(), z.flatten()])[1 : 1 + z.numel()].view_as(z),
    ],
)
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_strides(shape, layout, device):
    z, masks = make_inputs(shape, device)
    z = layout(z).requires_grad_()
    dense = z.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    grads = torch.randn(2, shape[3], shape[0], device=device)
    got = evaluate(lambda z: functional.variance_covariance(z, masks), (z,), grads)
    want = evaluate(lambda z: functional.variance_covariance(z, masks), (dense,), grads)
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", [*FORMS, (2, 5, 3, None), (4, 33, 2050, None)], ids=str)
def test_registration(shape, requires_grad, device):
    inputs = make_inputs(shape, device, torch.float32, requires_grad)
    torch.library.opcheck(ops.variance_covariance.op, (*inputs, 1e-4))


@pytest.mark.parametrize("wanted", [(True, True), (False, True)])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_registration_of_backward(shape, wanted, device):
    inputs = make_inputs(shape, device)
    variance, covariance, *saved = ops.variance_covariance.op(*inputs, 1e-4)
    grads = torch.randn_like(variance), torch.randn_like(covariance)
    torch.library.opcheck(
        ops.variance_covariance.backward_op, (*grads, *inputs, *saved, 1e-4, wanted)
    )


@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_compiles_whole(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)

    def step(z, masks):
        variance, covariance = functional.variance_covariance(z * 2, masks)
        return variance.sum() + covariance.sum()

    want = torch.autograd.grad(step(*inputs), inputs)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), want, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_autocast_leaves_the_products_alone(shape, device):
    inputs = make_inputs(shape, device, requires_grad=True)
    grads = torch.randn(2, shape[3], shape[0], device=device)
    want = evaluate(functional.variance_covariance, inputs, grads)
    with torch.autocast(device.type, torch.bfloat16):
        got = evaluate(functional.variance_covariance, inputs, grads)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)


def test_second_derivative_is_refused(device):
    z = torch.randn(2, 3, 4, device=device, requires_grad=True)
    _, covariance = functional.variance_covariance(z)
    (grad,) = torch.autograd.grad(covariance.square().sum(), [z], create_graph=True)
    with pytest.raises(RuntimeError, match="variance_covariance has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message_type", "message"),
    [
        (
            {"z": torch.ones(3, 5)},
            ValueError,
            r"z must have shape \[V, N, D\] with N >= 2 and D >= 1, got \[3, 5\]",
        ),
        ({"z": torch.ones(2, 1, 5)}, ValueError, r"with N >= 2 and D >= 1, got \[2, 1, 5\]"),
        ({"z": torch.ones(2, 3, 0)}, ValueError, r"with N >= 2 and D >= 1, got \[2, 3, 0\]"),
        ({"z": torch.ones(2, 3, 5).long()}, TypeError, "z must be float32, .* got Long"),
        (
            {"masks": torch.ones(5)},
            ValueError,
            r"masks must have shape \[K, 5\] to fit z of shape \[2, 3, 5\], got \[5\]",
        ),
        ({"masks": torch.ones(2, 5).double()}, TypeError, "masks must be Float beside Float embed"),
        ({"masks": -torch.ones(2, 5)}, ValueError, "masks must be non-negative, got a minimum"),
        ({"eps": -1.0}, ValueError, "eps must not be negative, got -1"),
    ],
)
def test_rejects(change, message_type, message):
    with pytest.raises(message_type, match=message):
        functional.variance_covariance(**({"z": torch.ones(2, 3, 5)} | change))
