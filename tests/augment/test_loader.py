"""The loader covers the data, in a keyed order, and resumes with the same bits."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mast_ext.augment import (
    AugmentationRecipe,
    Sharing,
    ViewBatch,
    build_loader,
    composed_views,
    evaluation_images,
    make_policy,
)

RECIPE = AugmentationRecipe(size=16)


class Images:
    """A source of random images; `stacked` only if asked for."""

    def __init__(self, count=50, size=16, stacked=True, broken=()):
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(
            0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator
        )
        self._broken = broken
        self.stacked = self._images if stacked else None
        self.sizes = np.full((count, 2), size, np.int32)
        self.labels = {"parity": np.arange(count) % 2, "third": np.arange(count) % 3}

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        if index in self._broken:
            raise ValueError(f"cannot decode image photos/{index}.jpg: truncated")
        return self._images[index]


SHARED = {"shared": {"hue": Sharing(), "crop": Sharing()}}


def build(source=None, policy="shared", batch_size=8, **options):
    made = make_policy(policy, RECIPE, **(SHARED if policy == "shared" else {}))
    return build_loader(source or Images(), made, batch_size=batch_size, **options)


def assert_same(batch, other):
    for name in ("images", "parameters", "index"):
        assert torch.equal(getattr(batch, name), getattr(other, name)), name
    assert (batch.changed is None) == (other.changed is None)
    assert batch.changed is None or torch.equal(batch.changed, other.changed)
    assert batch.labels.keys() == other.labels.keys()
    assert all(torch.equal(batch.labels[name], other.labels[name]) for name in batch.labels)


def visited(loader):
    return torch.cat([batch.index for batch in loader]).tolist()


def test_batch_has_the_promised_form():
    batch = next(iter(build()))
    assert batch.images.shape == (2, 8, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.parameters.shape == (2, 8, 14)
    assert batch.changed.shape == (8, 2) and batch.changed.dtype == torch.bool
    assert batch.index.shape == (8,) and batch.index.dtype == torch.int64
    assert torch.equal(batch.labels["third"], batch.index % 3)
    assert batch.labels["third"].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "length", "last", "count"),
    [
        ({"drop_last": True}, 6, 8, 48),
        ({"drop_last": False}, 7, 2, 50),
        ({"drop_last": False, "batch_size": 50}, 1, 50, 50),
        ({"drop_last": True, "batch_size": 25}, 2, 25, 50),
        ({"drop_last": False, "batch_size": 64}, 1, 50, 50),
        ({"drop_last": True, "world_size": 3}, 2, 8, 16),
        ({"drop_last": False, "world_size": 3}, 2, 8, 16),
        ({"drop_last": False, "world_size": 7, "rank": 6}, 1, 7, 7),
    ],
)
def test_length(options, length, last, count):
    loader = build(**options)
    sizes = [len(batch.index) for batch in loader]
    assert len(loader) == len(sizes) == length
    assert sizes[-1] == last and sum(sizes) == count


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_are_disjoint_and_complete(world_size, shuffle):
    shares = [
        visited(build(rank=r, world_size=world_size, shuffle=shuffle, drop_last=False))
        for r in range(world_size)
    ]
    assert sorted(index for share in shares for index in share) == list(range(50))
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("world_size", "size"), [(2, 4), (4, 2), (8, 1)])
def test_ranks_batches_of_a_step_are_the_batch_of_one_process(world_size, size, drop_last):
    ranks = [
        build(rank=r, world_size=world_size, batch_size=size, drop_last=drop_last)
        for r in range(world_size)
    ]
    one = build(batch_size=8)
    for epoch in (0, 3):
        for loader in (one, *ranks):
            loader.set_epoch(epoch)
        for whole, *shares in zip(list(one), *map(list, ranks), strict=False):
            assert torch.equal(torch.cat([share.index for share in shares]), whole.index)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_split(parts):
    batch = next(iter(build()))
    pieces = batch.split(parts)
    assert [len(piece.index) for piece in pieces] == [8 // parts] * parts
    for name, axis in (("images", 1), ("parameters", 1), ("changed", 0), ("index", 0)):
        joined = torch.cat([getattr(piece, name) for piece in pieces], axis)
        assert torch.equal(joined, getattr(batch, name))
    joined = torch.cat([piece.labels["third"] for piece in pieces])
    assert torch.equal(joined, batch.labels["third"])


@pytest.mark.parametrize("parts", [0, 3, 16])
def test_split_into_unequal_parts_is_an_error(parts):
    with pytest.raises(ValueError, match=f"8 images does not divide into {parts} equal parts"):
        next(iter(build())).split(parts)


def test_order_is_keyed_by_seed_and_epoch():
    first = visited(build(drop_last=False))
    assert visited(build(drop_last=False)) == first
    assert visited(build(drop_last=False, seed=1)) != first
    later = build(drop_last=False)
    later.set_epoch(1)
    assert visited(later) != first
    assert visited(build(drop_last=False, shuffle=False)) == list(range(50))


def test_views_of_an_image_do_not_depend_on_batch_size_or_world_size():
    def views(**options):
        return {
            int(index): batch.images[:, i]
            for batch in build(drop_last=False, **options)
            for i, index in enumerate(batch.index)
        }

    whole = views(batch_size=50)
    for options in ({"batch_size": 7}, {"world_size": 2, "rank": 1}, {"shuffle": False}):
        for index, images in views(**options).items():
            assert torch.equal(images, whole[index])


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_the_same_batches(workers, stacked):
    source = Images(stacked=stacked)
    for batch, other in zip(build(), build(source, workers=workers), strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_resume_gives_the_same_bits(step, workers):
    loader = build(workers=workers)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(step):
        next(batches)
    state = loader.state_dict()
    assert state == {"seed": 0, "epoch": 2, "step": step}
    rest = list(batches)

    resumed = build(workers=workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # as a trainer does at the start of the resumed epoch
    remaining = list(resumed)
    assert len(remaining) == 6 - step
    for batch, other in zip(rest, remaining, strict=True):
        assert_same(batch, other)
    assert resumed.state_dict() == loader.state_dict() == {"seed": 0, "epoch": 3, "step": 0}
    for batch, other in zip(loader, resumed, strict=True):
        assert_same(batch, other)


def test_state_of_the_last_step_resumes_with_the_next_epoch():
    loader = build()
    batches = iter(loader)
    for _ in range(6):
        next(batches)
    state = loader.state_dict()  # before the loop saw the end of the epoch
    resumed = build()
    resumed.load_state_dict(state)
    assert list(resumed) == []
    fresh = build()
    fresh.set_epoch(1)
    assert visited(resumed) == visited(fresh)


def test_exhausting_an_epoch_moves_to_the_next_and_leaving_it_does_not():
    loader = build()
    first = visited(loader)
    assert loader.epoch == 1
    second = visited(loader)
    assert second != first
    loader.set_epoch(0)
    next(iter(loader))
    assert loader.epoch == 0
    assert visited(loader) == first


def test_set_epoch_during_an_epoch_is_kept_at_its_end():
    loader = build()
    batches = iter(loader)
    next(batches)
    loader.set_epoch(7)
    list(batches)
    assert loader.epoch == 7


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_error_names_the_file(workers):
    source = Images(stacked=False, broken=(13,))
    with pytest.raises(ValueError, match=r"photos/13\.jpg"):
        visited(build(source, workers=workers, drop_last=False))


@pytest.mark.parametrize("backend", ["torchvision", "dali"])
def test_an_image_of_another_size_than_the_source_says_is_refused(backend):
    source = Images(stacked=False)
    source.sizes[13] = 24, 16
    message = r"image 13 of the source must have shape \[C, 24, 16\], .*, got \[3, 16, 16\]"
    with pytest.raises(ValueError, match=message):
        visited(build(source, backend=backend, drop_last=False))


def test_leaving_early_ends_the_threads(assert_closing_ends_threads):
    assert_closing_ends_threads(lambda: iter(build(workers=2)))


def test_workers_leave_the_callers_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(build(workers=2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_batch_moves_to_a_device(device):
    batch = next(iter(build())).to(device)
    assert isinstance(batch, ViewBatch)
    tensors = (batch.images, batch.parameters, batch.changed, batch.index)
    assert {t.device.type for t in (*tensors, *batch.labels.values())} == {
        torch.device(device).type
    }


@pytest.mark.parametrize("stacked", [True, False])
def test_evaluation_images_are_all_images_in_order(stacked):
    source = Images(stacked=stacked)
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    parts = list(evaluation_images(source, 16, **levels, batch_size=20))
    assert [len(index) for _, index in parts] == [20, 20, 10]
    assert torch.cat([index for _, index in parts]).tolist() == list(range(50))
    images = torch.cat([images for images, _ in parts])
    assert torch.equal(images.round(), torch.stack([source.image(i) for i in range(50)]).float())


REFUSED = [
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"batch_size": 2.0}, "batch_size must be an integer"),
    ({"workers": -1}, "workers must be at least 0"),
    ({"rank": 2, "world_size": 2}, "rank must be below world_size 2, got 2"),
    ({"backend": "pil"}, "backend must be one of auto, torchvision, dali, got 'pil'"),
    ({"backend": "torchvision", "photometric": "fused"}, "on the CPU with exact photometry"),
    ({"backend": "torchvision", "device": "gpu"}, "on the CPU with exact photometry"),
    ({"batch_size": 51}, "50 images are too few for one batch: batch_size 51"),
    ({"world_size": 51, "drop_last": False}, "50 images are too few"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_option_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build(**options)


BAD_STATES = [
    ({"seed": 0, "epoch": 1}, "lacks step"),
    ({"seed": 1, "epoch": 0, "step": 0}, "has seed 1, this loader 0"),
    ({"seed": 0, "epoch": 0, "step": 7}, r"step in \[0, 6\]"),
    ({"seed": 0, "epoch": -1, "step": 0}, "epoch of at least 0"),
]


@pytest.mark.parametrize(("state", "message"), BAD_STATES)
def test_bad_state_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        build().load_state_dict(state)


def test_workers_leave_the_training_thread_its_cores():
    """In a fresh process, where no thread has yet asked how many it may use."""
    program = (
        "from threading import Thread\n"
        "from mast_ext.augment import AugmentationRecipe, build_loader, make_policy\n"
        "from mast_ext.data import open_source\n"
        "source = open_source('shapes', 'train', max_images=8)\n"
        "policy = make_policy('composed', AugmentationRecipe(), views=2)\n"
        "import torch\n"
        "for _ in build_loader(source, policy, batch_size=4, workers=2):\n"
        "    torch.ones(9, requires_grad=True).sum().backward()\n"
        "new = []\n"
        "thread = Thread(target=lambda: new.append(torch.get_num_threads()))\n"
        "thread.start(), thread.join()\n"
        "print(torch.get_num_threads(), *new)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(root)}
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "2 2"


def test_numbers_of_numpy_are_numbers():
    policy = make_policy("composed", RECIPE)
    loader = build_loader(Images(), policy, batch_size=10, seed=np.int64(3))
    plain = build_loader(Images(), policy, batch_size=10, seed=3)
    for epoch in np.arange(2):
        loader.set_epoch(epoch), plain.set_epoch(int(epoch))
        for mine, other in zip(loader, plain, strict=True):
            assert torch.equal(mine.images, other.images)
    with pytest.raises(TypeError, match="seed must be an integer, got None"):
        build_loader(Images(), policy, batch_size=10, seed=None)


def test_a_default_device_is_not_that_of_views():
    loader = build_loader(Images(), make_policy("composed", RECIPE), batch_size=10, workers=0)
    torch.set_default_device("meta")
    try:
        assert next(iter(loader)).images.device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_threads_that_do_not_start_leave_none_waiting(monkeypatch):
    started, threads = [], torch.get_num_threads()
    start = threading.Thread.start

    def third_fails(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(
            iter(build_loader(Images(), make_policy("composed", RECIPE), batch_size=10, workers=3))
        )
    for thread in started:
        thread.join(20)
    assert started and not any(thread.is_alive() for thread in started)
    assert torch.get_num_threads() == threads


def changed(**attributes):
    """A source of images one by one, 50 of 16 x 16, of which some attributes are others."""
    source = Images(stacked=False)
    for name, value in attributes.items():
        setattr(source, name, value)
    return source


IMAGES = Images().stacked
NO_SOURCES = {
    "a list": ([IMAGES[0]], TypeError, r"source must have sizes, .* list has no sizes, labels, st"),
    "a tensor": (IMAGES, TypeError, r"\(see ImageSource\), and Tensor has no sizes, labels, stack"),
    "images": (changed(image=IMAGES), TypeError, "source.image must be a method, got Tensor"),
    "list of sizes": (
        changed(sizes=[(16, 16)] * 50),
        TypeError,
        "source.sizes must be a NumPy array of integers, got list",
    ),
    "sizes of floats": (changed(sizes=np.ones((50, 2))), TypeError, "integers, got one of float64"),
    "one size": (
        changed(sizes=np.full(50, 16)),
        ValueError,
        r"source.sizes must have shape \[50, 2\], of 50 images, got \[50\]",
    ),
    "empty": (changed(sizes=np.zeros((50, 2), int)), ValueError, "source.sizes must be at least 1"),
    "array of labels": (
        changed(labels=np.arange(50)),
        TypeError,
        "source.labels must be a dict of arrays, empty without labels, got ndarray",
    ),
    "no labels": (changed(labels=None), TypeError, "source.labels must be a dict .* got NoneType"),
    "list of labels": (
        changed(labels={"class": [0] * 50}),
        TypeError,
        r"source.labels\['class'\] must be a NumPy array of integers, got list",
    ),
    "tensor of labels": (
        changed(labels={"class": torch.arange(50)}),
        TypeError,
        r"source.labels\['class'\] must be a NumPy array of integers, got Tensor",
    ),
    "names": (
        changed(labels={"class": np.array(["cat"] * 50)}),
        TypeError,
        r"source.labels\['class'\] must be a NumPy array of integers, got one of <U3",
    ),
    "few labels": (
        changed(labels={"class": np.arange(49)}),
        ValueError,
        r"source.labels\['class'\] must have shape \[50\], of 50 images, got \[49\]",
    ),
    "stacked array": (
        changed(stacked=IMAGES.numpy()),
        TypeError,
        "source.stacked must be a torch tensor or None, got ndarray",
    ),
    "stacked floats": (
        changed(stacked=IMAGES.float()),
        TypeError,
        "source.stacked must be uint8 or uint16, got torch.float32",
    ),
    "few stacked": (
        changed(stacked=IMAGES[:9]),
        ValueError,
        r"source.stacked must have shape \[50, C, H, W\], got \[9, 3, 16, 16\]",
    ),
    "other sizes": (
        changed(stacked=IMAGES[..., :12]),
        ValueError,
        r"source.sizes must be \[16, 12\] for every image, as source.stacked is",
    ),
    "elsewhere": (changed(stacked=IMAGES.to("meta")), ValueError, "be on the CPU, got meta"),
}


@pytest.mark.parametrize("fault", NO_SOURCES)
def test_what_is_no_source_is_refused_at_once(fault):
    source, error, message = NO_SOURCES[fault]
    policy = make_policy("composed", RECIPE)
    for use in (
        lambda: build_loader(source, policy, batch_size=8),
        lambda: next(evaluation_images(source, 16, RECIPE.mean, RECIPE.std, 8)),
        lambda: composed_views(source, np.arange(2), RECIPE, views=2, seed=0),
    ):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (lambda i: IMAGES[i].numpy(), TypeError, "must be a torch tensor, got ndarray"),
        (lambda i: [[0]], TypeError, "must be a torch tensor, got list"),
        (lambda i: IMAGES[i] / 255, TypeError, "must be uint8 or uint16, got torch.float32"),
        (lambda i: IMAGES[i].to("meta"), ValueError, "must be on the CPU, got meta"),
        (lambda i: IMAGES[i, 0], ValueError, r"must have shape \[C, 16, 16\], .* got \[16, 16\]"),
        (lambda i: IMAGES[i, :0], ValueError, r"must have shape .* got \[0, 16, 16\]"),
        (lambda i: IMAGES[i].movedim(0, 2), ValueError, r"must have shape .* got \[16, 16, 3\]"),
    ],
)
@pytest.mark.parametrize("keep_gb", [0, 1])
def test_an_image_that_is_none_is_named(image, error, message, keep_gb):
    loader = build(changed(image=image), shuffle=False, keep_gb=keep_gb)
    with pytest.raises(error, match=f"image 0 of the source {message}"):
        next(iter(loader))
