"""Builds the CUDA kernels for the CPU and runs the operators' tests on them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "emulated"


def run(*command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def emulated_module():
    options = [
        "-DMAST_EXT_CUDA=OFF",
        "-DMAST_EXT_EMULATE_CUDA=ON",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    run("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options)
    run("cmake", "--build", str(BUILD))
    (module,) = BUILD.glob("_C*.so")
    return module


def test_operators_on_emulated_kernels(emulated_module):
    out = run(
        sys.executable, "-m", "pytest", "tests/ops", "-q", "-k", "cpu", "-p", "no:cacheprovider",
        f"--emulated-cuda={emulated_module}",
    )  # fmt: skip
    passed = [line for line in out.splitlines() if " passed" in line]
    assert passed and "failed" not in passed[-1] and int(passed[-1].split()[0]) > 100, out[-2000:]
