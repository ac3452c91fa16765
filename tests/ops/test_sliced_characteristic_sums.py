"""sliced_characteristic_sums and what is computed of them, against their definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

# V, N, D, M, knots, t_min: parts of vectors, rows for several blocks of a GPU, more knots than
# follow from one cosine and sine
SHAPES = [
    *((1, 1, 1, 1, 2, 0.0), (2, 5, 3, 7, 17, 0.0), (3, 70, 40, 33, 17, 0.1)),
    *((2, 9, 8, 100, 40, -3.0), (1, 600, 4, 60, 5, 0.0)),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, device="cpu", dtype=torch.float32):
    views, rows, dim, count, knots, t_min = shape
    torch.manual_seed(0)
    z = torch.randn(views, rows, dim).to(dtype)
    slices = torch.nn.functional.normalize(torch.randn(dim, count), dim=0)
    grad = torch.randn(views, knots, 2, count)
    return z.to(device), slices.to(device), grad.to(device), {"knots": knots, "t_min": t_min}


def with_gradient(function, z, slices, grad, **options):
    z = z.detach().requires_grad_()
    sums = function(z, slices, **options)
    return sums.detach(), *torch.autograd.grad(sums, z, grad.to(sums))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    z, slices, grad, options = make_inputs(shape, device, dtype)
    found = with_gradient(functional.sliced_characteristic_sums, z, slices, grad, **options)
    exact = [t.cpu().double() for t in (z, slices, grad)]
    want = with_gradient(reference.sliced_characteristic_sums, *exact, **options)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    rows, coefficients = z.shape[1], math.sqrt(grad[0, ..., 0].numel() * grad.shape[-1])
    scales = rows, want[1].abs().max().item() + coefficients
    for mine, truth, scale in zip(found, want, scales, strict=True):
        rounding = torch.finfo(torch.float32).eps * 8 * scale
        if mine.dtype != torch.float32:
            rounding += torch.finfo(mine.dtype).eps * truth.abs().max().item()
        assert_close(mine.cpu().double(), truth, rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("views", "rows", "dim", "count"),
    [(2, 300, 3, 1000), (5, 120, 3, 1000), (2, 3000, 64, 128), (5, 900, 64, 128)],
)
def test_several_tiles(views, rows, dim, count, device):
    """Of the rows of a view, and of views, made anew or kept; a GPU's tiles are larger."""
    z, slices, grad, options = make_inputs((views, rows, dim, count, 3, 0.0), device)
    found = with_gradient(functional.sliced_characteristic_sums, z, slices, grad, **options)
    exact = [t.cpu().double() for t in (z, slices, grad)]
    want = with_gradient(reference.sliced_characteristic_sums, *exact, **options)
    for mine, truth in zip(found, want, strict=True):
        assert_close(mine.cpu().double(), truth, rtol=0, atol=2e-6 * truth.abs().max().item())


@pytest.mark.parametrize(
    ("views", "rows", "dim", "count"),
    [(2, 70, 3, 33), (5, 10, 3, 33), (2, 70, 20, 33), (5, 10, 20, 33)],
)
def test_in_chunks_of_a_gpu(views, rows, dim, count, device, chunk_limit):
    """As the tiles above: three chunks of rows of a view, the last one short, or of views."""
    chunk_limit(1)  # the least there is: 32 rows
    test_several_tiles(views, rows, dim, count, device)


