r"""Predicts every CUDA kernel, without a GPU, and compares with all times that were measured.

    python tests/emulation/build.py  # the emulator, and by `make` the CUDA kernels
    python -m benchmarks.gpu_model

Writes benchmarks/results/gpu-model.md and .json, and gpu-targets.md and gpu-instructions.md beside
them, and prints how well measured times of some operators and GPUs predict the others', and which
constants are best. Times are those of benchmarks/results/gpu-CHIP-kernels.json, or .md, by
`benchmarks/kernel_times.py --report` on a GPU of chips.py: after such a file is there, or the
kernels changed, this is the one command to run. New constants are written to model.py by hand; then
run it again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.calibrate import report
from benchmarks.gpu_model.instructions import disassembler, instructions_table, mixes_of
from benchmarks.gpu_model.measured import RESULTS, measured
from benchmarks.gpu_model.points import points_of
from benchmarks.gpu_model.resources import ROOT, built
from benchmarks.gpu_model.table import predictions, table
from benchmarks.gpu_model.targets import targets_table

EMULATOR = ROOT / "build" / "emulation" / "libmast_ext.so"


def record() -> list[dict[str, Any]]:
    """The launches of every step, of a process with the emulator."""
    command = [sys.executable, "-m", "benchmarks.gpu_model.record_launches"]
    environment = {**os.environ, "MAST_EXT_LIBRARY": str(EMULATOR)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    steps: list[dict[str, Any]] = json.loads(done.stdout)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicts the time of every CUDA kernel.")
    parser.add_argument("--launches", type=Path, help="of record_launches.py: not recorded again")
    parser.add_argument("--report", type=Path, default=RESULTS / "gpu-model.md", help="FILE.md")
    options = parser.parse_args()
    resources = built()
    if not resources:
        parser.error("build/ has no report of a CUDA build")
    if not options.launches and not EMULATOR.exists():
        parser.error(
            f"{EMULATOR.relative_to(ROOT)} is not there: tests/emulation/build.py makes it"
        )
    steps = json.loads(options.launches.read_text()) if options.launches else record()
    options.report.write_text(table(steps, resources))
    options.report.with_name("gpu-targets.md").write_text(targets_table(steps, resources))
    program = disassembler()
    if program is None:
        print("without cuobjdump gpu-instructions.md stays as it is", file=sys.stderr)
    else:
        mixes = instructions_table(steps, mixes_of(program))
        options.report.with_name("gpu-instructions.md").write_text(mixes)
    found = {key: round(us, 2) for key, us in predictions(steps, resources).items()}
    options.report.with_suffix(".json").write_text(json.dumps(found, indent=0) + "\n")
    for line in report(points_of(steps, resources, measured())):
        print(line, flush=True)


if __name__ == "__main__":
    main()
