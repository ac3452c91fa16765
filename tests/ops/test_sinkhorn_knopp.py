"""prototype_column_logsumexp and sinkhorn_knopp against plain torch in float64."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference

NAN, INF = float("nan"), float("inf")
# N, C
SHAPES = [(1, 1), (2, 1), (1, 5), (5, 3), (7, 64), (33, 17), (16, 1025), (130, 40), (3, 4100)]
TEMPERATURES = [0.02, 0.07, 1.0]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_logits(shape, device="cpu", dtype=torch.float32):
    """Cosines, more or less, as the prototypes of DINO give them."""
    return (torch.randn(shape, device=device) * 0.4).to(dtype)


def dinov2(logits, temperature, iterations=3):
    """The assignments ``[N, C]`` of the published algorithm, in the order of its steps."""
    q = (logits / temperature).exp().T
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


def assignments(logits, center, temperature):
    """As prototype_cross_entropy takes the center, in float64 from the given numbers."""
    return ((logits.cpu().double() - center.cpu().double()) / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("with_center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_logsumexp_matches_definition(shape, dtype, with_center, temperature, device):
    logits = make_logits(shape, device, dtype)
    center = torch.randn(shape[1], device=device) * 0.2 if with_center else None
    got = functional.prototype_column_logsumexp(logits, temperature=temperature, center=center)
    assert got.dtype == torch.float32 and got.shape == shape[1:]
    want = reference.prototype_column_logsumexp(
        logits.cpu().double(),
        temperature=temperature,
        center=None if center is None else center.cpu().double(),
    )
    assert_close(got.cpu().double(), want, rtol=2e-6, atol=1e-5)


def test_column_logsumexp_in_chunks_of_rows(device, chunk_limit):
    """As if there were so many logits that a thread block has more rows than threads."""
    chunk_limit(1)
    shape = (600, 1 << 17) if device.type == "cuda" else (300, 5)
    test_column_logsumexp_matches_definition(shape, torch.float32, True, 0.5, device)


@pytest.mark.parametrize("with_center", [False, True])
def test_column_logsumexp_without_dividing_rows(with_center, device):
    logits = make_logits((40, 300), device)
    options = {
        "temperature": 0.3,
        "center": torch.randn(300, device=device) if with_center else None,
        "normalize_rows": False,
    }
    got = functional.prototype_column_logsumexp(logits, **options)
    assert_close(got, reference.prototype_column_logsumexp(logits, **options))


def test_column_logsumexp_of_float64():
    torch.manual_seed(0)
    logits = make_logits((40, 300), dtype=torch.float64)
    center = torch.randn(300, dtype=torch.float64)
    got = functional.prototype_column_logsumexp(logits, temperature=0.05, center=center)
    want = reference.prototype_column_logsumexp(logits, temperature=0.05, center=center)
    assert got.dtype == torch.float64
    assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("shape", [(9, 700), (70, 33)], ids=str)
def test_column_logsumexp_where_every_probability_underflows(shape, scale, device):
    logits = torch.rand(shape, device=device) * 2 * scale - scale
    got = functional.prototype_column_logsumexp(logits, temperature=0.02)
    want = reference.prototype_column_logsumexp(logits.cpu().double(), temperature=0.02)
    assert want.min() < -200 and got.isfinite().all()
    assert_close(got.cpu().double(), want, rtol=1e-6, atol=1e-5)


def test_column_logsumexp_of_a_prototype_without_mass(device):
    """Beside columns of ordinary size, and far from the smallest float."""
    logits = make_logits((20, 600), device)
    for column, value in [(3, -2.2), (300, -1e4), (599, -INF)]:
        logits[:, column] = value
    got = functional.prototype_column_logsumexp(logits, temperature=0.02)
    want = reference.prototype_column_logsumexp(logits.cpu().double(), temperature=0.02)
    assert want[3] < -80 and want[300] < -1e5 and got[599] == -INF
    assert_close(got.cpu().double(), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("temperature", TEMPERATURES[1:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_assignments_are_those_of_dinov2(shape, temperature, iterations, device):
    logits = make_logits(shape, device)
    center = functional.sinkhorn_knopp(logits, temperature=temperature, iterations=iterations)
    assert center.dtype == torch.float32 and center.shape == shape[1:]
    want = dinov2(logits.cpu().double(), temperature, iterations)
    if iterations == 0:
        want = want / want.sum(1, keepdim=True)
    got = assignments(logits, center, temperature)
    assert_close(got, want, rtol=2e-5, atol=1e-7)
    plain = reference.sinkhorn_knopp(
        logits.cpu().double(), temperature=temperature, iterations=iterations
    )
    assert_close(plain, want, rtol=1e-9, atol=1e-12)
    if iterations == 0:
        assert torch.equal(center, torch.zeros_like(center))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_assignments_of_16_bit_logits(dtype, device):
    logits = make_logits((4, 6, 50), device, dtype)
    center = functional.sinkhorn_knopp(logits, temperature=0.05)
    want = dinov2(logits.flatten(0, 1).cpu().double(), 0.05).view(4, 6, 50)
    assert center.dtype == torch.float32
    assert_close(assignments(logits, center, 0.05), want, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_logits_stay_finite(scale, device):
    """Where exp(logits / temperature) is far beyond any float: ±1e4 / 0.02."""
    logits = torch.rand(40, 130, device=device) * 2 * scale - scale
    center = functional.sinkhorn_knopp(logits, temperature=0.02)
    assert center.isfinite().all()
    exact = logits.cpu().double()
    want = torch.zeros(130, dtype=torch.float64)
    for iteration in range(3):
        z = (exact - want) / 0.02
        want = want + 0.02 * (z.log_softmax(1) if iteration > 0 else z).logsumexp(0)
    plain = reference.sinkhorn_knopp(exact, temperature=0.02)
    assert_close(assignments(exact, want, 0.02), plain, rtol=1e-6, atol=1e-9)
    # In float32 the center's last digit is off, which the temperature magnifies.
    assert_close(center.cpu().double(), want, rtol=0, atol=4e-7 * scale)


def test_float64():
    torch.manual_seed(0)
    logits = torch.rand(40, 130, dtype=torch.float64) * 2e4 - 1e4
    center = functional.sinkhorn_knopp(logits, temperature=0.02)
    want = reference.sinkhorn_knopp(logits, temperature=0.02)
    assert center.dtype == torch.float64
    assert_close(assignments(logits, center, 0.02), want, rtol=1e-6, atol=1e-9)


def test_after_many_iterations_prototypes_share_the_samples(device):
    logits = make_logits((60, 12), device)
    center = functional.sinkhorn_knopp(logits, temperature=0.2, iterations=60)
    mass = assignments(logits, center, 0.2).sum(0)
    assert_close(mass, torch.full_like(mass, 60 / 12), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shares", [2, 3])
def test_merge_joins_processes(shares, device):
    """Each share of the samples with the others' column sums is the whole."""
    logits = make_logits((24, 37), device)
    whole = functional.sinkhorn_knopp(logits, temperature=0.06)
    parts = logits.chunk(shares)
    calls = []

    def merge(mass):
        """What the other processes have at this step, from centers they hold as well."""
        center = calls[-1][1] if calls else None
        masses = [mass]
        for part in parts[1:]:
            scaled = part.double() / 0.06
            if center is not None:
                scaled = ((part.double() - center) / 0.06).log_softmax(-1)
            masses.append(scaled.logsumexp(0).float())
        merged = torch.stack(masses).logsumexp(0)
        previous = torch.zeros_like(merged) if center is None else center
        calls.append((merged, previous + 0.06 * merged))
        return merged

    got = functional.sinkhorn_knopp(parts[0], temperature=0.06, merge=merge)
    assert len(calls) == 3
    assert_close(got, whole, rtol=1e-5, atol=1e-6)


def test_no_samples(device):
    """Nothing to assign on this process, as of images without a masked patch."""
    logits = torch.empty(0, 9, device=device)
    column = functional.prototype_column_logsumexp(logits, temperature=0.1)
    assert torch.equal(column, torch.full_like(column, -INF))
    center = functional.sinkhorn_knopp(logits, temperature=0.1)
    assert torch.equal(center, torch.zeros_like(center))
    assert functional.sinkhorn_knopp(logits.T, temperature=0.1).shape == (0,)


def test_a_blank_prototype_keeps_its_shift(device):
    logits = make_logits((10, 8), device)
    logits[:, 5] = -INF
    center = functional.sinkhorn_knopp(logits, temperature=0.1)
    kept = torch.arange(8) != 5
    want = functional.sinkhorn_knopp(logits[:, kept], temperature=0.1)
    assert center[5] == 0
    assert_close(center[kept], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_non_finite_samples_are_not_hidden(bad, device):
    logits = make_logits((12, 300), device)
    logits[4, 7] = bad
    assert functional.prototype_column_logsumexp(logits, temperature=0.1).isnan().all()
    assert functional.sinkhorn_knopp(logits, temperature=0.1).isnan().all()
