"""select_hard_crops against a search over all tuples of crops of every image."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from mast_ext import functional, ops, reference

NAN, INF = float("nan"), float("inf")
# G, L, num_locals, B
SHAPES = [
    (2, 0, 0, 3),
    (2, 1, 1, 0),
    (2, 8, 0, 5),
    (2, 8, 8, 5),
    (2, 7, 3, 33),
    (3, 5, 2, 17),  # an even crop more than odd ones
    (4, 8, 4, 16),
    (5, 6, 5, 7),
    (6, 8, 3, 4),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_ce(shape, device, dtype=torch.float32):
    num_globals, local_crops, _, batch = shape
    return (torch.randn(num_globals, num_globals + local_crops, batch, device=device) * 3).to(dtype)


def tuples_of(num_globals, local_crops, num_locals):
    """All tuples of crops, in lexicographic order."""
    even, odd = range(0, num_globals, 2), range(1, num_globals, 2)
    views = range(num_globals, num_globals + local_crops)
    subsets = list(itertools.combinations(views, num_locals))
    return [(a, c, *subset) for a in even for c in odd for subset in subsets]


def search(ce, num_locals, tuples=None):
    """The definition, one image and one tuple at a time, in Python's floats."""
    num_globals, crops, batch = ce.shape
    tuples = tuples or tuples_of(num_globals, crops - num_globals, num_locals)
    losses = ce.double().tolist()
    index, scores = [], []
    for b in range(batch):
        best = None
        for a, c, *chosen in tuples:
            score = losses[a][c][b] + losses[c][a][b]
            score += sum(losses[a][crop][b] + losses[c][crop][b] for crop in chosen)
            if best is None or score > best[0] or (best[0] != best[0] and score == score):
                best = (score, (a, c, *chosen))
        scores.append(best[0])
        index.append(best[1])
    shape = (batch, 2 + num_locals)
    return torch.tensor(index, dtype=torch.long).view(shape).T, torch.tensor(scores)


def assert_chosen(got, want):
    assert torch.equal(got[0].cpu(), want[0])
    assert_close(got[1].cpu().double(), want[1].double(), rtol=1e-6, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_search(shape, dtype, device):
    num_locals, batch = shape[2:]
    ce = make_ce(shape, device).to(dtype)
    if dtype != torch.float32:
        ce = (ce * 4).round() / 4  # ties are ties in any precision
    index, score = functional.select_hard_crops(ce, num_locals=num_locals)
    assert index.shape == (2 + num_locals, batch) and index.dtype == torch.int64
    assert score.shape == (batch,) and score.dtype == torch.float32
    assert_chosen((index, score), search(ce.cpu(), num_locals))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_matches_search(shape):
    torch.manual_seed(0)
    ce = make_ce(shape, "cpu").round()  # with ties
    ce[torch.rand(ce.shape) < 0.3] = NAN
    if shape[3] > 0:
        assert_chosen(reference.select_hard_crops(ce, num_locals=shape[2]), search(ce, shape[2]))


def test_float64():
    ce = torch.rand(4, 9, 21, dtype=torch.float64)
    ce[:, 4:] = 0.5
    ce[:, 8] += 1e-12  # not seen in float32
    index, score = functional.select_hard_crops(ce, num_locals=1)
    assert score.dtype == torch.float64 and (index[2] == 8).all()


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [NAN, 0.0, 1.0], [NAN, NAN, 2.0], [NAN], [NAN, INF, 0.0], [-INF, 1.0]]
)
@pytest.mark.parametrize("shape", [(4, 6, 3, 200), (3, 4, 4, 40), (2, 5, 1, 60)], ids=str)
def test_ties_and_non_finite(shape, values, device):
    """Ties are broken as the search breaks them. Of a score that is infinite or NaN whatever else
    the tuple holds, the pair alone, or the score, says what was chosen."""
    draw = torch.randint(len(values), make_ce(shape, "cpu").shape)
    ce = torch.tensor(values, device=device)[draw]
    index, score = functional.select_hard_crops(ce, num_locals=shape[2])
    want_index, want_score = search(ce.cpu(), shape[2])
    assert_close(score.cpu().double(), want_score.double(), equal_nan=True)
    finite, infinite = want_score.isfinite(), want_score.isinf()
    assert torch.equal(index.cpu()[:, finite], want_index[:, finite])
    assert torch.equal(index.cpu()[:2, ~infinite], want_index[:2, ~infinite])
    assert (index[2:].diff(dim=0) > 0).all()


