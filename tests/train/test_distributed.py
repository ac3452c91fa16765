"""Two processes train as one does: the same pairs, weights and metrics, one set of files."""

import copy
import csv
import os
import signal
import socket
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console

from mast_ext import functional
from mast_ext.data import open_source
from mast_ext.distributed import rank
from mast_ext.losses import HardViewSelector
from mast_ext.methods import EquiModOptions, HardViewOptions
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import Interrupted, RunError
from mast_ext.train.launch import process_group
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory

PROCESSES = 2
STEPS = 4
TINY_TRANSFORMER = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24}

# Of all methods, with batch norm in backbone and heads; the queue of MoCo wraps around.
METHODS = [
    *("simclr+hard", "simclr+equimod", "simsiam+hard", "byol+hard", "moco", "vicreg"),
    *("barlow_twins+hard", "mast+equimod+hard", "dino+hard"),
]
TRANSFORMERS = {"transformer+hard": "simclr+hard", "ibot+hard": "ibot+hard"}
RANDOM = HardViewOptions(4, strategy="softmax")


def settings(tiny, method, hard_views=None):
    """The tiny run, shorter and by SGD: Adam's first steps would take a rounding error for a
    gradient."""
    base, *around = method.split("+")
    return replace(
        tiny,
        method=base,
        equimod=EquiModOptions(1.0 if "equimod" in around else 0.0, (16, 16), 8),
        hard_views=hard_views or HardViewOptions(4 if "hard" in around else 0),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, warmup=0.0),
        train=replace(tiny.train, epochs=STEPS / 3, tensorboard=False),
    )


def transformer(tiny, method):
    timm_args = {**TINY_TRANSFORMER, "dynamic_img_size": True}  # iBOT's local views are smaller
    model = replace(tiny.model, name="vit_tiny_patch16_224", timm_args=timm_args)
    return replace(settings(tiny, method), model=model)


def own_statistics(tiny):
    config = settings(tiny, "simsiam")
    return replace(config, train=replace(config.train, sync_batchnorm=False))


def no_action(anything):
    pass


@contextmanager
def recorded_choices():
    """What hard view selection chooses, a tensor ``[views, B]`` per step."""
    choices = []

    def recording(select):
        def wrapper(*arguments, **options):
            index, score = select(*arguments, **options)
            choices.append(index)
            return index, score

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HardViewSelector, "forward", recording(HardViewSelector.forward))
        crops = recording(functional.select_hard_crops)
        patch.setattr(functional, "select_hard_crops", crops)
        yield choices


@contextmanager
def before_step(number, action):
    """Calls ``action(batch)`` as a step (from 0) begins."""

    def hook(module, batch, batch_idx):
        if module.trainer.global_step == number:
            action(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainModule, "on_train_batch_start", hook)
        yield


def train(config, path, resume=None, change=no_action):
    networks = build_networks(config)
    change(networks)
    data = config.data
    source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
    loader = training_loader(config, networks, source)
    run = RunDirectory(path)
    if rank() == 0:
        path.mkdir(parents=True)
    start = copy.deepcopy(networks.backbone.state_dict(prefix="backbone."))
    with recorded_choices() as choices:
        training = Training(config, networks, loader, STEPS)
        module = fit(training, run, resume=resume, console=Console(quiet=True))
    return {"start": start, "weights": module.state_dict(), "choices": choices}


def error_of(function):
    try:
        function()
    except (RunError, ValueError) as error:
        return error
    return None


def interrupt(batch):
    os.kill(os.getpid(), signal.SIGTERM)


def spoil(batch):
    batch.images[0, 1] = float("nan")


def add_idle_weight(networks):
    networks.backbone.idle = torch.nn.Parameter(torch.zeros(2))


def fail(batch):
    raise ValueError("cannot decode image")


def train_all(number, folder, tiny, port):
    """What one of two processes does; each has a run directory of its own to see who writes."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    found = {}
    error = error_of(lambda: train_together(number, folder, tiny, found))
    found["ended"] = (type(error).__name__, str(error))
    torch.save(found, folder / f"{number}.pt")


def train_together(number, folder, tiny, found):
    own, of_first = folder / str(number), folder / "0"
    last = number == PROCESSES - 1
    hard, random = settings(tiny, "simclr+hard"), settings(tiny, "simclr", RANDOM)
    with process_group("cpu"):
        for name in METHODS:
            found[name] = train(settings(tiny, name), own / name)
        for name, method in TRANSFORMERS.items():
            found[name] = train(transformer(tiny, method), own / name)
        found["random"] = train(random, own / "random")
        for name, config in (("hard", hard), ("random", random)):
            stopped, resumed = f"{name} stopped", f"{name} resumed"
            with before_step(1, interrupt if last else no_action):
                error = error_of(lambda: train(config, own / stopped))  # noqa: B023
            found[stopped] = (type(error).__name__, error.signal, error.step)
            checkpoint = of_first / stopped / "checkpoints" / "last.ckpt"
            found[resumed] = train(config, own / resumed, checkpoint)
        checkpoint = folder / "one" / "checkpoints" / "last.ckpt"
        found["widened"] = train(hard, own / "widened", checkpoint)
        with before_step(2, spoil if last else no_action):
            found["odd"] = str(error_of(lambda: train(own_statistics(tiny), own / "odd")))
        simclr = settings(tiny, "simclr")
        idle = error_of(lambda: train(simclr, own / "idle", change=add_idle_weight))
        found["idle"] = str(idle)
        with before_step(1, fail if last else no_action):
            train(simclr, own / "failed")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def processes(folder, tiny):
    """What every process found; they begin with a checkpoint of one process among the rest."""
    with before_step(1, interrupt), pytest.raises(Interrupted):
        train(settings(tiny, "simclr+hard"), folder / "one")
    mp.spawn(train_all, (folder, tiny, free_port()), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """What one process finds, by the name of the method."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}

    def get(name):
        if name not in found:
            method = TRANSFORMERS.get(name)
            config = transformer(tiny, method) if method else settings(tiny, name)
            found[name] = {**train(config, folder / name), "run": folder / name}
        return found[name]

    return get


