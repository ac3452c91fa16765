"""Builds the CUDA kernels for the CPU, once for `make test` and the tests in this folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "emulated"


def build():
    """Returns the folder of the build: `_C*.so`, `races/_C*.so` and `faults`."""
    options = [
        "-DMAST_EXT_CUDA=OFF",
        "-DMAST_EXT_EMULATE_CUDA=ON",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    targets = ["all", "emulated_races", "faults"]
    for command in (
        ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options],
        ["cmake", "--build", BUILD, "--target", *targets],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(result.stdout[-8000:] + result.stderr[-4000:])
    return BUILD


if __name__ == "__main__":
    build()