def test_a_nan_local_is_the_last_one_chosen(device):
    ce = torch.zeros(2, 6, 3, device=device)
    ce[0, 2:] = torch.tensor([5.0, 4.0, 3.0, -INF], device=device)[:, None]
    ce[1, 2, 1] = NAN  # the largest of image 1
    index, score = functional.select_hard_crops(ce, num_locals=2)
    assert index[2:].T.tolist() == [[2, 3], [3, 4], [2, 3]] and score.tolist() == [9, 7, 9]
    index, score = functional.select_hard_crops(ce, num_locals=3)
    assert index[2:, 1].tolist() == [3, 4, 5] and score[1] == -INF
    assert functional.select_hard_crops(ce, num_locals=4)[1].isnan().tolist() == [
        False,
        True,
        False,
    ]


def test_own_views_are_not_read(device):
    ce = make_ce((4, 5, 2, 30), device)
    want = functional.select_hard_crops(ce, num_locals=2)
    ce[:, :4].diagonal(dim1=0, dim2=1).fill_(INF)
    got = functional.select_hard_crops(ce, num_locals=2)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize(("local_crops", "num_locals"), [(300, 150), (129, 1), (70, 69)])
def test_many_locals(local_crops, num_locals, device):
    ce = make_ce((2, local_crops, num_locals, 19), device)
    index, score = functional.select_hard_crops(ce, num_locals=num_locals)
    terms = (ce[0, 2:] + ce[1, 2:]).cpu()
    want = terms.topk(num_locals, dim=0)
    assert torch.equal(index[2:].cpu(), want.indices.sort(0).values + 2)
    pair = (ce[0, 1] + ce[1, 0]).cpu()
    assert_close(score.cpu(), pair + want.values.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_limit_is_a_search_of_that_many_tuples(count, device):
    shape = (4, 6, 3, 50)
    ce = make_ce(shape, device)
    generator = torch.Generator().manual_seed(3)
    got = functional.select_hard_crops(ce, num_locals=3, limit=count, generator=generator)
    tuples = ops.select_hard_crops.draw_tuples(*shape[:3], count, generator.manual_seed(3))
    assert tuples.shape == (count, 5)
    assert_chosen(got, search(ce.cpu(), 3, tuples.tolist()))


@pytest.mark.parametrize("values", [[0.0, 1.0], [NAN, 0.0, 1.0], [NAN]])
def test_limit_with_ties_and_nan(values, device):
    ce = torch.tensor(values, device=device)[torch.randint(len(values), (4, 9, 70))]
    generator = torch.Generator().manual_seed(5)
    got = functional.select_hard_crops(ce, num_locals=2, limit=21, generator=generator)
    tuples = ops.select_hard_crops.draw_tuples(4, 5, 2, 21, generator.manual_seed(5)).tolist()
    assert_chosen(got, search(ce.cpu(), 2, tuples))


def test_limit_of_all_tuples_is_exact(device):
    ce = make_ce((4, 5, 2, 9), device)
    want = functional.select_hard_crops(ce, num_locals=2)
    for limit in (40, 41, 10**9):
        got = functional.select_hard_crops(ce, num_locals=2, limit=limit)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("shape", [(4, 5, 2), (3, 4, 4), (2, 6, 0), (5, 3, 1)], ids=str)
def test_draws_without_replacement(shape):
    every = tuples_of(*shape)
    generator = torch.Generator().manual_seed(0)
    assert ops.select_hard_crops.draw_tuples(*shape, len(every), generator) is None
    for limit in range(1, len(every)):
        drawn = ops.select_hard_crops.draw_tuples(*shape, limit, generator).tolist()
        drawn = [tuple(row) for row in drawn]
        assert len(set(drawn)) == limit and set(drawn) <= set(every) and drawn == sorted(drawn)


def test_draws_every_tuple_equally_often():
    draws, limit = 4000, 3
    every = tuples_of(2, 4, 2)  # 6
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(every, 0)
    for _ in range(draws):
        for row in ops.select_hard_crops.draw_tuples(2, 4, 2, limit, generator).tolist():
            counts[tuple(row)] += 1
    expected = draws * limit / len(every)
    assert all(abs(count - expected) < 5 * math.sqrt(expected / 2) for count in counts.values())


def test_draw_follows_its_generator():
    def draw(generator=None):
        return ops.select_hard_crops.draw_tuples(4, 16, 8, 10, generator)

    seeded = torch.Generator().manual_seed(7)
    first, second = draw(seeded), draw(seeded)
    assert not torch.equal(first, second)
    assert torch.equal(draw(seeded.manual_seed(7)), first)
    torch.manual_seed(1)
    default = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), default)


