import subprocess

import pytest
from build import ROOT, build


@pytest.fixture(scope="session")
def run():
    """Runs a command and returns what it prints; fails with it when the command fails."""

    def run(*command, **options):
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
        assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
        return result.stdout

    return run


@pytest.fixture(scope="session")
def emulation():
    """The folder of the emulated build."""
    return build()


@pytest.fixture(scope="session")
def emulated_module(emulation):
    (module,) = emulation.glob("_C*.so")
    return module


@pytest.fixture(scope="session")
def watched_module(emulation):
    """The same with the race detector."""
    (module,) = (emulation / "races").glob("_C*.so")
    return module
