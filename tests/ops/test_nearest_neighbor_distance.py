"""nearest_neighbor_distance against its definition, its own gradient, and torch's rules for ops."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

NAN, INF = float("nan"), float("inf")
# N, D
SHAPES = [(2, 1), (2, 5), (3, 16), (7, 33), (33, 8), (64, 70), (65, 3), (130, 65), (257, 20)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_rows(shape, device="cpu", dtype=torch.float32):
    return (torch.randn(shape, device=device) * 3).to(dtype)


def evaluate(function, x, grad):
    """Distance, its gradient, and whose it is."""
    x = x.detach().requires_grad_()
    distance, index = function(x)
    (grad_x,) = torch.autograd.grad(distance, x, grad.to(distance))
    return distance.detach(), grad_x, index


def assert_nearest(index, x, tolerance=1e-6):
    """There is no nearer one; ties may be rounded either way."""
    unit = torch.nn.functional.normalize(x.detach().cpu().double(), dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-3)
    chosen = cosines.gather(1, index.cpu()[:, None])[:, 0]
    assert_close(chosen, cosines.amax(1), rtol=0, atol=tolerance)


def along(index):
    """The definition beside given neighbors, so that it is theirs the gradient is of."""

    def distance(x):
        unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-8)
        return torch.nn.functional.pairwise_distance(unit, unit[index], eps=1e-8), index

    return distance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_definition(shape, dtype, device):
    x = make_rows(shape, device, dtype)
    grad = torch.randn(shape[0], device=device)
    distance, grad_x, index = evaluate(functional.nearest_neighbor_distance, x, grad)
    assert distance.dtype == torch.float32 and distance.shape == index.shape == shape[:1]
    assert grad_x.dtype == dtype and index.dtype == torch.int64
    assert_nearest(index, x)
    truth = evaluate(along(index.cpu()), x.cpu().double(), grad.cpu())
    assert_close(distance.cpu().double(), truth[0], rtol=2e-6, atol=2e-7)
    # A gradient of rows with one dimension is 0, but for what eps makes of it.
    assert_close(grad_x.cpu().double(), truth[1], rtol=torch.finfo(dtype).eps, atol=3e-6)


@pytest.mark.parametrize("shape", [(600, 24), (1100, 5)], ids=str)
def test_in_tiles(shape, device):
    x = make_rows(shape, device)
    distance, index = functional.nearest_neighbor_distance(x)
    want, nearest = reference.nearest_neighbor_distance(x.cpu().double())
    assert_nearest(index, x)
    assert_close(distance.cpu().double(), want, rtol=1e-5, atol=1e-6)
    assert (index.cpu() == nearest).float().mean() > 0.99


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit", [1, 2, 3])  # of slots, in tiles of 128 rows
def test_in_tiles_of_128_rows(limit, dtype, device, chunk_limit):
    x = make_rows((500, 70), device, dtype)
    x[400] = x[300] = x[7]
    chunk_limit(limit)
    distance, index = functional.nearest_neighbor_distance(x)
    assert_nearest(index, x)
    assert (index[7], index[300], index[400]) == (300, 7, 7)
    want = along(index.cpu())(x.cpu().double())[0]
    assert_close(distance.cpu().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_duplicates_before_and_behind_a_row(dtype, device):
    """The cosine of two rows has the same bits, whichever of them is first."""
    rows = make_rows((100, 150), device, dtype)
    x = torch.cat([rows, rows + 0.5 * make_rows((100, 150), device, dtype), rows])
    index = functional.nearest_neighbor_distance(x)[1].cpu()
    assert_nearest(index, x)
    first = torch.arange(100)
    assert torch.equal(index[:100], first + 200) and torch.equal(index[200:], first)
    assert (index[100:200] < 200).all()


@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (9, 2)], ids=str)
def test_gradient(shape):
    torch.manual_seed(0)
    x = make_rows(shape, dtype=torch.float64).requires_grad_()
    distance = functional.nearest_neighbor_distance(x)[0]
    assert distance.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: functional.nearest_neighbor_distance(x)[0], x)


def test_near_rows_keep_their_digits(device):
    x = make_rows((40, 64), device)
    near = torch.cat([x, x + 1e-4 * torch.randn_like(x)])
    distance, index = functional.nearest_neighbor_distance(near)
    assert torch.equal(index.cpu(), (torch.arange(80) + 40) % 80)
    want = reference.nearest_neighbor_distance(near.cpu().double())[0]
    assert_close(distance.cpu().double(), want, rtol=2e-3, atol=0)  # the inputs' rounding


def test_ties_go_to_the_first(device):
    """Rows whose products are exact: signs, of a dimension whose root is a whole number."""
    signs = torch.randint(0, 2, (9, 16), device=device) * 2.0 - 1
    x = signs[torch.randint(9, (150,), device=device)]
    index = functional.nearest_neighbor_distance(x)[1]
    cosines = (x @ x.T).cpu().fill_diagonal_(-INF)
    assert torch.equal(index.cpu(), cosines.argmax(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 70, 300])
def test_duplicates(count, dtype, device):
    """Their distance is that of eps, their gradient along the diagonal and finite."""
    row = torch.randn(5, device=device)
    x = row.to(dtype).expand(count, 5).contiguous()
    grad = torch.zeros(count, device=device)
    grad[-1] = 1.0
    distance, grad_x, index = evaluate(functional.nearest_neighbor_distance, x, grad)
    assert torch.equal(index.cpu(), (torch.arange(count) == 0).long())
    assert_close(distance, torch.full_like(distance, 1e-8 * 5**0.5))
    truth = evaluate(along(index.cpu()), x.cpu().double(), grad.cpu())[1]
    assert_close(grad_x.cpu().double(), truth, rtol=1e-2, atol=1e-6)
    assert grad_x[-1].abs().max() > 0.01 / row.norm()


@pytest.mark.parametrize("limit", [1 << 20, 1])  # of rows whose order is found by counting
def test_of_a_row_that_is_everyones_neighbor(limit, device, chunk_limit):
    """Its gradient has a term of each, in the order of their index."""
    chunk_limit(limit)
    x = torch.eye(80, 81, device=device) + torch.eye(80, 81, device=device).roll(1, 0) * 0.1
    x[:, 80] = 1
    x[3] = 0
    x[3, 80] = 5
    distance, grad_x, index = evaluate(
        functional.nearest_neighbor_distance, x, torch.ones(80, device=device)
    )
    assert (index.cpu() == 3).sum() == 79
    truth = evaluate(along(index.cpu()), x.cpu().double(), torch.ones(80))
    assert_close(grad_x.cpu().double(), truth[1], rtol=1e-5, atol=1e-6)


def test_blank_rows(device):
    x = make_rows((6, 4), device)
    x[2] = 0
    x[4] = 1e-10
    distance, grad_x, index = evaluate(
        functional.nearest_neighbor_distance, x, torch.ones(6, device=device)
    )
    truth = evaluate(along(index.cpu()), x.cpu().double(), torch.ones(6))
    assert_close(distance.cpu().double(), truth[0], rtol=1e-5, atol=1e-6)
    assert_close(grad_x.cpu().double(), truth[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("row", [0, 3, 140])
def test_non_finite_rows_stay_where_they_are(row, bad, device):
    x = make_rows((150, 12), device)
    others = torch.arange(150, device=device) != row
    want, neighbors = functional.nearest_neighbor_distance(x[others])
    x[row, 5] = bad
    distance, grad_x, index = evaluate(
        functional.nearest_neighbor_distance, x, torch.ones(150, device=device)
    )
    assert distance[row].isnan() and grad_x[row].isnan().any()
    assert index[row] == (row == 0)  # the first other row
    assert torch.equal(index[others], torch.arange(150, device=device)[others][neighbors])
    assert_close(distance[others], want, rtol=1e-5, atol=1e-6)
    finite = others.clone()
    finite[index[row]] = False  # pulled at by the bad row
    assert grad_x[finite].isfinite().all()


def test_nothing_but_nan(device):
    distance, index = functional.nearest_neighbor_distance(torch.full((3, 4), NAN, device=device))
    assert index.tolist() == [1, 0, 0] and distance.isnan().all()


def test_no_rows(device):
    x = torch.empty(0, 7, device=device, requires_grad=True)
    distance, index = functional.nearest_neighbor_distance(x)
    assert distance.shape == index.shape == (0,)
    (grad,) = torch.autograd.grad(distance.sum(), x)
    assert grad.shape == (0, 7)


def test_large_eps(device):
    x = make_rows((20, 6), device)
    distance = functional.nearest_neighbor_distance(x, eps=0.3)[0]
    want = reference.nearest_neighbor_distance(x.cpu().double(), eps=0.3)[0]
    assert_close(distance.cpu().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [1 << 20, 1])
@pytest.mark.parametrize("value", [-5, 99])
def test_backward_never_reads_out_of_bounds(value, limit, device, chunk_limit):
    chunk_limit(limit)
    x = make_rows((6, 5), device)
    distance, index = ops.nearest_neighbor_distance.op(x, 1e-8)
    grad = ops.nearest_neighbor_distance.backward_op(
        torch.ones_like(distance), x, distance, torch.full_like(index, value), 1e-8
    )
    assert grad.isfinite().all()
