"""Predicts every CUDA kernel of a step, without a GPU, and writes the table of all.

FILE.json beside FILE.md has what tests/emulation/test_gpu_model.py compares with. Run by
__main__.py, which says how.
"""

from typing import Any

from benchmarks.gpu_model.chips import CHIPS, H100, Chip
from benchmarks.gpu_model.measured import Times, measured
from benchmarks.gpu_model.model import CONSTANTS, Prediction, predict, short, text_of, work_of
from benchmarks.gpu_model.points import factors, points_of
from benchmarks.gpu_model.resources import AllResources, find

WORST = 5  # of each chip
HEAD = """\
# Kernels by a model

What each launch of a step (forward and backward; forward alone where there is no gradient) needs of
a GPU, by the compiler and by the emulator's count of blocks, and how long it should take, by a
model (`benchmarks/gpu_model/model.py`). **Predictions are no measurements.** How they compare with
the times that were measured, some of which are of earlier versions of the kernels, float32
included; a factor is the ratio of prediction and time, the larger over the smaller:

{agreement}

The model's constants were chosen by these same times; docs/performance.md says how
well an operator is predicted by the others', and a GPU by another one.
{unmeasured}The tensor cores of the A100 and the RTX 4090 lose nothing by mma.sync: what they limit
is predicted to take too long there. Farthest off, measured over predicted:

{worst}

A launch takes {launch:.1f} us, and besides the longest of what it needs of memory, tensor cores,
float32 and special functions; caches, latencies inside of a block and the mix of instructions are
not modelled. bfloat16; sizes are views, batch and so on, as in `make bench`. *Registers*, of a
thread, and *KB*, of shared memory of a block, for sm_90a; *in SM*: blocks that an H100's SM holds;
*waves*: blocks of the launch over those that an H100 holds. *MB* and *GFLOP*: that it must move,
and compute on tensor cores or in float32. us of a launch are predicted, unless *measured* is
written. –: not modelled, or not measured. The RTX 4090 runs sm_80's code.
"""
COLUMNS = [
    *("kernel", "launches", "blocks × threads", "registers", "KB", "in SM", "waves"),
    *("MB", "GFLOP", "limit (H100)"),
]


def predictions(steps: list[dict[str, Any]], resources: AllResources) -> dict[str, float]:
    """Microseconds of a kernel on an H100, of all its launches, by operator, step and kernel."""
    found: dict[str, float] = {}
    for step in steps:
        for launch in step["launches"]:
            work = work_of(step, launch)
            if work is None:
                continue
            own = find(resources, launch["kernel"], H100.architecture)
            microseconds = predict(launch, own, work, H100).microseconds or 0
            kernel = short(launch["kernel"])
            key = f"{step['operator']}, {text_of(step['case'])} {step['dtype']}, {kernel}"
            found[key] = found.get(key, 0) + launch["count"] * microseconds
    return found


def row_of(
    step: dict[str, Any],
    launch: dict[str, Any],
    resources: AllResources,
    times: dict[Chip, Times],
) -> str:
    """A launch as a row of the table."""
    kernel, work = short(launch["kernel"]), work_of(step, launch)
    key = (step["operator"], text_of(step["case"]), step["dtype"], kernel)
    own = {chip: find(resources, launch["kernel"], chip.architecture) for chip in CHIPS}
    all_of = {chip: predict(launch, own[chip], work, chip) for chip in CHIPS}
    here: Prediction = all_of[H100]
    shared = (own[H100].static_shared + launch["shared"]) / 1024
    cells = [f"`{kernel}`", launch["count"]]
    cells += [f"{launch['blocks']} × {launch['threads']}", own[H100].registers, f"{shared:.1f}"]
    cells += [here.blocks_per_sm, f"{here.waves:.2f}"]
    if work is None:
        cells += ["–"] * 3
    else:
        cells += [f"{work.moved / 1e6:.1f}", f"{2 * (work.tensor + work.simple) / 1e9:.2f}"]
        cells.append(here.limiter)
    for chip in CHIPS:
        cells.append(_number(all_of[chip].microseconds))
        if chip in times:
            cells.append(_number(times[chip].get(key)))
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(microseconds: float | None) -> str:
    return "–" if microseconds is None else f"{microseconds:.1f}"


def table(steps: list[dict[str, Any]], resources: AllResources) -> str:
    """The page as Markdown."""
    times = measured()
    columns = list(COLUMNS)
    for chip in CHIPS:
        columns += [chip.name] + ([f"{chip.name}, measured"] if chip in times else [])
    lines: list[str] = []
    operator = ""
    for step in steps:
        if step["dtype"] != "bfloat16":
            continue
        if step["operator"] != operator:
            operator = step["operator"]
            lines += ["", f"## {operator}"]
        lines += ["", f"### {text_of(step['case'])}", "", f"| {' | '.join(columns)} |"]
        lines.append("|---" + "|---:" * (len(columns) - 1) + "|")
        lines += [row_of(step, launch, resources, times) for launch in step["launches"]]
    agreement = [
        "| measured on | launches | factor, median | nine in ten |",
        "|---|---:|---:|---:|",
    ]
    worst = []
    points = points_of(steps, resources, times)
    for chip in times:
        own = sorted((p for p in points if p.chip == chip), key=lambda p: -p.error())
        median, most = factors([point.error() for point in own])
        agreement.append(f"| {chip.name} | {len(own)} | {median:.2f} | {most:.2f} |")
        worst += [f"* {chip.name}: {point.name}, {point.ratio():.2f}" for point in own[:WORST]]
    unmeasured = " and the ".join(chip.name for chip in CHIPS if chip not in times)
    head = HEAD.format(
        agreement="\n".join(agreement),
        unmeasured=f"There are no times of the {unmeasured}.\n" if unmeasured else "",
        worst="\n".join(worst),
        launch=1e6 * CONSTANTS.launch,
    )
    return head + "\n".join(lines) + "\n"
