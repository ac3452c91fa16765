"""A pretraining run from settings to report: train, train the baseline, measure, draw.

Everything that can be wrong with settings and data is found before the run directory is made.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from lightning.pytorch import seed_everything
from rich.console import Console

from mast_ext.augment import ViewLoader
from mast_ext.data import Source
from mast_ext.distributed import rank, run_on_first_rank
from mast_ext.train.config import PretrainConfig
from mast_ext.train.errors import CheckpointError, Interrupted
from mast_ext.train.evaluation.evaluate import LabelledImages, Row, chance, device_named, evaluate
from mast_ext.train.evaluation.images import Images, open_images
from mast_ext.train.launch import process_group
from mast_ext.train.loop.fit import Networks, build_networks, fit, training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.report.figures import draw_hard_views_of, draw_uncertainty_of
from mast_ext.train.report.html import write_report
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory


@dataclass(frozen=True)
class Training:
    """One training of a run: the method's own, or its baseline.

    Attributes:
        config: Its settings, but for the epochs of a baseline.
        networks: What is trained.
        loader: Its views.
        steps: How many steps it takes.
        run: Where its files are.
        resume: A checkpoint to go on from.
    """

    config: PretrainConfig
    networks: Networks
    loader: ViewLoader
    steps: int
    run: RunDirectory
    resume: Path | None

    @property
    def name(self) -> str:
        """The method's."""
        return self.networks.name

    @property
    def forwards(self) -> int:
        """Images that go through the backbone, or its teacher, in all processes together."""
        images = self.config.train.batch_size * self.networks.forwards(self.loader, self.steps)
        return round(images)


@dataclass(frozen=True)
class Outcome:
    """What a run has found.

    Attributes:
        run: Its directory.
        rows: What was measured; empty without labels.
        report: The HTML file.
        notes: Sentences on what was trained, and on what was left out.
    """

    run: RunDirectory
    rows: list[Row]
    report: Path
    notes: list[str]


def pretrain(
    config: PretrainConfig, *, resume: Path | None = None, console: Console | None = None
) -> Outcome | None:
    """Trains a method (and its baseline), probes it and writes the report.

    Processes that torchrun or SLURM started train together. The first of them has the console and
    writes; when training is done it goes on by itself, and the others are finished.

    Args:
        config: All settings; of a resumed run, those of its ``config.yaml``.
        resume: A run directory, or a checkpoint in one, to go on with.
        console: Where progress is told (standard error by default).

    Returns:
        What was found; None in a process that is not the first one.

    Raises:
        RunError: The run cannot start or go on; the message says why.
        EndedByAnother: Another process failed.
        ValueError: A setting does not fit, or an image cannot be decoded.
        FileNotFoundError: The images' folder does not exist.
    """
    with process_group(config.train.accelerator):
        device = device_named(config.train.accelerator)
        first = rank() == 0
        console = (console or Console(stderr=True)) if first else Console(quiet=True)
        opened = open_images(config.data)
        run, trainings, modules = _train_all(config, opened.train, resume, console)
    return _report(config, opened, run, trainings, modules, device, console) if first else None


def _train_all(
    config: PretrainConfig, source: Source, resume: Path | None, console: Console
) -> tuple[RunDirectory, list[Training], list[PretrainModule]]:
    """The method and its baseline."""
    configs = [config, *baseline_of(config)]
    built = [build_networks(each) for each in configs]
    loaders = [
        training_loader(each, networks.method, source)
        for each, networks in zip(configs, built, strict=True)
    ]
    steps = _equal_forwards(config, built, loaders)

    stem = f"{built[0].name}-{config.data.name}"
    run, checkpoint = run_on_first_rank(lambda: _open_run(stem, config.out, resume))
    runs = [run, run.baseline()]
    trainings = [
        Training(each, networks, loader, count, place, _last(place))
        for each, networks, loader, count, place in zip(
            configs, built, loaders, steps, runs, strict=False
        )
    ]
    if checkpoint is not None:
        trainings[0] = replace(trainings[0], resume=checkpoint)
    if resume is None and rank() == 0:
        run.save_config(config.to_dict())
    try:
        modules = [_train(training, console) for training in trainings]
    except BaseException as error:
        if resume is not None or run.last.exists():
            if isinstance(error, Interrupted):
                error.run = run.path
        elif rank() == 0:
            run.remove()
        raise
    return run, trainings, modules


