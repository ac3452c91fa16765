"""What something around a method gains on images, against the plain method, paired by seed.

Two plain runs are compared with: one of equal epochs, and one of equal image forwards, which has
more epochs. Runs of a seed have the same initial weights, images and order. The learning rate is
that of the plain method: given, or see `tuned_rates`. Nothing is chosen by the test images: they
are for the probes at a run's end, and for what features know of augmentations.
"""

import argparse
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from runs import (
    Planned,
    Variant,
    add_arguments,
    mean_and_spread,
    network,
    plan,
    program,
    train_all,
    write_table,
)
from scores import AUGMENTATIONS, PROBES, Measured, ScoreFile, Scores

from mast_ext.augment import AugmentationRecipe

PLAIN = "plain"
EQUAL = "plain, forwards of"
RATES = (4e-3, 8e-3)  # where `tuned_rates` begins
HELD_OUT = 10  # one image in so many of a class
PAIRS = 10_000  # of views, of as many training images, that R² is fitted on; half as many tell it


@dataclass(frozen=True)
class Treatment:
    """What goes around a method.

    Attributes:
        options: Of ``mast-ext pretrain``.
        against_forwards: Whether a plain run of as many image forwards is trained, too. Only for
            options by which all steps have equally many.
        unfit: Methods that do not take these options.
        length: Epochs, relative to those of the plain method.
    """

    options: tuple[str, ...]
    against_forwards: bool = False
    unfit: tuple[str, ...] = ()
    length: float = 1.0


def main(
    title: str, treatments: Mapping[str, Treatment], methods: Sequence[str], runs: str, about: str
) -> None:
    """Trains what is missing, and writes the tables."""
    # Registers methods, whose settings stand in every run's config.yaml, before anything imports
    # the program's settings. Not at the top: tests that import this file would have them, too.
    import rivals  # noqa: F401

    parser = argparse.ArgumentParser(description=about)
    add_arguments(parser, epochs=4, runs=runs)
    parser.add_argument("--path", type=Path, required=True, help="The folder of images.")
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--treatments", nargs="*", choices=treatments, default=list(treatments))
    parser.add_argument(
        "--rates",
        nargs="+",
        type=named_rate,
        default=[],
        metavar="METHOD=RATE",
        help="Learning rates of methods that are not tuned here, such as simclr=0.032.",
    )
    parser.add_argument(
        "--equal-forwards",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Train plain runs of as many image forwards, too, beside treatments that are compared"
        " with them.",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE.jsonl",
        help="Keep what was measured of every run in this file, too: those that are in it are not"
        " trained again, and their directories need not be there.",
    )
    parser.add_argument(
        "--until",
        choices=["tuned", "trained"],
        help="Stop there: the rest can run on another machine, with all files at the same paths.",
    )
    values = parser.parse_args()

    data = ["--data.name=folder", f"--data.path={values.path}", *network(values.width)]
    given = {method: rate for method, rate in values.rates if method in values.methods}
    to_tune = [method for method in values.methods if method not in given]
    scores = ScoreFile(values.scores)
    rates = given | tuned_rates(values, to_tune, scores)
    if values.until == "tuned":
        return
    chosen = {name: treatments[name] for name in values.treatments}
    if not values.equal_forwards:
        chosen = {name: replace(each, against_forwards=False) for name, each in chosen.items()}
    variants = {
        (method, name): Variant(
            (f"--method={method}", f"--optimizer.lr={rates[method]:g}", *treatment.options),
            treatment.length,
        )
        for method in values.methods
        for name, treatment in treatments_of(method, chosen, [*values.option, *data])
    }

    def measure(planned: Planned, run: Path) -> None:
        if values.until:
            return
        measure_augmentations(run, values)
        scores.add(planned, run)

    planned = plan({" ".join(key): each for key, each in variants.items()}, values, data)
    train_all([each for each in planned if each not in scores], values, measure)
    if values.until == "trained":
        return
    measured = {(each.variant, each.seed): scores[each] for each in planned}
    found = {
        key: [measured[" ".join(key), seed].scores for seed in values.seeds] for key in variants
    }
    write_table(
        title,
        [
            f"Accuracy in %, mean ± standard deviation over seeds {values.seeds}.",
            f"Plain runs of {values.epochs:g} epochs; others have as many unless they say so, and"
            " beside some are plain runs of as many image forwards.",
            *rate_notes(rates, to_tune, values.epochs),
            *machine_notes(list(measured.values())),
            "Δ: difference of the linear probe to the plain run of the same seed, and to the one of"
            " as many forwards: mean ± standard error, and p of a paired t-test, not corrected for"
            " how many there are.",
            "IoU: overlap of the crops of pairs that were trained on, and of all pairs.",
            "s/step: median seconds of a step beside the plain one's.",
        ],
        ["", "", *PROBES, "Δ plain", "Δ forwards", "IoU", "s/step"],
        list(accuracy_rows(found)),
        values,
    )
    explained = list(found[values.methods[0], PLAIN][0].explained)
    write_table(
        f"{title}: what features know of augmentations",
        [
            "R² in % of the difference of two views' augmentation parameters, fitted on"
            f" {PAIRS:,} pairs.",
        ],
        ["", "", *explained],
        [
            [
                *key,
                *(mean_and_spread([seed.explained[name] for seed in seeds]) for name in explained),
            ]
            for key, seeds in found.items()
        ],
        values,
        append=True,
    )


