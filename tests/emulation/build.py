"""Builds the modules for tests that need no GPU (modules.cmake) and prints their folder.

What is there already is not compiled again.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "emulation"
OPTIONS = [
    "-DMAST_EXT_CUDA=OFF",
    "-DMAST_EXT_EMULATE_CUDA=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    f"-DPython_EXECUTABLE={sys.executable}",
]


def build() -> int:
    """Returns the exit code of the step that failed, or 0."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (FOLDER / "lock").open("w")  # until the process ends: another may want the same build
    fcntl.flock(lock, fcntl.LOCK_EX)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    for command in (
        ["cmake", "-S", ROOT, "-B", FOLDER, "-G", "Ninja", *OPTIONS],
        ["cmake", "--build", FOLDER, "--parallel", jobs],
    ):
        if code := subprocess.run(command).returncode:
            return code
    print(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(build())
