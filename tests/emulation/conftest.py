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


@pytest.fixture(scope="session")
def watched_tests():
    """Which tests run on kernels whose every load and store is watched for races.

    Small inputs of every operator, which together pass every barrier. Of the contrastive kernels:
    with a fixed shift of the exponentials, and with a running one and a view left out. Thousands of
    rows, which a block walks along, are in one layout: few are in both. float16 passes through
    shared memory as bfloat16 does.
    """
    return (
        "cpu and (matches_definition or matches_search or in_chunks or in_tiles) "
        "and (not contrastive or 0.5 or 0.02) and not (many_wide_rows and padded) "
        "and not torch.float16"
    )
