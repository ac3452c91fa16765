"""select_hard_pairs and its fused cosine form against a search over all pairs of every image."""

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, reference
from mast_ext.losses import NegativeCosineSimilarity

NAN, INF = float("nan"), float("inf")
# V, B
SHAPES = [(2, 0), (2, 1), (3, 7), (4, 16), (4, 33), (5, 130), (9, 17)]
# V, B, D, targets of their own
COSINE_SHAPES = [
    (2, 0, 4, True),
    (2, 3, 0, False),
    (2, 5, 8, False),
    (3, 9, 33, True),
    (4, 6, 128, False),
    (4, 3, 2048, True),  # a row takes a GPU several warps
    (4, 3, 4096, False),
    (3, 5, 1001, False),
    (4, 17, 70, True),
    (5, 4, 36, False),
    (7, 5, 20, True),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def search(pair_losses, candidates=None):
    """The definition, one image and one pair at a time, in Python's floats."""
    losses = pair_losses.double().tolist()
    views, batch = pair_losses.shape[1:]
    index, scores = [], []
    for b in range(batch):
        best = None
        for i in range(views):
            for j in range(i + 1, views):
                if candidates is not None and not candidates[i, j]:
                    continue
                score = (losses[i][j][b] + losses[j][i][b]) / 2
                if best is None or score > best[0] or (best[0] != best[0] and score == score):
                    best = (score, i, j)
        scores.append(best[0])
        index.append(best[1:])
    shape = (batch, 2)
    return torch.tensor(index, dtype=torch.long).view(shape).T, torch.tensor(scores)


def assert_chosen(got, want):
    assert torch.equal(got[0].cpu(), want[0])
    assert_close(got[1].cpu().double(), want[1].double(), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_search(shape, dtype, device):
    views, batch = shape
    pair_losses = torch.randn(views, views, batch, device=device).to(dtype)
    index, score = functional.select_hard_pairs(pair_losses)
    assert index.shape == (2, batch) and index.dtype == torch.int64
    assert score.shape == (batch,) and score.dtype == torch.float32
    assert_chosen((index, score), search(pair_losses))


def test_float64():
    pair_losses = torch.randn(4, 4, 21, dtype=torch.float64)
    pair_losses[2, 3] = pair_losses[0, 1] + 1e-12  # not seen in float32
    pair_losses[3, 2] = pair_losses[1, 0] + 1e-12
    index, score = functional.select_hard_pairs(pair_losses)
    assert score.dtype == torch.float64
    assert torch.equal(index, search(pair_losses)[0])
    assert not (index == torch.tensor([[0], [1]])).all(0).any()


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_reference_matches_search(shape):
    views, batch = shape
    pair_losses = torch.randn(views, views, batch).round()  # with ties
    pair_losses[torch.rand(views, views, batch) < 0.4] = NAN
    candidates = torch.rand(views, views) < 0.6
    candidates[0, -1] = True
    for marks in (None, candidates):
        got = reference.select_hard_pairs(pair_losses, candidates=marks)
        assert_chosen(got, search(pair_losses, marks))


@pytest.mark.parametrize("values", [[0.0, 1.0], [NAN, 0.0, 1.0], [-INF, NAN], [INF, NAN, 2.0]])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_ties_and_non_finite(values, with_candidates, device):
    draw = torch.randint(len(values), (5, 5, 300), device=device)
    pair_losses = torch.tensor(values, device=device)[draw]
    candidates = None
    if with_candidates:
        candidates = torch.rand(5, 5, device=device) < 0.4
        candidates[1, 4] = True
    got = functional.select_hard_pairs(pair_losses, candidates=candidates)
    assert_chosen(got, search(pair_losses.cpu(), candidates))


def test_two_views_have_one_pair(device):
    pair_losses = torch.randn(2, 2, 50, device=device)
    pair_losses[:, :, ::3] = NAN
    index, score = functional.select_hard_pairs(pair_losses)
    assert (index[0] == 0).all() and (index[1] == 1).all()
    assert_close(score, (pair_losses[0, 1] + pair_losses[1, 0]) / 2, equal_nan=True)


def test_diagonal_and_lower_candidates_are_not_read(device):
    pair_losses = torch.randn(4, 4, 40, device=device)
    want = functional.select_hard_pairs(pair_losses)
    candidates = torch.ones(4, 4, dtype=torch.bool, device=device).triu(1)
    pair_losses.diagonal(dim1=0, dim2=1).fill_(INF)
    for marks in (None, candidates):
        got = functional.select_hard_pairs(pair_losses, candidates=marks)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_permuting_views_permutes_the_choice(device):
    pair_losses = torch.randn(5, 5, 60, device=device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    index, score = functional.select_hard_pairs(pair_losses)
    permuted, same = functional.select_hard_pairs(pair_losses[order][:, order])
    assert torch.equal(order[permuted].sort(0).values, index)
    assert torch.equal(score, same)


def cosine_inputs(shape, device, dtype=torch.float32):
    views, batch, dim, has_targets = shape
    x, y = torch.randn(2, views, batch, dim, device=device).to(dtype)
    return x, y if has_targets else None


def assert_hardest_cosine(got, x, y, tolerance):
    """The pair's score is right, and there is no larger one; ties may be rounded either way."""
    index, score = got[0].cpu(), got[1].cpu().double()
    exact = (x.cpu().double(), None if y is None else y.cpu().double())
    losses = -reference.subspace_similarity(*exact)[0]
    scores = (losses + losses.transpose(0, 1)) / 2
    assert (index[0] < index[1]).all()
    chosen = scores[index[0], index[1], torch.arange(index.shape[1])]
    assert_close(score, chosen, rtol=0, atol=tolerance)
    assert_close(search(losses)[1].double(), chosen, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", COSINE_SHAPES, ids=str)
def test_cosine_matches_definition(shape, dtype, device):
    x, y = cosine_inputs(shape, device, dtype)
    got = functional.select_hard_cosine_pairs(x, y)
    assert got[0].shape == (2, shape[1]) and got[1].dtype == torch.float32
    assert_hardest_cosine(got, x, y, 1e-6)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", COSINE_SHAPES, ids=str)
def test_cosine_has_the_bits_of_the_two_steps_on_the_cpu(shape, dtype):
    torch.manual_seed(0)
    x, y = cosine_inputs(shape, "cpu", dtype)
    got = functional.select_hard_cosine_pairs(x, y)
    want = functional.select_hard_pairs(NegativeCosineSimilarity().pair_losses(x, y))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("views", [3, 4, 6])
def test_cosine_candidates_and_non_finite(views, device):
    x, y = cosine_inputs((views, 40, 24, True), device)
    x[1, 3, 5] = y[2, 7, 0] = NAN  # some pairs of two images
    x[:, 11] = NAN  # every pair of one
    x[0, 13], y[2, 17, 1], x[:, 19] = 0, INF, 0
    candidates = torch.zeros(views, views, dtype=torch.bool, device=device)
    candidates[0, 1:] = candidates[1, 2] = True
    for marks in (None, candidates):
        got = functional.select_hard_cosine_pairs(x, y, candidates=marks)
        want = reference.select_hard_cosine_pairs(x, y, candidates=marks)
        assert torch.equal(got[0], want[0])
        assert_close(got[1], want[1], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("has_targets", [False, True])
def test_cosine_eps(has_targets, device):
    x, y = cosine_inputs((3, 10, 12, has_targets), device)
    got = functional.select_hard_cosine_pairs(x, y, eps=100.0)
    want = reference.select_hard_cosine_pairs(x, y, eps=100.0)
    assert torch.equal(got[0], want[0])
    assert_close(got[1], want[1], rtol=0, atol=1e-6)


def test_no_candidate_is_never_out_of_bounds(device):
    """An error where the marks can be looked at; else the first pair, which scores nothing."""
    candidates = torch.zeros(3, 3, dtype=torch.bool, device=device)
    try:
        index, score = functional.select_hard_pairs(
            torch.zeros(3, 3, 2, device=device), candidates=candidates
        )
    except ValueError:
        assert device.type == "cpu"
    else:
        assert device.type == "cuda"
        assert index.tolist() == [[0, 0], [1, 1]] and score.isnan().all()
