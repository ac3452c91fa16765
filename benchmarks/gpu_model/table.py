r"""Predicts every CUDA kernel of a step, without a GPU, and writes the table of all.

    python tests/emulation/build.py  # the emulator, and by `make` the CUDA kernels
    MAST_EXT_LIBRARY=build/emulation/libmast_ext.so \
        python -m benchmarks.gpu_model.record_launches > launches.json
    python -m benchmarks.gpu_model.table launches.json benchmarks/results/gpu-model.md

FILE.json beside FILE.md has what tests/emulation/test_gpu_model.py compares with.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.chips import CHIPS, H100
from benchmarks.gpu_model.measured import measured
from benchmarks.gpu_model.model import Prediction, predict, short, text_of, work_of
from benchmarks.gpu_model.resources import ROOT, Resources, built

MEASURED = ROOT / "benchmarks" / "results" / "gpu-h100-kernels.md"
WORST = 5
HEAD = """\
# Kernels by a model

What each launch of a step (forward and backward; forward alone where there is no gradient) needs of
a GPU, by the compiler and by the emulator's count of blocks, and how long it should take, by a
model (`benchmarks/gpu_model/model.py`). **Predictions are no measurements.** Of the H100's times in
[gpu-h100-kernels.md](gpu-h100-kernels.md), some of which are of earlier versions of the kernels,
{count} launches, float32 included, are predicted. The ratio of prediction and time, the larger over
the smaller, is {median:.2f} in the median, and at most {most:.2f} for nine in ten. The model's
constants were chosen by these same times; `benchmarks/gpu_model/calibrate.py` says how well an
operator is predicted by the others' (docs/performance.md). There are no times of the H200, the A100
and the RTX 4090 to compare with; of the last two, whose tensor cores lose nothing by mma.sync,
predictions that tensor cores limit are too long. Farthest off, measured over predicted:

{worst}

A launch takes 4 us, and besides the longest of what it needs of memory, tensor cores, float32 and
special functions; caches, latencies inside of a block and the mix of instructions are not modelled.
bfloat16; sizes are views, batch and so on, as in `make bench`. *Registers*, of a thread, and *KB*,
of shared memory of a block, for sm_90a; *in SM*: blocks that an H100's SM holds; *waves*: blocks of
the launch over those that an H100 holds. *MB* and *GFLOP*: that it must move, and compute on tensor
cores or in float32. us of a launch. –: not modelled, or not measured. The RTX 4090 runs sm_80's
code.
"""
COLUMNS = [
    *("kernel", "launches", "blocks × threads", "registers", "KB", "in SM", "waves"),
    *("MB", "GFLOP", *(chip.name for chip in CHIPS), "limit (H100)", "measured (H100)"),
]


def predictions(
    steps: list[dict[str, Any]], resources: dict[tuple[str, str], Resources]
) -> dict[str, float]:
    """Microseconds of a kernel on an H100, of all its launches, by operator, step and kernel."""
    found: dict[str, float] = {}
    for step in steps:
        for launch in step["launches"]:
            work = work_of(step["operator"], step["case"], step["dtype"], launch)
            if work is None:
                continue
            own = resources[launch["kernel"], H100.architecture]
            microseconds = predict(launch, own, work, H100).microseconds or 0
            kernel = short(launch["kernel"])
            key = f"{step['operator']}, {text_of(step['case'])} {step['dtype']}, {kernel}"
            found[key] = found.get(key, 0) + launch["count"] * microseconds
    return found


def row_of(
    step: dict[str, Any],
    launch: dict[str, Any],
    resources: dict[tuple[str, str], Resources],
    seen: float | None,
) -> str:
    """A launch as a row of the table."""
    work = work_of(step["operator"], step["case"], step["dtype"], launch)
    own = {chip: resources[launch["kernel"], chip.architecture] for chip in CHIPS}
    all_of = [predict(launch, own[chip], work, chip) for chip in CHIPS]
    here: Prediction = all_of[0]
    shared = (own[H100].static_shared + launch["shared"]) / 1024
    cells = [f"`{short(launch['kernel'])}`", launch["count"]]
    cells += [f"{launch['blocks']} × {launch['threads']}", own[H100].registers, f"{shared:.1f}"]
    cells += [here.blocks_per_sm, f"{here.waves:.2f}"]
    if work is None:
        cells += ["–"] * (3 + len(CHIPS))
    else:
        cells += [f"{work.moved / 1e6:.1f}", f"{2 * (work.tensor + work.simple) / 1e9:.2f}"]
        cells += [f"{each.microseconds:.1f}" for each in all_of] + [here.limiter]
    cells.append("–" if seen is None else f"{seen:.1f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def table(steps: list[dict[str, Any]], resources: dict[tuple[str, str], Resources]) -> str:
    """All of it as Markdown."""
    times = measured(MEASURED)
    lines: list[str] = []
    ratios: list[tuple[float, str]] = []
    operator = ""
    for step in steps:
        shown = step["dtype"] == "bfloat16"
        size = text_of(step["case"])
        if shown and step["operator"] != operator:
            operator = step["operator"]
            lines += ["", f"## {operator}"]
        if shown:
            lines += ["", f"### {size}", "", f"| {' | '.join(COLUMNS)} |"]
            lines.append("|---" + "|---:" * (len(COLUMNS) - 1) + "|")
        for launch in step["launches"]:
            kernel = short(launch["kernel"])
            seen = times.get((step["operator"], size, step["dtype"], kernel))
            work = work_of(step["operator"], step["case"], step["dtype"], launch)
            if seen is not None and work is not None:
                own = resources[launch["kernel"], H100.architecture]
                ratio = seen / (predict(launch, own, work, H100).microseconds or math.nan)
                name = f"`{kernel}` of {step['operator']}, {size} {step['dtype']}"
                ratios.append((ratio, f"{name}, {ratio:.2f}"))
            if shown:
                lines.append(row_of(step, launch, resources, seen))
    ratios.sort(key=lambda pair: -abs(math.log(pair[0])))
    factors = [math.exp(abs(math.log(ratio))) for ratio, _ in ratios]
    head = HEAD.format(
        count=len(factors),
        median=statistics.median(factors),
        most=factors[len(factors) // 10],
        worst="\n".join(f"* {text}" for _, text in ratios[:WORST]),
    )
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicts the time of every CUDA kernel.")
    parser.add_argument("launches", type=Path, help="what record_launches.py printed")
    parser.add_argument("report", type=Path, help="FILE.md; FILE.json goes beside it")
    options = parser.parse_args()
    steps, resources = json.loads(options.launches.read_text()), built()
    if not resources:
        parser.error("build/ has no report of a CUDA build")
    options.report.write_text(table(steps, resources))
    found = {key: round(us, 2) for key, us in predictions(steps, resources).items()}
    options.report.with_suffix(".json").write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
