"""How many threads render."""

import dataclasses
import os

import pytest
import torch
from PIL import Image

from mast_ext.data import FolderSource, open_source
from mast_ext.train.loop.loader import rendering_threads, training_loader
from mast_ext.train.networks import build_networks


@pytest.fixture
def cores(monkeypatch):
    def arrange(count, processes=None):
        allowed = set(range(count))
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed, raising=False)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return arrange


@pytest.mark.parametrize(
    ("count", "processes", "threads"),
    [(16, None, 15), (16, 4, 3), (2, None, 1), (1, None, 1), (4, 8, 1)],
)
def test_a_process_renders_with_its_share_of_the_cores(cores, count, processes, threads):
    cores(count, processes)
    assert rendering_threads() == threads


@pytest.mark.parametrize(
    ("gpu", "workers", "threads"), [(True, None, 7), (True, 2, 2), (False, None, 0)]
)
def test_only_a_gpu_leaves_the_cores_to_rendering(cores, tiny, monkeypatch, gpu, workers, threads):
    cores(8)
    networks = build_networks(tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    data = dataclasses.replace(tiny.data, workers=workers)
    train = dataclasses.replace(tiny.train, accelerator="auto")
    config = dataclasses.replace(tiny, data=data, train=train)
    source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
    assert training_loader(config, networks, source)._renderer.workers == threads


def test_one_image_may_be_of_a_wrong_folder(tiny, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    source = FolderSource(tmp_path, "train")
    with pytest.raises(ValueError, match=r"has 1 training image, and two .* data.path is the righ"):
        training_loader(tiny, build_networks(tiny), source)
