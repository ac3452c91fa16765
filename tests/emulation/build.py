"""Builds the native code for tests that need no GPU: `build.py emulated`, `build.py sanitized`.

Prints the folder of the build. In `emulated` are the CUDA kernels for the CPU, `_C*.so`, the same
with the race detector in `races`, and `faults`. `sanitized` has AddressSanitizer and
UndefinedBehaviorSanitizer in a `_C*.so` of the emulated kernels and of the CPU's. What is there
already is not compiled again.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "-DMAST_EXT_CUDA=OFF",
    "-DMAST_EXT_EMULATE_CUDA=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    f"-DPython_EXECUTABLE={sys.executable}",
]
BUILDS = {
    "emulated": ([], ["all", "emulated_races", "faults"]),
    "sanitized": (["-DMAST_EXT_SANITIZE=ON"], ["all"]),
}


def build(name: str) -> int:
    """Returns the exit code of the step that failed, or 0."""
    options, targets = BUILDS[name]
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")  # until the process ends: another may want the same build
    fcntl.flock(lock, fcntl.LOCK_EX)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *OPTIONS, *options],
        ["cmake", "--build", folder, "--parallel", jobs, "--target", *targets],
    ):
        if code := subprocess.run(command).returncode:
            return code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(build(sys.argv[1]))
