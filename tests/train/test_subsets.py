import numpy as np
import pytest
import torch

from mast_ext.data import open_source
from mast_ext.train.evaluation.subsets import Subset, labeled_share

LABELS = {"class": np.repeat([0, 1, 2, 5], [200, 100, 40, 3])}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_every_class_keeps_its_share_and_one_image_at_least(share):
    chosen = labeled_share(LABELS, share, 0)
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(LABELS["class"][chosen], minlength=6)
    expected = [max(1, round(share * count)) for count in (200, 100, 40, 3)]
    assert counts[[0, 1, 2, 5]].tolist() == expected


def test_a_seed_gives_the_same_images_and_another_one_others():
    chosen = labeled_share(LABELS, 0.1, 0)
    assert np.array_equal(chosen, labeled_share(LABELS, 0.1, 0))
    assert not np.array_equal(chosen, labeled_share(LABELS, 0.1, 1))
    assert set(chosen) <= set(labeled_share(LABELS, 0.3, 0))  # a smaller share is part of a larger
    assert np.array_equal(labeled_share(LABELS, 1.0, 0), np.arange(343))


def test_what_a_class_keeps_does_not_depend_on_the_others():
    alone = labeled_share({"class": LABELS["class"][:200]}, 0.1, 0)
    assert np.array_equal(alone, labeled_share(LABELS, 0.1, 0)[:20])


def test_several_factors_are_drawn_together():
    generator = np.random.default_rng(0)
    labels = {name: generator.integers(4, size=100) for name in ("shape", "hue")}
    chosen = labeled_share(labels, 0.25, 0)
    assert len(chosen) == len(set(chosen)) == 25 and (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(labeled_share(labels, 0.5, 0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS, "1% of the 343 training images are 3, fewer than the 4 classes"),
        ({"hue": np.arange(8).repeat(20)}, "are 2, fewer than the 8 classes of hue"),
    ],
)
def test_fewer_images_than_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        labeled_share(labels, 0.01, 0)


def test_a_subset_is_a_source():
    source = open_source("shapes", "train", size=16, max_images=20)
    part = Subset(source, np.array([3, 17, 4]))
    assert len(part) == 3 and part.sizes.tolist() == [[16, 16]] * 3
    for own, index in enumerate((3, 17, 4)):
        assert torch.equal(part.image(own), source.image(index))
        assert torch.equal(part.stacked[own], source.image(index))
        assert all(part.labels[name][own] == ids[index] for name, ids in source.labels.items())
