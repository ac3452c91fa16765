"""RankMe and LiDAR: their definitions in float64, and what they say of embeddings known by hand."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mast_ext.train.evaluation.ranks import lidar, rankme


def entropy_rank(values):
    p = values / values.sum()
    return math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0))


def lidar_as_written(embeddings, delta):
    """The matrices as the paper writes them, one outer product after the other."""
    views, images, width = embeddings.shape
    means = embeddings.mean(0)
    between = sum(torch.outer(m, m) for m in means - means.mean(0)) / images
    within = sum(torch.outer(e, e) for view in embeddings - means for e in view)
    within = within / (views * images) + delta * torch.eye(width, dtype=embeddings.dtype)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    return entropy_rank(torch.linalg.eigvalsh(root @ between @ root).clamp(min=0))


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (1, 5), (5, 1)])
def test_rankme_is_its_definition(shape):
    x = torch.randn(shape, dtype=torch.float64)
    assert rankme(x) == pytest.approx(entropy_rank(torch.linalg.svdvals(x)), rel=1e-9)
    assert rankme(x.T.contiguous().T) == rankme(x)
    assert rankme(x.float()) == pytest.approx(rankme(x), rel=1e-5)
    assert rankme(1e200 * x) == pytest.approx(rankme(x), rel=1e-9)
    assert rankme(1e-200 * x) == pytest.approx(rankme(x), rel=1e-9)


@pytest.mark.parametrize("shape", [(4, 20, 7), (2, 5, 24), (3, 6, 18), (2, 2, 3)])
@pytest.mark.parametrize("delta", [1e-4, 0.3])
def test_lidar_is_its_definition(shape, delta):
    x = torch.randn(shape, dtype=torch.float64) + 3 * torch.randn(shape[1:], dtype=torch.float64)
    assert lidar(x, delta=delta) == pytest.approx(lidar_as_written(x, delta), rel=1e-6)


@pytest.mark.parametrize("shape", [(20_000, 16), (16, 20_000)])
def test_rankme_copies_a_part_of_the_embeddings_at_a_time(shape):
    x = torch.randn(shape)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                t.untyped_storage().nbytes()
                for t in tree_leaves(result)
                if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata != x_storage
            )
            return result

    x_storage = x.untyped_storage()._cdata
    with Watch():
        rankme(x)
    assert 0 < max(sizes) < x.untyped_storage().nbytes() / 4


def test_orthogonal_images_count_one_each():
    assert rankme(torch.eye(6)) == pytest.approx(6)
    # Their means lie in a space of one dimension less, in which no direction stands out.
    assert lidar(torch.stack((torch.eye(6), torch.eye(6)))) == pytest.approx(5)


def test_collapse_to_a_line_is_one_to_a_point_is_none():
    line = torch.randn(40, 1) @ torch.randn(1, 16)
    assert rankme(line) == pytest.approx(1, abs=1e-4)
    assert lidar(torch.stack((line, line))) == pytest.approx(1, abs=1e-4)
    point = torch.randn(16).expand(2, 40, 16)
    assert rankme(point[0]) == pytest.approx(1, abs=1e-4)
    assert lidar(point) == 0
    assert rankme(torch.zeros(4, 3)) == 0


def test_lidar_does_not_count_what_views_change():
    """Eight directions tell images apart; in the other eight views differ just as much."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    views = images.repeat(4, 1, 1)
    views[..., 8:] = torch.randn(4, 500, 8, generator=generator, dtype=torch.float64)
    views[..., :8] += 0.01 * torch.randn(4, 500, 8, generator=generator, dtype=torch.float64)
    assert rankme(views.flatten(0, 1)) > 15.5
    assert lidar(views) == pytest.approx(8, abs=0.1)


def test_large_embeddings_whose_views_agree():
    """Their differences vanish beside the means in float64's square, and ``delta`` holds still."""
    x = 1e7 * torch.randn(2, 10, 30, dtype=torch.float64)
    x[1] = x[0]
    assert lidar(x) == pytest.approx(lidar(x / 1e7), rel=1e-6)


def test_what_is_not_finite_is_nan():
    for value in (math.nan, math.inf):
        x = torch.randn(3, 4, 5)
        x[1, 2, 3] = value
        assert math.isnan(rankme(x[1]))
        assert math.isnan(lidar(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    x = torch.randn(3, 30, 8).to(dtype)
    assert rankme(x[0]) == rankme(x[0].double())
    assert lidar(x) == lidar(x.double())


def test_refusals():
    for shape in ((3,), (2, 3, 4), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match=r"^embeddings must have shape \[N, D\], not empty"):
            rankme(torch.zeros(shape))
    for shape in ((3, 4), (1, 3, 4), (2, 0, 4)):
        with pytest.raises(ValueError, match=r"^embeddings must have shape \[V, N, D\] with at"):
            lidar(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"embeddings must be floating point, got torch.int64"):
        rankme(torch.ones(3, 4, dtype=torch.int64))
    for delta in (0, -1, math.nan):
        with pytest.raises(ValueError, match=r"delta must be positive and finite, got"):
            lidar(torch.ones(2, 3, 4), delta=delta)
