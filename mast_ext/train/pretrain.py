"""A pretraining run from settings to report: train, train the baseline, measure, draw.

Everything that can be wrong with settings and data is found before the run directory is made.
"""

import os
import time
from bisect import bisect_left
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from rich.console import Console

from mast_ext.augment import ViewLoader
from mast_ext.checks import OptionError
from mast_ext.data import Source
from mast_ext.distributed import rank, run_on_first_rank, world_size
from mast_ext.methods import METHODS
from mast_ext.models import save_backbone
from mast_ext.train.config import PretrainConfig
from mast_ext.train.errors import CheckpointError, Interrupted, RunError, SettingsError
from mast_ext.train.evaluation.evaluate import (
    Row,
    chance,
    evaluate,
    fitting_neighbors,
    protocols,
)
from mast_ext.train.evaluation.images import Images, open_images
from mast_ext.train.evaluation.views import hard_view_examples, pair_uncertainty
from mast_ext.train.inputs import as_trained, fitted, much_reduced
from mast_ext.train.launch import process_group, resolve_device
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.loggers import require_loggers
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import Networks, build_networks, image_format
from mast_ext.train.report.html import PAGE, keep_foreign, write_report
from mast_ext.train.report.record import Measurements, save_measurements
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.run_directory import RunDirectory, named_failure


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
    config: PretrainConfig,
    *,
    resume: Path | None = None,
    console: Console | None = None,
) -> Outcome | None:
    """Trains a method (and its baseline), probes it and writes the report.

    Processes that torchrun or SLURM started train together. The first of them has the console and
    writes; when training is done it goes on by itself, and the others are finished.

    Args:
        config: All settings; of a resumed run, those of its ``config.yaml``.
        resume: A run directory, or a checkpoint in one, to go on with.
        console: Where progress is reported (standard error by default).

    Returns:
        What was found; None in a process that is not the first one.

    Raises:
        RunError: The run cannot start or go on; the message says why. Or the caller has joined
            several processes in a group: that is done here, and ends before the report.
        EndedByAnother: Another process failed.
        ValueError: A setting does not fit, or an image cannot be decoded.
        FileNotFoundError: The images' folder does not exist.
    """
    if world_size() > 1:
        raise RunError(
            "pretrain joins the processes itself: call it without torch.distributed's process group"
        )
    with ExitStack() as locks:  # until the report is written
        with process_group(config.train.accelerator):
            device = resolve_device(config.train.accelerator)
            first = rank() == 0
            console = (console or Console(stderr=True)) if first else Console(quiet=True)
            data = config.data if resume is None else as_trained(config.data, config.augment)
            images = open_images(data, console)
            config, left_out = fitted(config, images.train)
            trainings = plan(config, images.train)
            remarks = [left_out] if left_out else []
            if resume is None:
                remarks += beyond_the_end(config)
                remarks += nothing_hard(trainings[0])
                remarks += much_reduced(config, images.train)
            for remark in remarks:
                _tell(console, remark)
            run, modules = _train_all(config, trainings, resume, console, locks)
        if not first:
            return None
        # By itself: the others have gone, and losses would wait for them.
        try:
            return _report(config, images, run, trainings, modules, device, console)
        except KeyboardInterrupt as error:
            _say_how_to_go_on(error, run)
            raise


def plan(config: PretrainConfig, source: Source) -> list[Training]:
    """The method's training and its baseline's, which has as many image forwards.

    Raises:
        SettingsError: A setting does not fit.
    """
    try:
        networks, loader = _made(config, source)
        steps = max(1, round(config.train.epochs * len(loader)))
        trainings = [Training(config, networks, loader, steps)]
        forwards = networks.forwards(loader, steps)
        for baseline in baseline_of(config):
            networks, loader = _made(baseline, source)
            steps = _steps_of(networks, loader, forwards)
            lasting = baseline.lasting(steps / len(loader))
            if lasting.options(lasting.method) != baseline.options(baseline.method):
                networks, loader = _made(lasting, source)
            trainings.append(Training(lasting, networks, loader, steps))
    except OptionError as error:  # another ValueError is no fault of the settings
        raise SettingsError(str(error)) from error
    for training in trainings:
        gram = training.networks.method.gram_teacher()
        if gram is not None and gram.start >= training.steps:
            group = training.config.options(training.config.method).group
            raise SettingsError(
                f"{group}.gram_start must be less than the {training.steps} steps of"
                f" {training.name}, got {gram.start}"
            )
    return trainings


