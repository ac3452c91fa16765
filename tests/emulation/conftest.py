"""The CUDA kernels built for the CPU, and how the tests here use them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run():
    """Runs a command and returns what it prints; fails with it when the command fails."""

    def run(*command, **options):
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
        assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
        return result.stdout

    return run


@pytest.fixture(scope="session")
def emulation(run):
    """The folder of the build, which is up to date after this."""
    return Path(run(sys.executable, "tests/emulation/build.py").splitlines()[-1])


@pytest.fixture(scope="session")
def emulated_module(emulation):
    (module,) = emulation.glob("_C*.so")
    return module


@pytest.fixture(scope="session")
def watched_module(emulation):
    """The same with the race detector."""
    (module,) = (emulation / "races").glob("_C*.so")
    return module
