"""What the tests of renderers and loaders have in common."""

import threading

import pytest
import torch
import torchvision.transforms.functional as functional

from mast_ext.augment.parameters import COLUMN, NEUTRAL


@pytest.fixture(scope="session")
def smooth_images():
    """Makes random images with structure at several scales, as photographs have."""

    def make(count, height, width, seed=0):
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(count, 3, height, width)
        for scale in (1, 3, 8):
            size = (height // scale + 2, width // scale + 2)
            noise = torch.rand(count, 3, *size, generator=generator)
            total += functional.resize(noise, [height, width], antialias=True)
        return (total / total.amax((1, 2, 3), keepdim=True) * 255).to(torch.uint8)

    return make


@pytest.fixture(scope="session")
def row():
    """Makes a row of parameters that differs from the neutral one in some columns."""

    def make(**changes):
        values = torch.tensor(NEUTRAL)
        for name, value in changes.items():
            values[COLUMN[name]] = value
        return values

    return make


@pytest.fixture(scope="session")
def assert_closing_ends_threads():
    """Checks that an iteration that starts threads ends them when it is left early."""

    def check(iterate):
        before = set(threading.enumerate())
        batches = iterate()
        next(batches)
        started = set(threading.enumerate()) - before
        assert started
        batches.close()
        for thread in started:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in started)

    return check