def treatments_of(
    method: str, chosen: Mapping[str, Treatment], options: Sequence[str]
) -> Iterator[tuple[str, Treatment]]:
    """What is trained of a method: plain first; a treatment, then plain with as many forwards."""
    from forwards import forwards_per_step

    yield PLAIN, Treatment(())
    for name, treatment in chosen.items():
        if method in treatment.unfit:
            continue
        yield name, treatment
        if treatment.against_forwards:
            plain = [f"--method={method}", *options]
            more = forwards_per_step([*plain, *treatment.options]) / forwards_per_step(plain)
            yield f"{EQUAL} {name}", Treatment((), length=treatment.length * more)


def named_rate(text: str) -> tuple[str, float]:
    """Of METHOD=RATE."""
    method, _, rate = text.partition("=")
    return method, float(rate)


def rate_notes(rates: Mapping[str, float], tuned: Sequence[str], epochs: float) -> Iterator[str]:
    """What a table says of its learning rates."""
    of_how = {
        "chosen for the plain method by a tenth of the training images, after training on the"
        f" others for {epochs:g} epochs": [method for method in rates if method in tuned],
        "as given": [method for method in rates if method not in tuned],
    }
    for how, methods in of_how.items():
        if methods:
            listed = ", ".join(f"{method} {rates[method]:g}" for method in methods)
            yield f"Learning rates, {how}: {listed}."


def machine_notes(runs: Sequence[Measured]) -> Iterator[str]:
    """Where a table's runs were measured."""
    machines = Counter(run.machine for run in runs)
    if len(machines) == 1:
        yield f"Measured on {next(iter(machines))}."
    else:
        yield f"Measured on {'; '.join(f'{name}: {n} runs' for name, n in machines.items())}."


def accuracy_rows(found: Mapping[tuple[str, str], Sequence[Scores]]) -> Iterator[list[str]]:
    for (method, name), seeds in found.items():
        linear = [seed.accuracy["linear"] for seed in seeds]
        cells = [mean_and_spread([seed.accuracy[probe] for seed in seeds]) for probe in PROBES]
        plain = found[method, PLAIN]
        equal = found.get((method, f"{EQUAL} {name}"))
        for other in (None if name == PLAIN else plain, equal):
            cells.append("" if other is None else difference(linear, other))
        cells += [
            "" if key not in seeds[0].logged else f"{mean_of(seeds, key):.3f}"
            for key in ("hard_views/iou", "hard_views/iou_random")
        ]
        cells[-2:] = [" / ".join(cell for cell in cells[-2:] if cell)]
        rate = mean_of(seeds, "seconds") / mean_of(plain, "seconds")
        yield [method, name, *cells, f"{rate:.2f}×"]


def mean_of(seeds: Sequence[Scores], key: str) -> float:
    return statistics.mean(seed.logged[key] for seed in seeds)


def difference(accuracies: Sequence[float], other: Sequence[Scores]) -> str:
    """Of paired accuracies, in points."""
    pairs = zip(accuracies, other, strict=True)
    points = [100 * (mine - its.accuracy["linear"]) for mine, its in pairs]
    mean = statistics.mean(points)
    if len(points) == 1:
        return f"{mean:+.1f}"
    error = statistics.stdev(points) / math.sqrt(len(points))
    return f"{mean:+.1f} ± {error:.1f} (p {paired_p(points):.2g})"


