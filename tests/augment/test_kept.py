"""Images that are decoded once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.augment.kept import KeptImages, keep_decoded

RECIPE = AugmentationRecipe(size=16)


class Photographs:
    """Large images that are made when they are asked for."""

    stacked = None

    def __init__(self, count=6):
        self.sizes = np.array([[80 + i, 100] for i in range(count)], np.int32)
        self.labels = {"class": np.arange(count)}
        self.decoded = []

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        self.decoded.append(index)
        generator = torch.Generator().manual_seed(index)
        height, width = self.sizes[index].tolist()
        return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


BYTES = 3 * 100 * sum(range(80, 86))


def views(source, keep_gb):
    """Of two epochs."""
    policy = ComposedPolicy(RECIPE)
    loader = build_loader(source, policy, batch_size=3, keep_gb=keep_gb)
    return torch.cat([batch.images for _ in range(2) for batch in loader], dim=1)


def test_images_are_decoded_once_if_all_fit():
    kept, each_time = Photographs(), Photographs()
    assert views(kept, BYTES / 1e9).equal(views(each_time, 0))
    assert sorted(kept.decoded) == list(range(6))
    assert sorted(each_time.decoded) == sorted(2 * list(range(6)))


def test_none_is_kept_if_one_does_not_fit():
    source = Photographs()
    views(source, (BYTES - 1) / 1e9)
    assert len(source.decoded) == 12


def test_threads_share_what_is_kept():
    source = KeptImages(Photographs(), BYTES)
    expected = [source.image(index) for index in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.image, 20 * list(range(6))))
    assert all(a is b for a, b in zip(found, 20 * expected, strict=True))
    assert len(source.source.decoded) == 6


def test_loaders_of_one_source_share_what_is_kept():
    source = Photographs()
    policy = ComposedPolicy(RECIPE)
    loaders = [build_loader(source, policy, batch_size=3, keep_gb=BYTES / 1e9) for _ in range(2)]
    for loader in loaders:
        list(loader)
    assert sorted(source.decoded) == list(range(6))
    others = keep_decoded(Photographs(), BYTES / 1e9)
    assert others is not keep_decoded(source, BYTES / 1e9)


def test_images_in_memory_and_a_budget_of_nothing_stay_as_they_are():
    source = Photographs()
    assert keep_decoded(source, 0) is source
    source.stacked = torch.zeros(6, 3, 80, 100, dtype=torch.uint8)
    assert keep_decoded(source, 1) is source


@pytest.mark.parametrize("keep_gb", [-1.0, float("nan")])
def test_budget_out_of_range(keep_gb):
    with pytest.raises(ValueError, match="keep_gb must be at least 0, got"):
        views(Photographs(), keep_gb)
