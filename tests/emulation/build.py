"""Builds the CUDA kernels for the CPU, for the tests in this folder.

Prints the folder of the build. In it are `_C*.so`, the same with the race detector in `races`, and
`faults`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "emulated"
OPTIONS = [
    "-DMAST_EXT_CUDA=OFF",
    "-DMAST_EXT_EMULATE_CUDA=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    f"-DPython_EXECUTABLE={sys.executable}",
]
TARGETS = ["all", "emulated_races", "faults"]

for command in (
    ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *OPTIONS],
    ["cmake", "--build", BUILD, "--target", *TARGETS],
):
    if code := subprocess.run(command).returncode:
        sys.exit(code)
print(BUILD)