def paired_p(points: Sequence[float]) -> float:
    """Two-sided p of Student's t-test that the mean of the differences is 0."""
    spread = statistics.stdev(points)
    if spread == 0:
        return 1.0 if points[0] == 0 else 0.0
    freedom = len(points) - 1
    t = abs(statistics.mean(points)) / (spread / math.sqrt(len(points)))
    # With x = √freedom tan θ the density's integral is that of cosᶠ⁻¹ θ.
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 10_001)
    whole = np.linspace(0, math.pi / 2, 10_001)
    tail, all_ = (np.trapezoid(np.cos(each) ** (freedom - 1), each) for each in (angles, whole))
    return float(tail / all_)


def measure_augmentations(training: Path, values: argparse.Namespace) -> None:
    """Writes `AUGMENTATIONS` of a training, on the same views whatever it was trained on."""
    measured = training / AUGMENTATIONS
    if measured.exists():
        return
    partial = measured.with_suffix(".partial")
    low, high = AugmentationRecipe().crop_scale
    arguments = ["evaluate", str(training / "backbone.safetensors"), f"--json={partial}"]
    arguments += ["--measure=augmentations", "--reference=false"]
    arguments += ["--data.name=folder", f"--data.path={values.path}"]
    arguments += [f"--data.max_images={PAIRS}", f"--data.max_test_images={PAIRS // 2}"]
    arguments += [f"--augment.crop_scale=[{low}, {high}]"]
    program(arguments, values.threads, training / "augmentations.log")
    partial.rename(measured)


def tuned_rates(
    values: argparse.Namespace, methods: Sequence[str], kept: ScoreFile
) -> dict[str, float]:
    """The best learning rate of each of these methods, plain.

    By a linear probe of held-out training images, with one seed that no table has; of `RATES`,
    doubled or halved while that is better, so that the best is never the grid's end.
    """
    if not methods:
        return {}
    tuning = copy(values)
    tuning.runs, tuning.seeds = values.runs / "tuning", [1000]
    folder = tuning.runs / "images"
    data = ["--data.name=folder", f"--data.path={folder}", *network(values.width)]
    scores: dict[str, dict[float, float]] = {method: {} for method in methods}
    while missing := {
        f"{method} {rate:g}": (method, rate)
        for method in methods
        for rate in next_rates(scores[method])
    }:
        variants = {
            name: Variant((f"--method={method}", f"--optimizer.lr={rate:g}"))
            for name, (method, rate) in missing.items()
        }
        planned = plan(variants, tuning, data)
        if to_train := [each for each in planned if each not in kept]:
            held_out(values.path, folder)
            train_all(to_train, tuning, kept.add)
        for each in planned:
            method, rate = missing[each.variant]
            scores[method][rate] = kept[each].scores.accuracy["linear"]
    return {method: max(found, key=found.__getitem__) for method, found in scores.items()}


def next_rates(scores: Mapping[float, float]) -> list[float]:
    """What to try after these rates' scores; nothing when the best lies between others."""
    if not scores:
        return list(RATES)
    best = max(scores, key=scores.__getitem__)
    ends = {min(scores): best / 2, max(scores): best * 2}
    return [ends[best]] if best in ends else []


def held_out(path: Path, folder: Path) -> Path:
    """A folder of links to the training images alone, of which every tenth is a test image."""
    of = folder.with_name(f"{folder.name}-of")  # a link that says whose
    if folder.exists():
        if not of.is_symlink() or of.readlink() != path.resolve():
            sys.exit(f"{folder} has images of another folder than {path}: choose another --runs")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    of.unlink(missing_ok=True)
    of.symlink_to(path.resolve())
    made = folder.with_suffix(".partial")
    for kind in sorted(each for each in (path / "train").iterdir() if each.is_dir()):
        for split in ("train", "test"):
            (made / split / kind.name).mkdir(parents=True, exist_ok=True)
        for position, image in enumerate(sorted(kind.iterdir())):
            split = "test" if position % HELD_OUT == 0 else "train"
            link = made / split / kind.name / image.name
            if not link.is_symlink():
                os.symlink(image.resolve(), link)
    made.rename(folder)
    return folder