def _made(config: PretrainConfig, source: Source) -> tuple[Networks, ViewLoader]:
    networks = build_networks(config)
    loader = training_loader(config, networks, source)
    if networks.hard_views is not None:
        networks.method.require_images(loader.batch_size // config.train.accumulate)
    return networks, loader


def _steps_of(networks: Networks, loader: ViewLoader, forwards: float) -> int:
    """How many steps, one at least, have about as many forwards of every image of a batch."""
    most = max(1, round(forwards / networks.forwards(loader, 1)))  # later ones may have more
    reach = bisect_left(
        range(1, most + 1), forwards, key=lambda steps: networks.forwards(loader, steps)
    )
    near = [steps for steps in (reach, reach + 1) if 1 <= steps <= most]
    return min(near, key=lambda steps: abs(networks.forwards(loader, steps) - forwards))


def _train_all(
    config: PretrainConfig,
    trainings: list[Training],
    resume: Path | None,
    console: Console,
    locks: ExitStack,
) -> tuple[RunDirectory, list[PretrainModule]]:
    """Trains one after the other in a run directory, new or resumed, which ``locks`` keep."""
    stem = f"{trainings[0].name}-{config.data.name}"
    require_loggers(config, str(resume or config.out or ""))
    runs, checkpoints = run_on_first_rank(lambda: _open_runs(stem, config.out, resume, locks))
    run = runs[0]
    try:
        if resume is None and rank() == 0:
            _save_settings(run, config, trainings[0].networks)
        modules = []
        for training, own, checkpoint in zip(trainings, runs, checkpoints, strict=False):
            if own is not run and rank() == 0:  # a baseline can be resumed as a run of its own
                own.make_missing()
                locks.enter_context(own.locked())
            modules.append(_train(training, own, checkpoint, console))
    except BaseException as error:
        if resume is not None or run.last.exists():
            if isinstance(error, Interrupted):
                error.run = run.path
            elif isinstance(error, KeyboardInterrupt):
                _say_how_to_go_on(error, run)
        elif rank() == 0:
            run.remove()
        raise
    return run, modules


def _say_how_to_go_on(error: KeyboardInterrupt, run: RunDirectory) -> None:
    error.args = (f"go on with mast-ext pretrain --resume {run.path}",)


def _report(
    config: PretrainConfig,
    images: Images,
    run: RunDirectory,
    trainings: list[Training],
    modules: list[PretrainModule],
    device: torch.device,
    console: Console,
) -> Outcome:
    """Probes what was trained and writes the report."""
    notes = list(images.notes)
    notes += [
        f"{training.name}: {training.steps} steps, {training.forwards:,} image forwards"
        for training in trainings
    ]
    rows: list[Row] = []
    if images.labeled is None:
        notes.append(f"nothing was probed: {images.why_not}")
    else:
        _tell(console, "probing")
        notes += fitting_neighbors(config.evaluation, len(images.labeled.train))[1]
        measure = partial(
            evaluate,
            images=images.labeled,
            recipe=config.augment,
            config=config.evaluation,
            device=device,
        )
        for training, module in zip(trainings, modules, strict=True):
            rows += measure(training.name, module.backbone, method=module.method)
        rows += measure(config.model.start, build_networks(config).backbone)
        rows.append(chance(images.labeled, protocols(rows)))
    # Training left all of it on the CPU; probing moved the backbone and the method, not the rest.
    module, loader = modules[0].to(device), trainings[0].loader
    # A run resumed after its last step has not told the method which step it is at.
    steps = trainings[0].steps
    module.method.at_step(steps - 1, len(loader), steps)
    measured = Measurements(
        rows,
        notes,
        module.method.subspaces(),
        pair_uncertainty(module, loader),
        hard_view_examples(module, loader),
    )
    save_measurements(run.report, measured)
    page = run.report / PAGE
    if kept := keep_foreign(page):
        notes.append(f"{page} was no report as mast-ext writes it, and is now {kept.name}")
    report = write_report([run.path], page)
    return Outcome(run, rows, report, notes)


def baseline_of(config: PretrainConfig) -> list[PretrainConfig]:
    """The settings of the baseline to train beside the method, if any; see `PretrainConfig`."""
    method = config.baseline
    wrapped = config.equimod.weight > 0 or config.hard_views.views > 0
    if method == "auto":
        method = config.method if wrapped else METHODS[config.method].baseline
        method = method if config.data.name == "shapes" else "none"
    if method == "none" or (method == config.method and not wrapped):
        return []
    plain = replace(config.equimod, weight=0.0)
    hard_views = replace(config.hard_views, views=0)
    return [replace(config, method=method, equimod=plain, hard_views=hard_views, baseline="none")]


def beyond_the_end(config: PretrainConfig) -> list[str]:
    """A sentence for every option in epochs that a training is too short for.

    It is no error: a warm-up takes the whole training then, and what waits for an epoch does not
    happen. So one setting, or a recipe, serves short trials, too.
    """
    epochs, own = config.train.epochs, config.options(config.method)
    warmups, waits = (
        [(f"{own.group}.{name}", getattr(own, name), outcome) for name, outcome in each.items()]
        for each in (own.warmups, own.waits)
    )
    rate = "optimizer.warmup", config.optimizer.warmup, "the learning rate rises to the end"
    told = [each for each in (rate, *warmups) if each[1] > epochs]
    told += [each for each in waits if each[1] >= epochs]
    return [
        f"{outcome}: {name} is {value:g} epochs, train.epochs {epochs:g}"
        for name, value, outcome in told
    ]


def nothing_hard(training: Training) -> list[str]:
    """A sentence where hard views are asked for, and no image of any step gets its hardest pair."""
    hard = training.networks.hard_views
    if hard is None:
        return []
    options, config = hard.options, training.config.train
    if not options.selections(training.steps, len(training.loader)):
        return [
            f"no hard views are selected in {training.steps} steps: hard_views.warmup is"
            f" {options.warmup:g} epochs, train.epochs {config.epochs:g}, hard_views.every"
            f" {options.every}"
        ]
    images = training.loader.batch_size // config.accumulate
    if not round(options.fraction * images):
        return [
            f"no image gets its hardest pair: hard_views.fraction is {options.fraction:g}, and a"
            f" process has {images} images at a time"
        ]
    return []


def _open_runs(
    stem: str, out: str | None, resume: Path | None, locks: ExitStack
) -> tuple[list[RunDirectory], list[Path | None]]:
    """The run's directory and its baseline's, and the checkpoints to go on from.

    All processes have to go on from the same ones: another machine may not see a file yet.
    """
    checkpoint = None
    if resume is None:
        run = RunDirectory.create(out, stem)
    elif resume.is_dir():
        run = RunDirectory.open(resume)
    else:
        run, checkpoint = RunDirectory.open(run_of_checkpoint(resume)), resume
    locks.enter_context(run.locked())
    runs = [run, run.baseline()]
    found = [each.last if each.last.exists() else None for each in runs]
    return runs, [checkpoint or found[0], found[1]]


def run_of_checkpoint(path: Path) -> Path:
    """The run directory that a checkpoint lies in.

    Raises:
        CheckpointError: There is no such checkpoint, it is not ours, or lies outside of a run.
    """
    read_checkpoint(path)
    # A checkpoint may be named by a link to it, and a run's folder of checkpoints may be a link.
    for place in (Path(os.path.abspath(path)), path.resolve()):
        folder = place.parent.parent
        if (folder / "config.yaml").is_file():
            return folder
    raise CheckpointError(
        f"{path} does not lie in a run directory (DIR/checkpoints/ beside DIR/config.yaml)"
    )


def _train(
    training: Training, run: RunDirectory, checkpoint: Path | None, console: Console
) -> PretrainModule:
    start = "resuming" if checkpoint else "training"
    steps = f"{training.steps} steps, {training.forwards:,} image forwards"
    _tell(console, f"{start} {training.name}: {steps}")
    if rank() == 0:
        run.make_missing()
        if not run.config.exists():
            # A baseline's directory is a run of its own.
            _save_settings(run, training.config, training.networks)
    seed_everything(training.config.seed, workers=True, verbose=False)
    began = time.perf_counter()
    module = fit(training, run, resume=checkpoint, console=console)
    _tell(console, f"{training.name} took {time.perf_counter() - began:.0f} s")
    return module


def _save_settings(run: RunDirectory, config: PretrainConfig, networks: Networks) -> None:
    """Writes the settings, and before them the weights that they say to start from."""
    if config.model.weights:
        with named_failure(run.start):
            images = image_format(config.augment)
            save_backbone(networks.backbone, networks.spec, run.start, images)
    run.save_config(config.to_dict())


def _tell(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