def _report(
    config: PretrainConfig,
    opened: Images,
    run: RunDirectory,
    trainings: list[Training],
    modules: list[PretrainModule],
    device: torch.device,
    console: Console,
) -> Outcome:
    """Probes what was trained and writes the report."""
    images, notes = opened.labelled, list(opened.notes)
    notes += [
        f"{training.name}: {training.steps} steps, {training.forwards:,} image forwards"
        for training in trainings
    ]

    rows: list[Row] = []
    if images is None:
        notes.append(f"nothing was probed: {opened.why_not}")
    else:
        _tell(console, "probing")
        for training, module in zip(trainings, modules, strict=True):
            rows += _measure(training.name, module, images, config, device)
        rows += [*_untrained(config, images, device), chance(images)]
    report = write_report(
        run.report,
        title=f"{trainings[0].name} on {config.data.name}",
        rows=rows,
        subspaces=modules[0].method.subspaces(),
        metrics={training.name: training.run.metrics for training in trainings},
        settings=yaml.safe_dump(config.to_dict(), sort_keys=False),
        notes=notes,
        drawn={
            "hard_view_examples": draw_hard_views_of(modules[0], trainings[0].loader),
            "uncertainty": draw_uncertainty_of(modules[0], trainings[0].loader),
        },
    )
    return Outcome(run, rows, report, notes)


def baseline_of(config: PretrainConfig) -> list[PretrainConfig]:
    """The settings of the baseline to train beside the method, if any; see `PretrainConfig`."""
    method = config.baseline
    wrapped = config.equimod.weight > 0 or config.hard_views.views > 0
    if method == "auto":
        method = config.method if wrapped else {"mast": "vicreg"}.get(config.method, "none")
        method = method if config.data.name == "shapes" else "none"
    if method == "none" or (method == config.method and not wrapped):
        return []
    plain = replace(config.equimod, weight=0.0)
    hard_views = replace(config.hard_views, views=0)
    return [replace(config, method=method, equimod=plain, hard_views=hard_views, baseline="none")]


def _equal_forwards(
    config: PretrainConfig, built: list[Networks], loaders: list[ViewLoader]
) -> list[int]:
    """Steps of each training: the first as the epochs say, the others with as many forwards."""
    steps = max(1, round(config.train.epochs * len(loaders[0])))
    total = built[0].forwards(loaders[0], steps)
    others = zip(built[1:], loaders[1:], strict=True)
    return [steps, *(max(1, round(total / each.forwards(loader, 1))) for each, loader in others)]


def _open_run(stem: str, out: str | None, resume: Path | None) -> tuple[RunDirectory, Path | None]:
    if resume is None:
        return RunDirectory.create(out, stem), None
    if resume.is_dir():
        return RunDirectory.open(resume), None
    return RunDirectory.open(run_of_checkpoint(resume)), resume


def run_of_checkpoint(path: Path) -> Path:
    """The run directory that a checkpoint lies in.

    Raises:
        CheckpointError: There is no such checkpoint, it is not ours, or lies outside of a run.
    """
    read_checkpoint(path)
    folder = path.resolve().parent.parent
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{path} does not lie in a run directory (DIR/checkpoints/ beside DIR/config.yaml)"
        )
    return folder


def _last(run: RunDirectory) -> Path | None:
    return run.last if run.last.exists() else None


def _train(training: Training, console: Console) -> PretrainModule:
    start = "resuming" if training.resume else "training"
    steps = f"{training.steps} steps, {training.forwards:,} image forwards"
    _tell(console, f"{start} {training.name}: {steps}")
    if rank() == 0:
        training.run.checkpoints.mkdir(parents=True, exist_ok=True)
        if not training.run.config.exists():
            training.run.save_config(_alone(training).to_dict())
    seed_everything(training.config.seed, workers=True, verbose=False)
    began = time.perf_counter()
    module = fit(
        training.config,
        training.networks,
        training.loader,
        training.run,
        total_steps=training.steps,
        resume=training.resume,
        console=console,
    )
    _tell(console, f"{training.name} took {time.perf_counter() - began:.0f} s")
    return module


def _alone(training: Training) -> PretrainConfig:
    """The settings with which a baseline is a run of its own."""
    train = replace(training.config.train, epochs=training.steps / len(training.loader))
    return replace(training.config, train=train)


def _measure(
    name: str,
    module: PretrainModule,
    images: LabelledImages,
    config: PretrainConfig,
    device: torch.device,
) -> list[Row]:
    return evaluate(
        name,
        module.backbone,
        images,
        config.augment,
        config.evaluation,
        method=module.method,
        device=device,
    )


def _untrained(config: PretrainConfig, images: LabelledImages, device: torch.device) -> list[Row]:
    """The backbone with the weights that training began with."""
    backbone = build_networks(config).backbone
    return evaluate(
        "untrained",
        backbone,
        images,
        config.augment,
        config.evaluation,
        device=device,
    )


def _tell(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
