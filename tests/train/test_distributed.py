"""Two processes train as one does: the same pairs, weights and metrics, one set of files."""

import copy
import csv
import io
import json
import os
import signal
import socket
import traceback
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
from mast_ext.methods import METHODS as REGISTRY
from mast_ext.methods import EquiModOptions, HardViewOptions
from mast_ext.train.config import OptimizerConfig
from mast_ext.train.errors import Interrupted, RunError
from mast_ext.train.launch import process_group
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.ranks import NAMES as RANKS
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory

pytestmark = pytest.mark.distributed

PROCESSES = 2
STEPS = 4
TINY_TRANSFORMER = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24}

# Every method, with batch norm in backbone and heads; the queue of MoCo wraps around. iBOT is among
# the transformers.
VARIANTS = {"moco": "moco", "vicreg": "vicreg", "mast": "mast+equimod+hard"}
METHODS = [VARIANTS.get(name, f"{name}+hard") for name in sorted(REGISTRY) if name != "ibot"]
METHODS += ["simclr+equimod"]
TRANSFORMERS = {"transformer+hard": "simclr+hard", "ibot+hard": "ibot+hard", "gram": "dino+gram"}
RANDOM = HardViewOptions(4, strategy="softmax")


def settings(tiny, method, hard_views=None):
    """The tiny run, shorter and by SGD: Adam's first steps would take a rounding error for a
    gradient."""
    base, *around = method.split("+")
    gram = {"gram_weight": 1.0, "gram_start": 1, "gram_every": 2} if "gram" in around else {}
    return replace(
        tiny,
        method=base,
        dino=replace(tiny.dino, **gram),
        equimod=EquiModOptions(1.0 if "equimod" in around else 0.0, (16, 16), 8),
        hard_views=hard_views or HardViewOptions(4 if "hard" in around else 0),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, warmup=0.0),
        train=replace(tiny.train, epochs=STEPS / 3, logger="csv"),
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


def configured(tiny, name):
    if name in TRANSFORMERS:
        return transformer(tiny, TRANSFORMERS[name])
    return settings(tiny, "simclr", RANDOM) if name == "random" else settings(tiny, name)


def train_named(own, tiny, name):
    return train(configured(tiny, name), own / name)


def stop_and_resume(own, tiny, name):
    """A signal to the last process in the second step, and the run resumed."""
    config = configured(tiny, name)
    with before_step(1, interrupt if rank() == PROCESSES - 1 else no_action):
        error = error_of(lambda: train(config, own / f"{name} stopped"))
    checkpoint = own.with_name("0") / f"{name} stopped" / "checkpoints" / "last.ckpt"
    resumed = train(config, own / f"{name} resumed", checkpoint)
    return {"stopped": (type(error).__name__, error.signal, error.step), **resumed}


def resume_widened(own, tiny, checkpoint):
    return train(settings(tiny, "simclr+hard"), own / "widened", checkpoint)


def train_with_odd_loss(own, tiny):
    with before_step(2, spoil if rank() == PROCESSES - 1 else no_action):
        return str(error_of(lambda: train(own_statistics(tiny), own / "odd")))


def train_idle_weight(own, tiny):
    change = add_idle_weight
    return str(error_of(lambda: train(settings(tiny, "simclr"), own / "idle", change=change)))


def train_and_fail(own, tiny):
    with before_step(1, fail if rank() == PROCESSES - 1 else no_action):
        train(settings(tiny, "simclr"), own / "failed")


ACTIONS = {
    action.__name__: action
    for action in (
        *(train_named, stop_and_resume, resume_widened),
        *(train_with_odd_loss, train_idle_weight, train_and_fail),
    )
}


def work(number, folder, tiny, port, commands, results):
    """One of two processes: answers commands; its runs are in a folder of its own, to see who
    writes."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )

    def answer(found, error=None):
        packed = io.BytesIO()
        torch.save((found, error), packed)
        results.put(packed.getvalue())

    try:
        with process_group("cpu"):
            while (command := commands.get()) is not None:
                name, arguments = command
                try:
                    found = ACTIONS[name](folder / str(number), tiny, *arguments)
                except Exception:
                    if name == "train_and_fail":
                        raise
                    answer(None, traceback.format_exc())
                else:
                    answer(found)
    except Exception as error:  # that of `train_and_fail`, as `process_group` tells of it
        answer((type(error).__name__, str(error)))


class World:
    """Two processes that train together, and keep what they found."""

    def __init__(self, folder, tiny):
        context = mp.get_context("spawn")
        port = free_port()
        self.commands = [context.Queue() for _ in range(PROCESSES)]
        self.results = [context.Queue() for _ in range(PROCESSES)]
        self.processes, self.found = [], {}
        for number, queues in enumerate(zip(self.commands, self.results, strict=True)):
            process = context.Process(target=work, args=(number, folder, tiny, port, *queues))
            process.start()
            self.processes.append(process)

    def run(self, action, *arguments):
        """What an action finds in every process; an error there is one here."""
        key = (action.__name__, *map(str, arguments))
        if key not in self.found:
            for commands in self.commands:
                commands.put((action.__name__, arguments))
            answers = [results.get(timeout=300) for results in self.results]
            answers = [torch.load(io.BytesIO(a), weights_only=False) for a in answers]
            errors = [error for _, error in answers if error is not None]
            assert errors == [], "\n".join(errors)
            self.found[key] = [found for found, _ in answers]
        return self.found[key]

    def end(self):
        for commands in self.commands:
            commands.put(None)
        for process in self.processes:
            process.join(timeout=60)
            process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def world(folder, tiny):
    world = World(folder, tiny)
    yield world
    world.end()


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """What one process finds, by the name of the method."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}

    def get(name):
        if name not in found:
            config = configured(tiny, name)
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
def test_equals_one_process(name, world, alone, folder):
    want, processes = alone(name), world.run(train_named, name)
    for found in processes:
        assert_close_weights(found["weights"], want)
    shares = [found["choices"] for found in processes]
    chosen = [torch.cat(both, 1) for both in zip(*shares, strict=True)]
    assert len(chosen) == (STEPS if "hard" in name else 0)
    assert all(torch.equal(a, b) for a, b in zip(chosen, want["choices"], strict=True))
    rows = rows_of(folder / "0" / name)
    assert rows[0].keys() == rows_of(want["run"])[0].keys()
    for row, truth in zip(rows, rows_of(want["run"]), strict=True):
        for column in ("step", "epoch", "loss", "lr", "gradient_norm", *({"gram"} & row.keys())):
            near = pytest.approx(float(truth[column]), rel=1e-4, abs=1e-6, nan_ok=column == "gram")
            assert float(row[column]) == near, column
        for column in RANKS:
            near = pytest.approx(float(truth[column]), rel=1e-3, nan_ok=True)
            assert float(row[column]) == near, (column, row["step"])
    assert [row["step"] for row in rows if row[RANKS[0]] != "nan"] == ["1", "2", "4"]


