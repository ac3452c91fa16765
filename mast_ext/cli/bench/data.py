"""``mast-ext bench data``: how fast views are made of the user's own images, beside the peers.

Every contestant makes the same number of views of the same images with the same recipe, batch and
number of workers, in turn, round by round, so that a drift of the machine hits all of them.
"""

import contextlib
import importlib.util
import io
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.augment.dali import EncodedImages, is_installed
from mast_ext.cli.bench.tables import print_notes, print_table, write_markdown
from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import Overview, shows_help
from mast_ext.cli.parser import Parser, build, canonical, output_console, parse, settings_parser
from mast_ext.data import Source, open_source
from mast_ext.data.source import Name
from mast_ext.train.state.run_directory import require_writable

RIVAL = "torchvision v2 (PIL), DataLoader"
"""The contestant that the others are compared with."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
        name: Kind of the images.
        augment: What is done to a view.
        views: Views of every image.
        batch_size: Images in a batch.
        images: Images of a round, at most; all there are if those are fewer.
        rounds: Rounds that are timed, after one that is not.
        workers: Threads (of DALI, or of ours) or processes (of a DataLoader).
    """

    name: Name = "folder"
    augment: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    views: int = 2
    batch_size: int = 128
    images: int = 2048
    rounds: int = 3
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("views", "batch_size", "images", "rounds", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Speed:
    """What was measured of a contestant.

    Attributes:
        name: The contestant.
        rates: Images per second of every round.
        cpu: CPU time per image in milliseconds, of all threads and processes.
    """

    name: str
    rates: list[float]
    cpu: float

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def main(arguments: Sequence[str]) -> int:
    """Measures how fast views are made, and prints a table. Returns the exit status."""
    parser = make_parser()
    if shows_help(parser, Overview(), arguments):
        return 0
    values = parse(parser, canonical(arguments))
    config: BenchConfig = build(parser, values, BenchConfig, "path", "report")
    if config.name != "shapes" and values.path is None:
        raise UsageError(
            "bench data needs PATH, the folder or file with the images (or --name shapes)"
        )
    require_writable(values.report)
    began = time.perf_counter()
    source = open_source(
        config.name,
        "train",
        path=values.path,
        size=config.augment.size,
        max_images=config.images,
        channels=3,  # what the rivals render
        bits=8,
    )
    opening = time.perf_counter() - began
    speeds = measure(source, config, Console(stderr=True))
    notes, rows = _notes(source, config, opening), _rows(speeds)
    console = output_console()
    print_table(console, HEADS, rows)
    print_notes(console, notes)
    if values.report is not None:
        command = " ".join(["mast-ext", "bench", "data", *arguments])
        notes.append(f"command: `{command}`")
        write_markdown(Path(values.report), "How fast views are made", notes, HEADS, {"": rows})
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = settings_parser(
        "bench data",
        "Images per second and CPU time per image of every renderer, on images of yours.",
        BenchConfig,
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=str | None,
        default=None,
        help="The folder or file with the images: see data.path.",
    )
    parser.add_argument(
        *("--report", "--out"),
        type=str | None,
        default=None,
        metavar="FILE.md",
        help="Write the table to this Markdown file, too.",
    )
    return parser


def measure(source: Source, config: BenchConfig, console: Console) -> list[Speed]:
    """Runs all contestants."""
    contestants = [*_peers(source, config), *_ours(source, config)]
    count = len(source)
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    used = dict.fromkeys(rates, 0.0)
    with console.status("warming up") as status:
        for round_ in range(-1, config.rounds):
            for contestant in contestants:
                status.update(f"round {round_ + 1} of {config.rounds}: {contestant.name}")
                wall, cpu = time.perf_counter(), time.process_time()
                contestant.run()
                if round_ >= 0:
                    rates[contestant.name].append(count / (time.perf_counter() - wall))
                    used[contestant.name] += (time.process_time() - cpu) / (count * config.rounds)
    for contestant in contestants:
        before = os.times()
        contestant.close()
        after = os.times()
        # Of processes that worked in the first round, too; their time is known when they end.
        children = after[2] + after[3] - before[2] - before[3]
        used[contestant.name] += children / (count * (config.rounds + 1))
    return [Speed(name, rates[name], 1e3 * used[name]) for name in rates]


@dataclass(frozen=True)
class _Contestant:
    name: str
    run: Callable[[], None]
    close: Callable[[], None]


def _ours(source: Source, config: BenchConfig) -> list[_Contestant]:
    options: list[dict[str, Any]] = [{"backend": "torchvision", "keep_gb": 0.0}]
    if source.stacked is None:
        options.append({"backend": "torchvision", "keep_gb": math.inf})
    if is_installed():
        devices = ["cpu", "gpu"] if torch.cuda.is_available() else ["cpu"]
        options += [
            {"backend": "dali", "photometric": photometric, "device": device}
            for device in devices
            for photometric in ("exact", "fused")
        ]
    return [_our(source, config, option) for option in options]


def _our(source: Source, config: BenchConfig, option: dict[str, Any]) -> _Contestant:
    loader = build_loader(
        source,
        ComposedPolicy(config.augment, views=config.views),
        batch_size=config.batch_size,
        drop_last=False,
        workers=config.workers,
        **option,
    )

    def run() -> None:
        for batch in loader:
            last = batch
        if last.images.is_cuda:
            torch.cuda.synchronize()

    words = [value for value in option.values() if isinstance(value, str)]
    if option.get("keep_gb"):
        words.append("decoded images kept")
    return _Contestant(f"mast-ext, {', '.join(words)}", run, lambda: None)


def _peers(source: Source, config: BenchConfig) -> list[_Contestant]:
    """The rivals, whose worker processes are forked in the first round, before DALI has threads."""
    transforms: dict[str, Callable[[Image.Image], Any]] = {
        RIVAL: _Repeated(_torchvision(config.augment), config.views)
    }
    # Lightly's transform has no solarization: it would be less work.
    if importlib.util.find_spec("lightly") is not None and not config.augment.solarize:
        lightly = _lightly(config.augment)
        transforms["lightly SimCLRTransform, DataLoader"] = _Repeated(lightly, config.views)
    return [_peer(name, source, config, transform) for name, transform in transforms.items()]


def _peer(
    name: str, source: Source, config: BenchConfig, transform: Callable[[Image.Image], Any]
) -> _Contestant:
    loaders: list[Any] = [
        DataLoader(
            _Pictures(source, transform),
            batch_size=config.batch_size,
            shuffle=True,
            num_workers=config.workers,
            persistent_workers=True,
        )
    ]

    def run() -> None:
        for _ in loaders[0]:
            pass

    return _Contestant(name, run, loaders.clear)


class _Pictures(Dataset):
    """Pictures as a folder's data set has them: decoded by Pillow each time, where in files.

    Files that Pillow cannot read are decoded as ours are.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self._picture(index))

    def _picture(self, index: int) -> Image.Image:
        if isinstance(self.source, EncodedImages):
            data = io.BytesIO(self.source.encoded(index).tobytes())
            with contextlib.suppress(OSError, ValueError), Image.open(data) as image:
                return image.convert("RGB")
        return Image.fromarray(self.source.image(index).permute(1, 2, 0).numpy())


class _Repeated:
    """Several views by one transform."""

    def __init__(self, transform: Callable[[Image.Image], Any], views: int) -> None:
        self.transform, self.views = transform, views

    def __call__(self, image: Image.Image) -> list[Any]:
        return [self.transform(image) for _ in range(self.views)]


def _torchvision(recipe: AugmentationRecipe) -> Callable[[Image.Image], Any]:
    factors = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    window = 2 * int(-(-3 * recipe.blur_sigma[1] // 1)) + 1
    steps: list[Any] = [
        v2.RandomResizedCrop(recipe.size, recipe.crop_scale, recipe.crop_ratio),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.RandomApply([v2.ColorJitter(*factors)], recipe.jitter),
        v2.RandomGrayscale(recipe.grayscale),
    ]
    if recipe.blur:
        blur = v2.GaussianBlur(window, list(recipe.blur_sigma))
        steps.append(v2.RandomApply([blur], recipe.blur))
    if recipe.solarize:
        steps.append(v2.RandomSolarize(recipe.solarize_threshold, recipe.solarize))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(list(recipe.mean), list(recipe.std))])


def _lightly(recipe: AugmentationRecipe) -> Callable[[Image.Image], Any]:
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    return SimCLRViewTransform(
        input_size=recipe.size,
        cj_prob=recipe.jitter,
        cj_bright=recipe.brightness,
        cj_contrast=recipe.contrast,
        cj_sat=recipe.saturation,
        cj_hue=recipe.hue,
        min_scale=recipe.crop_scale[0],
        random_gray_scale=recipe.grayscale,
        gaussian_blur=recipe.blur,
        sigmas=recipe.blur_sigma,
        hf_prob=recipe.flip,
        normalize={"mean": list(recipe.mean), "std": list(recipe.std)},
    )


HEADS = ("renderer", "images/s", "slowest to fastest", "CPU ms/image", "times the rival")


def _rows(speeds: Sequence[Speed]) -> list[tuple[str, ...]]:
    rival = next(speed.rate for speed in speeds if speed.name == RIVAL)
    return [
        (
            speed.name,
            f"{speed.rate:.0f}",
            f"{min(speed.rates):.0f} to {max(speed.rates):.0f}",
            f"{speed.cpu:.3g}",
            f"{speed.rate / rival:.1f}",
        )
        for speed in speeds
    ]


def _notes(source: Source, config: BenchConfig, opening: float) -> list[str]:
    """What the numbers depend on."""
    recipe = config.augment
    low, high = source.sizes.min(0), source.sizes.max(0)
    sides = f"{low[0]}×{low[1]}" + (f" to {high[0]}×{high[1]}" if (low != high).any() else "")
    memory = "in memory for ours" if source.stacked is not None else "decoded when used"
    return [
        f"{len(source)} images ({source.name}, {sides}, {memory}; opened in {opening:.1f} s),"
        f" {config.views} views of {recipe.size} pixels, blur {recipe.blur:g},"
        f" solarize {recipe.solarize:g}",
        f"batches of {config.batch_size}, {config.workers} workers; median of {config.rounds}"
        f" rounds; the rival is {RIVAL}",
        f"{platform.machine()}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f} at the end; Python {platform.python_version()},"
        f" torch {torch.__version__}",
    ]
