"""HardViewSelector: every objective's choice against the published definition, and its options.

The definition (Ferreira et al.): all pairs of an image's views, one at a time; the loss of each as
if the batch were that pair; the pair with the largest.
"""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from mast_ext import functional, losses
from mast_ext.losses import HardViewSelector

VIEWS, BATCH, DIM = 4, 23, 12
NAN = float("nan")


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def of_simsiam(x, y, i, j, b):
    """Half of both directions, predictions against targets: SimSiam's loss, and BYOL's over 2."""
    return -(cosine(x[i, b], y[j, b]) + cosine(x[j, b], y[i, b])) / 2


def of_simclr(x, y, i, j, b):
    """Both directions; negatives are all other images' views i and j."""

    def one_way(anchor, positive):
        others = [(v, c) for v in (i, j) for c in range(x.shape[1]) if (v, c) != (anchor, b)]
        logits = torch.stack([cosine(x[anchor, b], x[v, c]) for v, c in others]) / 0.2
        return logits.logsumexp(0) - cosine(x[anchor, b], x[positive, b]) / 0.2

    return (one_way(i, j) + one_way(j, i)) / 2


def of_vicreg(x, y, i, j, b):
    """Variance and covariance are the batch's: what an image has of its own is the invariance."""
    loss = losses.VICRegLoss(mu_param=0.0, nu_param=0.0)  # of a batch of that image twice
    return loss(x[i, b].expand(2, -1), x[j, b].expand(2, -1))


def of_barlow(x, y, i, j, b):
    """An image's part of the diagonal: dimensions standardized over the batch of each view."""
    a, c = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (x[i], x[j]))
    return (a[b] - c[b]).square().sum() / 2