def test_draws_of_more_tuples_than_64_bits_count():
    tuples = ops.select_hard_crops.draw_tuples(8, 200, 100, 20, torch.Generator().manual_seed(0))
    assert tuples.shape == (20, 102) and len(set(map(tuple, tuples.tolist()))) == 20
    assert (tuples[:, 2:].diff(dim=1) > 0).all() and tuples[:, 2:].min() >= 8
    assert tuples[:, 2:].max() < 208


@pytest.mark.dispatch
def test_a_draw_breaks_a_compiled_graph(device):
    ce = make_ce((4, 5, 2, 6), device)
    generator = torch.Generator()

    def step(ce):
        return functional.select_hard_crops(
            ce * 2, num_locals=2, limit=7, generator=generator.manual_seed(0)
        )[0]

    got = torch.compile(step, backend="aot_eager")(ce)
    assert torch.equal(got, step(ce))


@pytest.mark.parametrize(
    ("tuples", "error", "message"),
    [
        (torch.ones(3, 3).long(), ValueError, r"tuples must have shape \[n, 4\] with n >= 1, got"),
        (torch.ones(0, 4).long(), ValueError, r"tuples must have shape \[n, 4\] with n >= 1, got"),
        (torch.ones(3, 4), TypeError, "tuples must be Long on the CPU, got Float"),
        (torch.tensor([[0, 1, 2, 5]]), ValueError, r"local ones up to 5, got 5 at \[0, 3\]"),
        (torch.tensor([[0, 1, 2, 3], [0, 2, 2, 3]]), ValueError, r"got 2 at \[1, 1\]"),
        (torch.tensor([[0, -1, 2, 3]]), ValueError, r"got -1 at \[0, 1\]"),
    ],
)
def test_op_rejects_tuples(tuples, error, message):
    with pytest.raises(error, match=message):
        ops.select_hard_crops.op(torch.ones(2, 5, 6), tuples, 2)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_rejects_generators_on_the_gpu(device):
    generator = torch.Generator(device)
    with pytest.raises(ValueError, match="generator must be on the CPU, .* got cuda"):
        functional.select_hard_crops(
            torch.ones(4, 8, 2, device=device), num_locals=2, limit=3, generator=generator
        )


def test_draws_on_the_host_whatever_the_default_device():
    ce = make_ce((4, 8, 4, 6), "cpu")
    draw = {"num_locals": 4, "limit": 5}
    want = functional.select_hard_crops(ce, **draw, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        generator = torch.Generator().manual_seed(0)
        found = functional.select_hard_crops(ce, **draw, generator=generator)
    assert_close(found, want, rtol=0, atol=0)