def test_the_gram_teacher_of_all_processes_is_one(world, alone):
    """From the second step on it counts, and it is taken anew at the fourth."""
    rows = rows_of(alone("gram")["run"])
    assert [float(row["gram"]) > 0 for row in rows] == [False, True, True, True]
    own = [name for name in alone("gram")["weights"] if name.startswith("gram_teacher.")]
    weights = [found["weights"] for found in world.run(train_named, "gram")]
    assert own and all(torch.equal(weights[0][name], weights[1][name]) for name in own)
    start = alone("gram")["start"]
    moved = [weights[0][f"gram_teacher.module.{name.removeprefix('backbone.')}"] for name in start]
    assert not all(torch.equal(a, b) for a, b in zip(moved, start.values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_processes_hold_the_same_bits(name, world):
    first, second = world.run(train_named, name)
    assert_same_bits(first["weights"], second["weights"])


def test_the_first_process_alone_writes(world, folder):
    world.run(train_named, "simclr+hard")
    assert not (folder / "1").exists()
    names = {path.name for path in (folder / "0" / "simclr+hard").iterdir()}
    assert names == {"metrics.csv", "checkpoints", "backbone.safetensors"}


def test_random_numbers_differ_between_processes(world, folder):
    world.run(train_named, "random")
    checkpoint = read_checkpoint(folder / "0" / "random" / "checkpoints" / "last.ckpt")
    first, second = (states["torch"] for states in checkpoint["mast_ext"]["generators"])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["simclr+hard", "random"])
def test_a_signal_to_one_process_stops_all_after_the_same_step(name, world):
    for found in world.run(stop_and_resume, name):
        assert found["stopped"] == ("Interrupted", signal.SIGTERM, 2)


@pytest.mark.parametrize("name", ["simclr+hard", "random"])
def test_resumes_to_the_same_bits(name, world):
    wholes = world.run(train_named, name)
    for found, whole in zip(world.run(stop_and_resume, name), wholes, strict=True):
        assert_same_bits(found["weights"], whole["weights"])
        choices = zip(found["choices"], whole["choices"][2:], strict=True)
        assert all(torch.equal(a, b) for a, b in choices)


def test_resumes_in_more_processes(world, alone, tiny, tmp_path):
    with before_step(1, interrupt), pytest.raises(Interrupted):
        train(settings(tiny, "simclr+hard"), tmp_path / "one")
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    for found in world.run(resume_widened, checkpoint):
        assert_close_weights(found["weights"], alone("simclr+hard"))


def test_resumes_in_fewer_processes(world, alone, folder, tiny, tmp_path):
    world.run(stop_and_resume, "simclr+hard")
    checkpoint = folder / "0" / "simclr+hard stopped" / "checkpoints" / "last.ckpt"
    found = train(settings(tiny, "simclr+hard"), tmp_path / "narrowed", checkpoint)
    assert_close_weights(found["weights"], alone("simclr+hard"))


def test_all_stop_at_the_loss_of_one(world, folder, tiny):
    messages = world.run(train_with_odd_loss)
    assert messages[0].split("/0/")[0] == messages[1].split("/1/")[0]
    assert messages[0].startswith("the loss on rank 1 is nan at step 3: stopped before changing")
    stored = json.loads((folder / "0" / "odd" / "nonfinite_batch.json").read_text())
    data = tiny.data
    source = open_source("shapes", "train", size=data.size, max_images=data.max_images)
    config = settings(tiny, "simsiam")
    *_, third = training_loader(config, build_networks(config), source)
    assert stored["indices"] == third.index[4:].tolist() and stored["processes"] == 2
    assert torch.equal(torch.tensor(stored["parameters"]), third.parameters[:, 4:])
    last = read_checkpoint(folder / "0" / "odd" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2


def test_names_a_weight_without_gradient(world):
    message = (
        "training by several processes needs a gradient of every weight: backbone.idle got none"
    )
    assert world.run(train_idle_weight) == [message] * PROCESSES


def test_the_error_of_one_ends_the_others(world):
    """The last test of these processes, which end by it."""
    assert world.run(train_and_fail) == [
        ("EndedByAnother", "another process of the run failed"),
        ("ValueError", "cannot decode image"),
    ]
