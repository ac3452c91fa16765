"""``mast-ext bench step``: where the time of a training step goes.

It trains for some steps with the settings of ``mast-ext pretrain``, by the same code, in a
directory that is removed afterwards.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import seed_everything
from rich.console import Console

from mast_ext.benchmarks.environment import environment
from mast_ext.cli.bench.tables import add_outputs, put_out, require_report
from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import Overview, shows_help, value_of
from mast_ext.cli.parser import Parser, build, canonical, set_defaults_of_data
from mast_ext.cli.pretrain import OVERVIEW as PRETRAIN
from mast_ext.cli.pretrain import parse_training, run_on_devices, training_parser
from mast_ext.cli.unused import refuse_unused, unused_in_training
from mast_ext.distributed import rank, world_size
from mast_ext.train.config import PretrainConfig
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.inputs import fitted
from mast_ext.train.launch import process_group, resolve_device
from mast_ext.train.loop.fit import Training, fit
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.loggers import require_loggers
from mast_ext.train.loop.step_times import NETWORKS, PartTime, Step, StepTimes, summary
from mast_ext.train.networks import build_networks
from mast_ext.train.state.run_directory import RunDirectory

OVERVIEW = Overview(
    examples="""\
mast-ext bench step --method mast
mast-ext bench step --recipe cifar10-resnet18 --method simclr --data.path DIR
mast-ext bench step --config runs/mast-shapes-1/config.yaml --steps 100""",
    first={
        "what is measured": ("steps", "warmup", "clock", "json", "report"),
        "settings, as of mast-ext pretrain": (
            *("recipe", "config", "method", "hard_views.views", "equimod.weight"),
            *("data.name", "data.path", "data.workers", "augment.size", "model.name"),
            *("train.batch_size", "train.accelerator", "train.precision"),
        ),
    },
    apart=PRETRAIN.apart,
    more=PRETRAIN.more,
)

HEADS = ("part of a step", "ms", "share", "")


def main(arguments: Sequence[str]) -> int:
    """Measures the parts of a step, and prints a table. Returns the exit status."""
    parser, arguments = make_parser(), canonical(arguments)
    parser.method = value_of("--method", arguments)
    set_defaults_of_data(parser, value_of("--data.name", arguments) or PretrainConfig().data.name)
    if shows_help(parser, OVERVIEW, arguments, parser.method):
        return 0
    values = parse_training(parser, arguments)
    cpu_time = values.clock == "cpu"
    config: PretrainConfig = build(
        parser, values, PretrainConfig, "recipe", "steps", "warmup", "clock", "json", "report"
    )
    refuse_unused(arguments, unused_in_training(config, [config.method]))
    if values.steps < 2 or values.warmup < 0:
        raise UsageError(
            "--steps must be at least 2 and --warmup at least 0,"
            f" got {values.steps} and {values.warmup}"
        )
    if cpu_time and resolve_device(config.train.accelerator).type != "cpu":
        raise UsageError("--clock cpu is for training on the CPU: see --train.accelerator")
    require_report(values.report)
    status = run_on_devices(["bench", "step", *arguments], config.train)
    if status is not None:
        return status
    # Of the other loggers each would begin a run of its own, on a server even.
    loggers = tuple(name for name in config.train.loggers if name in ("csv", "tensorboard"))
    train = replace(config.train, progress="off", logger=loggers or "csv")
    config = replace(config, train=train)
    with process_group(config.train.accelerator):
        processes, first = world_size(), rank() == 0
        console = Console(stderr=True) if first else Console(quiet=True)
        count = values.warmup + values.steps
        config, steps, steps_per_epoch = measure(config, count, cpu_time, console)
    if not first:
        return 0
    command = " ".join(["mast-ext", "bench", "step", *arguments])
    parts = summary(steps[values.warmup :], config, steps_per_epoch)
    report(config, steps[values.warmup :], parts, processes, command, values)
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = training_parser("bench step", "Where the time of a training step goes.")
    parser.add_argument("--steps", type=int, default=30, help="Steps that count.")
    parser.add_argument("--warmup", type=int, default=5, help="Steps before them.")
    parser.add_argument(
        "--clock",
        type=Literal["wall", "cpu"],
        default="wall",
        help="What is counted: wall-clock time (on a GPU the GPU's), or CPU time of all threads"
        " of the process, for a machine that does other work, too.",
    )
    add_outputs(parser)
    return parser


def measure(
    config: PretrainConfig, steps: int, cpu_time: bool, console: Console
) -> tuple[PretrainConfig, list[Step], int]:
    """Trains for so many steps.

    Args:
        config: Settings.
        steps: How many.
        cpu_time: See `StepTimes`.
        console: Where progress of opening the images is shown, and which settings do not apply.

    Returns:
        The settings that fit the images, the times of the steps, and how many an epoch has.

    Raises:
        ValueError: A setting does not fit.
        RunError: Training fails.
    """
    source = open_images(config.data, console).train
    config, left_out = fitted(config, source)
    if left_out:
        console.print(left_out, highlight=False, markup=False)
    networks = build_networks(config)
    training = Training(config, networks, training_loader(config, networks, source), steps)
    times = StepTimes(cpu_time=cpu_time)
    with tempfile.TemporaryDirectory(prefix="mast-ext-bench-") as folder:
        run = RunDirectory(Path(folder))
        require_loggers(config, folder)
        run.make_missing()
        seed_everything(config.seed, workers=True, verbose=False)
        quiet = Console(quiet=True)
        fit(training, run, console=quiet, watching=[times], profiler=times.profiler)
    return config, times.steps(), len(training.loader)


def report(
    config: PretrainConfig,
    steps: Sequence[Step],
    parts: Sequence[PartTime],
    processes: int,
    command: str,
    values: Any,
) -> None:
    """Prints the table or JSON, and writes the files that are asked for."""
    whole = sum(part.seconds for part in parts)
    name = config.method + ("+hard" if config.hard_views.views else "")
    title = f"A training step of {name}: {config.model.name}, {config.augment.size} px"
    rows = [_row(part, whole) for part in parts]
    rows.append(("sum", f"{1e3 * whole:.4g}", "100 %", ""))
    notes = _notes(config, steps, parts, processes, values)
    document = _document(config, steps, parts, processes, command)
    put_out(values, title, notes, command, HEADS, {"": rows}, document)


def _row(part: PartTime, whole: float) -> tuple[str, ...]:
    once = ""
    if part.once is not None:
        once = f"{1e3 * part.once:.3g} ms every {part.every:.4g} steps"
    return (part.name, f"{1e3 * part.seconds:.3g}", f"{100 * part.seconds / whole:.1f} %", once)


def _notes(
    config: PretrainConfig,
    steps: Sequence[Step],
    parts: Sequence[PartTime],
    processes: int,
    values: Any,
) -> list[str]:
    """What the numbers are of, and what they say in one sentence."""
    whole = sum(part.seconds for part in parts)
    outside = [part for part in parts if part.name not in NETWORKS]
    most = max(outside, key=lambda part: part.seconds)
    seconds = sorted(step.seconds for step in steps)
    median = statistics.median(seconds)
    unit = "images per second of CPU time" if values.clock == "cpu" else "images/s"
    batches = f"batches of {config.train.batch_size}"
    found = environment()
    where = found["gpu"] if found["gpu"] and config.train.accelerator != "cpu" else found["cpu"]
    return [
        f"{config.train.batch_size / whole:.4g} {unit}: {batches}"
        f" by {processes} process{'es' if processes > 1 else ''}, medians of {len(steps)} steps",
        f"a step: {1e3 * seconds[0]:.4g} to {1e3 * seconds[-1]:.4g} ms, the median"
        f" {1e3 * median:.4g} ms; its parts' medians add up to {100 * whole / median:.0f} % of it",
        f"outside of backbone and head: {100 * sum(p.seconds for p in outside) / whole:.1f} % of a"
        f" step, the most of it {most.name} with {100 * most.seconds / whole:.1f} %",
        f"{where}, {found['threads']} threads, load {os.getloadavg()[0]:.1f} at the end;"
        f" Python {found['python']}, torch {found['torch']}",
    ]


def _document(
    config: PretrainConfig,
    steps: Sequence[Step],
    parts: Sequence[PartTime],
    processes: int,
    command: str,
) -> dict[str, Any]:
    whole = sum(part.seconds for part in parts)
    return {
        "environment": environment(),
        "command": command,
        "settings": config.to_dict(),
        "processes": processes,
        "images_per_second": config.train.batch_size / whole,
        "sum_ms": 1e3 * whole,
        "median_step_ms": 1e3 * statistics.median(step.seconds for step in steps),
        "parts": [
            {
                "name": part.name,
                "ms": 1e3 * part.seconds,
                "share": part.seconds / whole,
                "once_ms": None if part.once is None else 1e3 * part.once,
                "every": None if part.once is None else part.every,
            }
            for part in parts
        ],
        "steps": [
            {"step": s.number, "ms": {name: 1e3 * x for name, x in s.parts.items()}} for s in steps
        ],
    }