# name: pair losses of predictions and targets [V, B, D], and those of a pair by definition
OBJECTIVES = {
    "simsiam": (losses.NegativeCosineSimilarity().pair_losses, of_simsiam),
    "simclr": (lambda x, y: losses.NTXentLoss(0.2).pair_losses(x), of_simclr),
    "vicreg": (lambda x, y: losses.VICRegLoss().pair_losses(x), of_vicreg),
    "barlow": (lambda x, y: losses.BarlowTwinsLoss().pair_losses(x), of_barlow),
}
CANDIDATES = {
    "all": [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
    "anchor": [(0, 1), (0, 2), (0, 3)],
    "even_odd": [(0, 1), (0, 3), (1, 2), (2, 3)],
}


def make_embeddings(device, seed=0):
    """Predictions and targets ``[V, B, D]`` of images whose views are alike, in float64."""
    torch.manual_seed(seed)
    images = torch.randn(BATCH, DIM, dtype=torch.float64)
    x = images + torch.randn(VIEWS, BATCH, DIM, dtype=torch.float64)
    y = x + 0.3 * torch.randn_like(x)
    return x.float().to(device), y.float().to(device)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_choice_is_the_published_one(name, candidates, device):
    pair_losses, of_pair = OBJECTIVES[name]
    x, y = make_embeddings(device)
    index, score = HardViewSelector(candidates)(pair_losses(x, y))
    exact = x.cpu().double(), y.cpu().double()
    seen = set()
    for b in range(BATCH):
        scores = {pair: of_pair(*exact, *pair, b).item() for pair in CANDIDATES[candidates]}
        hardest = max(scores, key=scores.__getitem__)
        assert tuple(index[:, b].tolist()) == hardest, (b, scores)
        assert_close(score[b].item(), scores[hardest], rtol=1e-5, atol=1e-5)
        seen.add(hardest)
    assert len(seen) == len(CANDIDATES[candidates])  # the case has something to choose


def test_byol_scores_online_predictions_against_the_teacher(device):
    x, y = make_embeddings(device)
    y = y.flip(2)  # unrelated to x
    losses_of_pairs = losses.NegativeCosineSimilarity().pair_losses(x, y)
    index, _ = HardViewSelector()(losses_of_pairs)
    exact = x.cpu().double(), y.cpu().double()
    for b in range(BATCH):
        scores = {pair: of_simsiam(*exact, *pair, b).item() for pair in CANDIDATES["all"]}
        assert tuple(index[:, b].tolist()) == max(scores, key=scores.__getitem__)
    assert torch.equal(functional.select_hard_cosine_pairs(x, y)[0], index)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_permuting_views_permutes_the_choice(name, device):
    pair_losses, _ = OBJECTIVES[name]
    x, y = make_embeddings(device)
    order = torch.tensor([2, 0, 3, 1], device=device)
    index, score = HardViewSelector()(pair_losses(x, y))
    permuted, same = HardViewSelector()(pair_losses(x[order], y[order]))
    assert torch.equal(order[permuted].sort(0).values, index)
    assert_close(same, score)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_in_a_training_loop(name, device):
    """What the class's docstring shows; the pair's images are gathered and are harder."""
    pair_losses, _ = OBJECTIVES[name]
    model = torch.nn.Linear(5, DIM, device=device)
    views = torch.randn(VIEWS, BATCH, 5, device=device)
    with torch.no_grad():
        embeddings = model(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        index, score = HardViewSelector()(pair_losses(embeddings, embeddings))
    chosen = functional.gather_views(views, index)
    for b in range(BATCH):
        assert torch.equal(chosen[0, b], views[index[0, b], b])
        assert torch.equal(chosen[1, b], views[index[1, b], b])
    all_scores = pair_losses(embeddings, embeddings)
    assert score.mean() > all_scores[0, 1].mean()
    loss = pair_losses(model(chosen), model(chosen))[0, 1].mean()
    loss.backward()
    assert model.weight.grad.isfinite().all()


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("chunks", [1, 4, 7])
def test_barlow_chunks_share_the_loss_of_their_images(chunks, variant, device):
    """As published: one loss per chunk and pair, here by the loss itself, over every chunk."""
    loss = losses.BarlowTwinsLoss(0.05, variant=variant)
    x, _ = make_embeddings(device)
    found = loss.pair_losses(x, chunks=chunks)
    index, _ = HardViewSelector()(found)
    for part in torch.arange(BATCH).tensor_split(chunks):
        scores = {(i, j): loss(x[i, part], x[j, part]) for i, j in CANDIDATES["all"]}
        for (i, j), value in scores.items():
            assert_close(found[i, j, part], value.expand(len(part)), rtol=1e-4, atol=1e-4)
            assert_close(found[j, i, part], value.expand(len(part)), rtol=1e-4, atol=1e-4)
        hardest = max(scores, key=scores.__getitem__)
        assert index[:, part].T.tolist() == [list(hardest)] * len(part)


@pytest.mark.parametrize("chunks", [0, -1, BATCH // 2 + 1])
def test_barlow_chunks_need_two_images(chunks):
    x, _ = make_embeddings("cpu")
    with pytest.raises(ValueError, match=rf"chunks must be at least 1 .* got {chunks} for views"):
        losses.BarlowTwinsLoss().pair_losses(x, chunks=chunks)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("strategy", ["argmax", "softmax"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_two_views_return_the_pair(candidates, strategy, fraction, device):
    pair_losses = torch.randn(2, 2, 9, device=device)
    index, score = HardViewSelector(candidates, strategy, fraction=fraction)(pair_losses)
    assert (index[0] == 0).all() and (index[1] == 1).all()
    assert_close(score, (pair_losses[0, 1] + pair_losses[1, 0]) / 2)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("strategy", ["argmax", "softmax"])
def test_nan_never_wins(candidates, strategy, device):
    pair_losses = torch.randn(4, 4, 200, device=device)
    pair_losses[torch.rand_like(pair_losses) < 0.3] = NAN
    pair_losses[..., 0] = NAN
    index, score = HardViewSelector(candidates, strategy)(pair_losses)
    number = ((pair_losses + pair_losses.transpose(0, 1)) / 2).isfinite()
    pairs = torch.tensor(CANDIDATES[candidates], device=device).T
    has_one = number[pairs[0], pairs[1]].any(0)
    assert 0 < has_one.sum() < 200
    assert torch.equal(score.isfinite(), has_one)
    assert index[:, ~has_one].T.tolist() == [[0, 1]] * int((~has_one).sum())


def test_ties_go_to_the_first_candidate(device):
    pair_losses = torch.zeros(4, 4, 6, device=device)
    pair_losses[2, 3, 3:] = pair_losses[1, 2, 3:] = 1.0
    for candidates, first in (("all", (1, 2)), ("anchor", (0, 1)), ("even_odd", (1, 2))):
        index, _ = HardViewSelector(candidates)(pair_losses)
        assert index.T.tolist() == [[0, 1]] * 3 + [list(first)] * 3


def frequencies(index, pairs):
    number = torch.stack([((index[0] == i) & (index[1] == j)).sum() for i, j in pairs])
    assert number.sum() == index.shape[1]
    return number / index.shape[1]


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_softmax_draws_with_its_probabilities(candidates, device):
    pairs, count, temperature = CANDIDATES[candidates], 20000, 0.7
    pair_losses = torch.randn(4, 4, 1, device=device).expand(4, 4, count)
    scores = (pair_losses + pair_losses.transpose(0, 1))[..., 0] / 2
    probability = torch.stack([scores[i, j] for i, j in pairs]).div(temperature).softmax(0)
    selector = HardViewSelector(candidates, "softmax", temperature=temperature)
    index, score = selector(pair_losses)
    error = 5 * (probability * (1 - probability) / count).sqrt()
    assert ((frequencies(index, pairs) - probability).abs() <= error).all()
    assert torch.equal(score, scores[index[0], index[1]])


def test_a_cold_softmax_is_the_argmax(device):
    pair_losses = torch.randn(4, 4, 100, device=device)
    want = HardViewSelector()(pair_losses)
    got = HardViewSelector(strategy="softmax", temperature=1e-6)(pair_losses)
    assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.999, 1.0])
def test_fraction_takes_the_hardest_images(fraction, device):
    count = 2000
    pair_losses = torch.randn(4, 4, count, device=device)
    hardest, highest = HardViewSelector()(pair_losses)
    index, score = HardViewSelector(fraction=fraction)(pair_losses)
    order = highest.argsort(descending=True)
    hard, easy = order[: round(fraction * count)], order[round(fraction * count) :]
    assert torch.equal(index[:, hard], hardest[:, hard])
    assert torch.equal(score[hard], highest[hard])
    scores = (pair_losses + pair_losses.transpose(0, 1)) / 2
    image = torch.arange(count, device=device)
    assert_close(score, scores[index[0], index[1], image])
    if len(easy) > 100:  # their pairs are drawn evenly
        spread = frequencies(index[:, easy], CANDIDATES["all"]) - 1 / 6
        assert (spread.abs() <= 5 * math.sqrt(5 / 36 / len(easy))).all()


def test_fraction_ranks_nan_last_and_ties_by_image(device):
    pair_losses = torch.zeros(2, 2, 6, device=device)
    pair_losses[:, :, :2] = NAN
    selector = HardViewSelector("all", fraction=0.5)
    three = torch.randn(3, 3, 6, device=device)
    three[:, :, :2] = NAN
    three[:, :, 2:] = 0.0
    three[0, 2, 2:] = three[1, 2, 2:] = 1.0
    for seed in range(10):
        torch.manual_seed(seed)
        index, _ = selector(three)
        assert index[:, 2:5].T.tolist() == [[0, 2]] * 3
    _, score = selector(pair_losses)
    assert score.isnan().tolist() == [True] * 2 + [False] * 4


@pytest.mark.parametrize(
    "options",
    [{"strategy": "softmax"}, {"fraction": 0.3}, {"strategy": "softmax", "fraction": 0.5}],
)
def test_random_choices_repeat_with_the_seed(options, device):
    pair_losses = torch.randn(4, 4, 300, device=device)

    def draw(seed):
        torch.manual_seed(seed)
        return HardViewSelector(**options)(pair_losses)[0]

    def draw_from_generator(seed):
        generator = torch.Generator(device).manual_seed(seed)
        selector = HardViewSelector(**options, generator=generator)
        return torch.cat([selector(pair_losses)[0] for _ in range(2)])

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    first = draw_from_generator(1)
    torch.manual_seed(7)  # does not matter to it
    assert torch.equal(first, draw_from_generator(1))
    assert not torch.equal(first[:2], first[2:])


def test_argmax_draws_nothing(device):
    pair_losses = torch.randn(4, 4, 30, device=device)
    torch.manual_seed(3)
    want = torch.rand(1, device=device)
    torch.manual_seed(3)
    HardViewSelector()(pair_losses)
    assert torch.equal(torch.rand(1, device=device), want)


@pytest.mark.parametrize("strategy", ["argmax", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes_and_no_gradient(dtype, strategy, device):
    pair_losses = torch.randn(3, 3, 8, device=device, dtype=dtype, requires_grad=True)
    index, score = HardViewSelector(strategy=strategy, fraction=0.5)(pair_losses)
    assert index.dtype == torch.int64 and score.dtype == torch.float32
    assert not score.requires_grad


def test_a_batch_may_be_split(device):
    pair_losses = torch.randn(4, 4, 40, device=device)
    whole = HardViewSelector()(pair_losses)
    halves = [HardViewSelector()(half) for half in pair_losses.chunk(2, 2)]
    assert torch.equal(torch.cat([index for index, _ in halves], 1), whole[0])
    assert torch.equal(torch.cat([score for _, score in halves]), whole[1])


# Those whose pair losses are the same whether or not the batch is split among processes.
SPLIT = {
    "simsiam": losses.NegativeCosineSimilarity,
    "simclr": lambda: losses.NTXentLoss(0.2, gather_distributed=True),
    "vicreg": lambda: losses.VICRegLoss(gather_distributed=True),
    "barlow": lambda: losses.BarlowTwinsLoss(gather_distributed=True),
}


def select_on_rank(rank, world_size, directory):
    torch.set_num_threads(1)
    method = f"file://{directory}/gloo"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world_size)
    x, _ = make_embeddings("cpu")
    share = BATCH // world_size
    mine = x[:, rank * share : (rank + 1) * share]
    found = {name: HardViewSelector()(make().pair_losses(mine)) for name, make in SPLIT.items()}
    dist.destroy_process_group()
    torch.save(found, f"{directory}/{rank}.pt")


@pytest.mark.distributed
def test_processes_choose_as_one(tmp_path):
    world_size = 2
    mp.spawn(select_on_rank, (world_size, str(tmp_path)), nprocs=world_size)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    x, _ = make_embeddings("cpu")
    x = x[:, : BATCH // world_size * world_size]
    for name in SPLIT:
        index, score = HardViewSelector()(OBJECTIVES[name][0](x, x))
        assert torch.equal(torch.cat([share[name][0] for share in shares], 1), index)
        assert_close(torch.cat([share[name][1] for share in shares]), score, rtol=1e-5, atol=1e-5)


def test_no_images(device):
    selector = HardViewSelector(strategy="softmax", fraction=0.5)
    index, score = selector(torch.ones(3, 3, 0, device=device))
    assert index.shape == (2, 0) and score.shape == (0,)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("options", [{}, {"strategy": "softmax", "fraction": 0.5}])
def test_compiles_whole(options, candidates, device):
    selector = HardViewSelector(candidates, **options)
    pair_losses = torch.randn(4, 4, 50, device=device)
    torch.manual_seed(0)
    want = selector(pair_losses)
    torch.manual_seed(0)
    got = torch.compile(selector, fullgraph=True, backend="aot_eager")(pair_losses)
    assert torch.equal(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"candidates": "some"},
            "candidates must be 'all', 'anchor' or 'even_odd', got 'some'",
        ),
        ({"strategy": "min"}, "strategy must be 'argmax' or 'softmax', got 'min'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": NAN}, "temperature must be positive, got nan"),
        ({"temperature": 0.1}, "temperature is of strategy 'softmax', got 0.1 with 'argmax'"),
        ({"fraction": 1.5}, "fraction must be from 0 to 1, got 1.5"),
        ({"fraction": -0.1}, "fraction must be from 0 to 1, got -0.1"),
        ({"fraction": NAN}, "fraction must be from 0 to 1, got nan"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        HardViewSelector(**options)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 5), "pair_losses must have 2 to 4096 views to choose a pair from"),
        ((3, 4, 5), r"pair_losses must have shape \[V, V, B\], got \[3, 4, 5\]"),
        ((3, 3), r"pair_losses must have shape \[V, V, B\], got \[3, 3\]"),
    ],
)
def test_rejects_shapes(shape, message, candidates):
    with pytest.raises(ValueError, match=message):
        HardViewSelector(candidates)(torch.ones(shape))