def assert_close_weights(found, want):
    """To a thousandth of how far training moves weights; statistics to float32 accuracy."""
    weights, start = want["weights"], want["start"]
    assert found.keys() == weights.keys()
    moved = max((weights[n] - w).abs().max().item() for n, w in start.items() if "weight" in n)
    for name, value in weights.items():
        tolerance = 1e-3 * moved if "weight" in name else 2e-5 * max(1.0, value.abs().max().item())
        assert (found[name] - value).abs().max() <= tolerance, name


def assert_same_bits(found, want):
    assert found.keys() == want.keys()
    assert [name for name in want if not torch.equal(found[name], want[name])] == []


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", [*METHODS, *TRANSFORMERS])
def test_equals_one_process(name, processes, alone, folder):
    want = alone(name)
    for found in processes:
        assert_close_weights(found[name]["weights"], want)
    shares = [found[name]["choices"] for found in processes]
    chosen = [torch.cat(both, 1) for both in zip(*shares, strict=True)]
    assert len(chosen) == (STEPS if "hard" in name else 0)
    assert all(torch.equal(a, b) for a, b in zip(chosen, want["choices"], strict=True))
    rows = rows_of(folder / "0" / name)
    assert rows[0].keys() == rows_of(want["run"])[0].keys()
    for row, truth in zip(rows, rows_of(want["run"]), strict=True):
        for column in ("step", "epoch", "loss", "lr", "gradient_norm"):
            assert float(row[column]) == pytest.approx(float(truth[column]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_processes_hold_the_same_bits(name, processes):
    assert_same_bits(processes[0][name]["weights"], processes[1][name]["weights"])


def test_the_first_process_alone_writes(processes, folder):
    assert not (folder / "1").exists()
    names = {path.name for path in (folder / "0" / "simclr+hard").iterdir()}
    assert names == {"metrics.csv", "checkpoints", "backbone.safetensors"}


def test_random_numbers_differ_between_processes(processes, folder):
    checkpoint = read_checkpoint(folder / "0" / "random" / "checkpoints" / "last.ckpt")
    first, second = (states["torch"] for states in checkpoint["mast_ext"]["generators"])
    assert not torch.equal(first, second)


def test_a_signal_to_one_process_stops_all_after_the_same_step(processes):
    for found in processes:
        for name in ("hard stopped", "random stopped"):
            assert found[name] == ("Interrupted", signal.SIGTERM, 2)


@pytest.mark.parametrize(
    ("resumed", "whole"), [("hard resumed", "simclr+hard"), ("random resumed", "random")]
)
def test_resumes_to_the_same_bits(processes, resumed, whole):
    for found in processes:
        assert_same_bits(found[resumed]["weights"], found[whole]["weights"])
        choices = zip(found[resumed]["choices"], found[whole]["choices"][2:], strict=True)
        assert all(torch.equal(a, b) for a, b in choices)


def test_resumes_in_another_number_of_processes(processes, alone, folder, tiny, tmp_path):
    want = alone("simclr+hard")
    for found in processes:
        assert_close_weights(found["widened"]["weights"], want)
    checkpoint = folder / "0" / "hard stopped" / "checkpoints" / "last.ckpt"
    found = train(settings(tiny, "simclr+hard"), tmp_path / "narrowed", checkpoint)
    assert_close_weights(found["weights"], want)


def test_all_stop_at_the_loss_of_one(processes, folder, tiny):
    messages = [found["odd"] for found in processes]
    assert messages[0].split("/0/")[0] == messages[1].split("/1/")[0]
    assert messages[0].startswith("the loss on rank 1 is nan at step 3: stopped before changing")
    listed = (folder / "0" / "odd" / "nonfinite_batch.txt").read_text().split()
    data = tiny.data
    source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
    config = settings(tiny, "simsiam")
    *_, third = training_loader(config, build_networks(config), source)
    assert [int(index) for index in listed] == third.index[4:].tolist()
    last = read_checkpoint(folder / "0" / "odd" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2


def test_names_a_weight_without_gradient(processes):
    for found in processes:
        assert found["idle"] == (
            "training by several processes needs a gradient of every weight: backbone.idle got none"
        )


def test_the_error_of_one_ends_the_others(processes):
    assert [found["ended"] for found in processes] == [
        ("EndedByAnother", "another process of the run failed"),
        ("ValueError", "cannot decode image"),
    ]
