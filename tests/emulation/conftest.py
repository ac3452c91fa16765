"""How the tests here use the builds of the emulated kernels (tests/conftest.py)."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run():
    """Runs a command and returns what it prints; fails with it when the command fails.

    On one thread: the emulator has no more, and PyTorch's others would only wait, at full speed.
    """

    def run(*command, env=None):
        result = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
        return result.stdout

    return run
