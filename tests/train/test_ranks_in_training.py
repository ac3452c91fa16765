"""Ranks are measured while a run trains, of the same images, and leave no trace in it."""

import csv
import math
import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.profilers import PassThroughProfiler

from mast_ext.augment import composed_views
from mast_ext.data import open_source
from mast_ext.methods import METHODS, EquiModOptions
from mast_ext.train.config import TrainConfig
from mast_ext.train.evaluation.ranks import lidar, rankme
from mast_ext.train.launch import process_group
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.ranks import IMAGES, NAMES, VIEWS, EmbeddingRanks
from mast_ext.train.networks import build_networks

TRANSFORMER = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}


def configured(tiny, method, **train):
    config = replace(tiny, method=method, train=replace(tiny.train, logger="csv", **train))
    if method == "ibot":
        timm_args = {**TRANSFORMER, "dynamic_img_size": True}
        model = replace(config.model, name="vit_tiny_patch16_224", timm_args=timm_args)
        config = replace(config, model=model)
    return config


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def module_of(config):
    torch.manual_seed(0)
    return PretrainModule(
        build_networks(config), config.optimizer, batch_size=8, steps_per_epoch=3, total_steps=8
    ).train()


def ranks_of(config, batch_size=8):
    data = config.data
    source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
    return EmbeddingRanks(source, config.augment, batch_size=batch_size, seed=config.seed, every=2)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_logs_them_and_trains_as_without(tiny, train_tiny, tmp_path, method):
    config = configured(tiny, method)
    measured = train_tiny("measured", config=config, method=method)
    without = configured(tiny, method, rank_every=0)
    plain = train_tiny("plain", config=without, method=method)
    rows, others = rows_of(tmp_path / "measured"), rows_of(tmp_path / "plain")
    assert list(rows[0])[-4:] == list(NAMES)
    assert [row["step"] for row in rows if row[NAMES[0]] != "nan"] == ["1", "2", "4", "6", "8"]
    for row in rows:
        values = [float(row.pop(name)) for name in NAMES]
        assert all(map(math.isnan, values)) or all(1 <= value <= 24 for value in values)
    for row in (*rows, *others):
        del row["views_per_second"]
    assert rows == others
    weights = plain.state_dict()
    for name, value in measured.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_the_last_row_has_them_and_the_first_after_every_so_many_steps(tiny):
    ranks, calls = ranks_of(tiny), []
    ranks.measure, ranks.every = lambda module: calls.append(step) or {}, 100
    module = SimpleNamespace(trainer=SimpleNamespace(profiler=PassThroughProfiler()))
    for step in range(30, 400, 30):
        ranks.row(module, step, since=step - 30, last=step == 390)
    assert calls == [30, 120, 210, 300, 390]


@pytest.mark.parametrize("method", ["simclr", "simclr+equimod", "dino"])
def test_they_are_those_of_evaluation_mode(tiny, method):
    name, *equimod = method.split("+")
    options = EquiModOptions(1.0 if equimod else 0.0, (16, 16), 8)
    config = replace(configured(tiny, name), equimod=options)
    module, ranks = module_of(config), ranks_of(config)
    frozen = [m for m in module.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)][:1]
    frozen[0].eval()  # a part that does not train stays as it is
    found = ranks.measure(module)
    assert found == ranks.measure(module)
    assert not frozen[0].training and module.backbone.training and module.method.training

    indices = np.linspace(0, 23, 8).round().astype(np.int64)
    views = composed_views(ranks.source, indices, config.augment, views=VIEWS, seed=0)
    module.eval()
    with torch.no_grad():
        features = module.backbone(views.flatten(0, 1)).unflatten(0, (VIEWS, 8))
        embedding = module.method.embed(features)
    for part, values in (("backbone", features), ("embedding", embedding)):
        assert found[f"rankme/{part}"] == pytest.approx(rankme(values.flatten(0, 1)), rel=1e-3)
        assert found[f"lidar/{part}"] == pytest.approx(lidar(values), rel=1e-3)


def test_no_more_images_than_a_batch_and_evenly_spaced(tiny):
    source = open_source("shapes", "train", size=16, max_images=300)
    for batch_size, count in ((7, 7), (256, IMAGES)):
        ranks = EmbeddingRanks(source, tiny.augment, batch_size=batch_size, seed=0, every=1)
        steps = np.diff(ranks.indices)
        assert len(ranks.indices) == count and ranks.indices[[0, -1]].tolist() == [0, 299]
        assert steps.max() - steps.min() <= 1


def test_collapse_shows(tiny):
    """A head that says the same of all images."""
    module, ranks = module_of(configured(tiny, "vicreg")), ranks_of(tiny)
    before = ranks.measure(module)
    with torch.no_grad():
        module.method.projector[-1].weight.zero_()
    after = ranks.measure(module)
    assert after["rankme/embedding"] == after["lidar/embedding"] == 0
    assert after["rankme/backbone"] == before["rankme/backbone"] > 1


def test_0_measures_none():
    TrainConfig(rank_every=0)
    with pytest.raises(ValueError, match="rank_every must be at least 0, got -1"):
        TrainConfig(rank_every=-1)


def measure(number, processes, port, tiny, results):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with process_group("cpu"):
        results.put(ranks_of(tiny).measure(module_of(tiny)))


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_find_the_numbers_of_one(tiny, processes):
    """Also three, among which eight images do not divide."""
    tiny = configured(tiny, "simclr")
    want = ranks_of(tiny).measure(module_of(tiny))
    context = mp.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=measure, args=(number, processes, port, tiny, results))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    found = [results.get(timeout=120) for _ in started]
    for process in started:
        process.join(timeout=60)
    assert all(each == found[0] for each in found)
    assert found[0] == pytest.approx(want, rel=1e-4)