@pytest.mark.parametrize("count", [100, 1000], ids=["kept", "made again"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_views_shared_by_threads(threads, count):
    """Evenly by two, which take whole views each, or all by all; in any mode of autograd."""
    z, slices, grad, options = make_inputs((8, 300, 64, count, 3, 0.0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sums, grad_z = with_gradient(
            functional.sliced_characteristic_sums, z, slices, grad, **options
        )
        with torch.no_grad():
            found = [functional.sliced_characteristic_sums(z, slices, **options)]
        with torch.inference_mode():
            given = z.clone(), slices.clone()
            found.append(functional.sliced_characteristic_sums(*given, **options))
    finally:
        torch.set_num_threads(before)
    exact = [t.double() for t in (z, slices, grad)]
    want = with_gradient(reference.sliced_characteristic_sums, *exact, **options)
    for mine, truth in zip((sums, grad_z), want, strict=True):
        assert_close(mine.double(), truth, rtol=0, atol=2e-6 * truth.abs().max().item())
    assert all(torch.equal(other, sums) for other in found)


@pytest.mark.parametrize("shape", [(2, 5, 3, 7, 4, 0.0), (1, 6, 2, 5, 20, -1.0)], ids=str)
def test_gradient(shape):
    z, slices, _, options = make_inputs(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: functional.sliced_characteristic_sums(z, slices.double(), **options),
        z.requires_grad_(),
    )


@pytest.mark.parametrize("size", [1.0, 30.0, 600.0])
@pytest.mark.parametrize("knots", [17, 120])
def test_as_exact_as_a_cosine_at_every_knot(size, knots, device):
    """Of angles in float32, whose own rounding grows with them: up to 1800 here."""
    torch.manual_seed(0)
    x, one = size * torch.randn(1, 64, 1).clamp(-1, 1), torch.ones(1, 1)
    grad = torch.randn(1, knots, 2, 1)
    found, want, plain = (
        with_gradient(function, *(t.to(where, dtype) for t in (x, one, grad)), knots=knots)
        for function, where, dtype in (
            (functional.sliced_characteristic_sums, device, torch.float32),
            (reference.sliced_characteristic_sums, "cpu", torch.float64),
            (reference.sliced_characteristic_sums, "cpu", torch.float32),
        )
    )
    for mine, truth, eager in zip(found, want, plain, strict=True):
        errors = [(each.cpu().double() - truth).norm().item() for each in (mine, eager)]
        assert errors[0] <= 1.5 * errors[1] + 2e-6 * truth.norm().item()


@pytest.mark.parametrize("size", [1e5, 1e7, 1e30])
def test_stays_bounded_where_angles_mean_nothing(size, device):
    z = torch.tensor([1.0, -1.1, 0.3, 0.77], device=device).view(1, 4, 1) * size
    z.requires_grad_()
    sums = functional.sliced_characteristic_sums(z, torch.ones(1, 9, device=device))
    assert sums.abs().max() <= 4 * 1.01
    assert torch.autograd.grad(sums.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_stays_with_its_view(value, device):
    z = torch.randn(3, 9, 4, device=device)
    z[1, 2, 3] = value
    z.requires_grad_()
    sums = functional.sliced_characteristic_sums(z, torch.rand(4, 5, device=device))
    assert sums[1].isnan().all() and sums[[0, 2]].isfinite().all()
    (grad,) = torch.autograd.grad(sums[:, 1:].sum(), z)
    rows = grad.isnan().all(2)
    assert rows[1, 2] and rows.sum() == 1 and grad[~rows].isfinite().all()


def test_no_images(device):
    z = torch.zeros(2, 0, 4, device=device, requires_grad=True)
    sums = functional.sliced_characteristic_sums(z, torch.rand(4, 5, device=device))
    assert sums.shape == (2, 17, 2, 5) and not sums.any()
    assert torch.autograd.grad(sums.sum(), z)[0].shape == z.shape
    none = functional.sliced_characteristic_sums(z[:0], torch.rand(4, 5, device=device))
    assert none.shape == (0, 17, 2, 5)


def test_slices_get_no_gradient(device):
    z = torch.randn(1, 4, 3, device=device)
    slices = torch.rand(3, 5, device=device, requires_grad=True)
    sums = functional.sliced_characteristic_sums(z, slices)
    assert torch.autograd.grad(sums.sum(), slices, allow_unused=True) == (None,)


def test_sums_of_parts_add_up(device):
    z, slices, *_ = make_inputs(SHAPES[2], device)
    whole = functional.sliced_characteristic_sums(z, slices)
    parts = [functional.sliced_characteristic_sums(part, slices) for part in z.split(30, 1)]
    assert_close(sum(parts), whole, rtol=0, atol=1e-4)


# interval, knots, t_max
GRIDS = [("half", 17, 3.0), ("half", 2, 1.0), ("symmetric", 17, 5.0), ("symmetric", 6, 2.0)]
GRIDS += [("symmetric", 3, 4.0)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("interval", "knots", "t_max"), GRIDS)
def test_distance_by_definition(interval, knots, t_max, dtype, device):
    z, slices, *_ = make_inputs((3, 50, 12, 40, 1, 0), device, dtype)
    z.requires_grad_()
    options = {"knots": knots, "t_max": t_max, "interval": interval}
    found = functional.sliced_characteristic_distance(z, slices, **options)
    exact = z.detach().cpu().double().requires_grad_()
    want = reference.sliced_characteristic_distance(exact, slices.cpu().double(), **options)
    assert_close(found.cpu().double(), want, rtol=1e-5, atol=0)
    # Times a number that keeps gradients in float16's range.
    (grad,) = torch.autograd.grad(1e5 * found.square().sum(), z)
    (truth,) = torch.autograd.grad(1e5 * want.square().sum(), exact)
    rounding = max(2e-5, torch.finfo(dtype).eps)
    assert (grad.cpu().double() - truth).norm() <= rounding * truth.norm()


def test_distance_of_what_is_known(device):
    """Of a constant: the integral of (1 - φ)² φ. Of a normal distribution: about 1/N of it."""
    constant = torch.zeros(1, 100, 3, device=device)
    slices = torch.nn.functional.normalize(torch.randn(3, 200, device=device), dim=0)
    found = functional.sliced_characteristic_distance(constant, slices, knots=400, t_max=9.0)
    # ∫ φ − 2 φ² + φ³ over the line
    want = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    assert_close(found.item(), 100 * want, rtol=1e-4, atol=0)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 4000, 3, generator=generator).to(device)
    assert functional.sliced_characteristic_distance(normal, slices).item() < 1.5


@pytest.mark.parametrize("arguments", [{}, {"interval": "symmetric"}], ids=str)
def test_distance_compiles_whole(arguments, device):
    z, slices, *_ = make_inputs((3, 50, 12, 40, 1, 0), device)
    z.requires_grad_()

    def distance(z):
        return functional.sliced_characteristic_distance(z, slices, **arguments)

    compiled = torch.compile(distance, fullgraph=True, backend="aot_eager")
    assert_close(compiled(z), distance(z))
    found, want = (torch.autograd.grad(f(z).sum(), z) for f in (compiled, distance))
    assert_close(found, want)
