"""Batches reach a GPU in order, one ahead, and no memory of theirs is let go too early.

Streams are stood in for by what notes the calls.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from mast_ext.augment import AugmentationRecipe, build_loader, make_policy
from mast_ext.augment.transfer import CopyStream, copied_ahead

RECIPE = AugmentationRecipe(
    size=16,
    crop_scale=(0.5, 1.0),
    blur=0.5,
    solarize=0.3,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.1),
)
DEVICE = torch.device("meta")  # has no pixels, but shapes and dtypes


class Images:
    """Random images, of which one may be broken."""

    stacked = None

    def __init__(self, count=24, broken=None):
        generator = torch.Generator().manual_seed(0)
        shape = (count, 3, 20, 20)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._broken = broken
        self.sizes = np.full((count, 2), 20, np.int32)
        self.labels = {"parity": np.arange(count) % 2}

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        if index == self._broken:
            raise ValueError(f"cannot decode image {index}")
        return self._images[index]


def build(source=None, policy=None, **options):
    policy = policy or make_policy("composed", RECIPE, with_center=True)
    return build_loader(source or Images(), policy, batch_size=8, shuffle=False, **options)


class Batch:
    """Notes what is done with it."""

    def __init__(self, number, calls, name="batch"):
        self.number, self.calls, self.name = number, calls, name

    def pin_memory(self):
        self.calls.append(("pin", self.number))
        return Batch(self.number, self.calls, "pinned")

    def to(self, device, non_blocking):
        self.calls.append(("copy", self.number, self.name, device, non_blocking))
        return Batch(self.number, self.calls, "copy")

    def record_stream(self, stream):
        self.calls.append(("record", self.number, self.name, stream.name))


class Stream:
    """Notes what is done with it."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def record_event(self):
        self.calls.append(("event", self.name))
        return len([call for call in self.calls if call[0] == "event"])

    def wait_event(self, event):
        self.calls.append(("wait", self.name, event))


@pytest.fixture
def calls(monkeypatch):
    """Calls of streams and batches, in order."""
    calls, inside = [], []

    @contextmanager
    def within(stream):
        calls.append(("in", stream.name))
        inside.append(stream)
        yield
        inside.pop()
        calls.append(("out", stream.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own", calls))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training", calls))
    return calls


def test_each_copy_starts_before_the_step_of_the_batch_before(calls):
    stream = CopyStream(DEVICE)
    for batch in copied_ahead((Batch(n, calls) for n in range(3)), stream):
        assert batch.name == "copy"
        calls.append(("step", batch.number))

    def started(number):
        copy = ("copy", number, "pinned", DEVICE, True)
        return [("pin", number), ("in", "own"), copy, ("out", "own"), ("event", "own")]

    def arrived(number):
        wait = ("wait", "training", number + 1)
        return [wait, ("record", number, "copy", "training"), ("step", number)]

    assert calls == [
        *(*started(0), *started(1)),
        *(*arrived(0), *started(2)),
        *(*arrived(1), *arrived(2)),
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_few_batches(calls, count):
    found = list(copied_ahead((Batch(n, calls) for n in range(count)), CopyStream(DEVICE)))
    assert [batch.number for batch in found] == list(range(count))


def test_an_error_comes_behind_the_batches_before_it(calls):
    def batches():
        yield Batch(0, calls)
        yield Batch(1, calls)
        raise ValueError("cannot decode")

    seen = []
    with pytest.raises(ValueError, match="cannot decode"):
        for batch in copied_ahead(batches(), CopyStream(DEVICE)):
            seen.append(batch.number)
    assert seen == [0, 1]


@pytest.fixture
def page_locked(monkeypatch):
    """Addresses of the memory that was asked for as page-locked, as a GPU's driver would give."""
    addresses, kept, empty = set(), [], torch.empty

    def lock(tensor):
        kept.append(tensor)  # so that no other memory gets the address
        addresses.add(tensor.data_ptr())
        return tensor

    def empty_or_locked(*args, pin_memory=False, **kwargs):
        made = empty(*args, **kwargs)
        return lock(made) if pin_memory else made

    def pin(tensor):
        return tensor if tensor.data_ptr() in addresses else lock(tensor.clone())

    monkeypatch.setattr(torch, "empty", empty_or_locked)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    return addresses


@pytest.fixture
def sent(monkeypatch, calls, page_locked):
    """Tensors that were copied to the device."""
    sent, to = [], Tensor.to

    def watched(tensor, *args, **kwargs):
        if args == (DEVICE,) and tensor.device.type == "cpu":
            assert kwargs == {"non_blocking": True}
            assert tensor.data_ptr() in page_locked
            sent.append(tensor)
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", watched)
    return sent


@pytest.mark.parametrize("workers", [0, 2])
def test_levels_go_over_the_bus_from_page_locked_memory(sent, workers):
    policy = make_policy("multi_crop", RECIPE, local_views=2, local_size=8)
    batches = list(build(policy=policy, workers=workers).on(DEVICE))
    plain = list(build(policy=policy))
    assert len(batches) == len(plain) == 3
    for batch, want in zip(batches, plain, strict=True):
        for name in ("images", "local_images", "parameters", "index"):
            found, truth = getattr(batch, name), getattr(want, name)
            assert (found.device, found.dtype) == (DEVICE, truth.dtype)
            assert found.shape == truth.shape
        assert batch.labels["parity"].device == DEVICE
    pixels = [tensor for tensor in sent if tensor.dtype == torch.uint8]
    whole = sum(b.images.nbytes + b.local_images.nbytes for b in plain)
    assert 4 * sum(tensor.nbytes for tensor in pixels) == whole
    assert len(pixels) == 2 * len(plain)
    assert len(sent) == len(plain) * (2 + 3)  # and parameters, indices, labels


def test_all_epochs_have_one_stream(sent, monkeypatch):
    made, create = [], torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or create(device))
    loader = build()
    for _ in range(2):
        assert len(list(loader.on(DEVICE))) == 3
    assert made == [DEVICE]


def test_pixels_normalized_late_are_those_of_the_renderer(page_locked):
    loader = build(policy=make_policy("multi_crop", RECIPE, local_views=2, local_size=8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
    levels = list(loader._batches(for_gpu=True))
    for batch, want in zip(levels, build(policy=loader.policy), strict=True):
        assert batch.images.dtype == batch.local_images.dtype == torch.uint8
        found = batch.normalized(mean, std)
        torch.testing.assert_close(found.images, want.images, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.local_images, want.local_images, rtol=1e-6, atol=1e-6)
        assert found.normalized(mean, std).images is found.images  # pixels stay as they are


def test_on_the_cpu_batches_are_those_of_the_loader():
    for batch, want in zip(build().on("cpu"), build(), strict=True):
        assert torch.equal(batch.images, want.images)


def test_a_broken_image_ends_training_at_its_batch(sent):
    batches = build(Images(broken=17)).on(DEVICE)
    assert [int(next(batches).index.numel()) for _ in range(2)] == [8, 8]
    with pytest.raises(ValueError, match="cannot decode image 17"):
        next(batches)


def test_leaving_early_ends_the_threads(sent, assert_closing_ends_threads):
    assert_closing_ends_threads(lambda: build(workers=2).on(DEVICE))
