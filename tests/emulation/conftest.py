"""How the tests here use the builds of the emulated kernels (tests/conftest.py)."""

import subprocess
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
