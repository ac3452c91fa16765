"""The CPU kernels are compiled for several instruction sets; a process uses one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mast_ext import ops

ROOT = Path(__file__).parents[2]
BUILD = ops.build_info()
# Those that say whether a result is right, in one memory layout.
TESTS = [
    *("tests/ops", "-m", "not dispatch", "-k", "cpu", "--one-layout"),
    *("--ignore=tests/ops/test_every_operator.py", "--ignore=tests/ops/test_invariance.py"),
]


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"MAST_EXT_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif("MAST_EXT_CPU_ISA" in os.environ, reason="MAST_EXT_CPU_ISA chooses one set")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_operators_are_right_with(isa):
    if isa == BUILD["cpu_isa_in_use"]:
        pytest.skip("what all other tests of this process use")
    found = run(isa, "-c", "from mast_ext import ops; print(ops.build_info()['cpu_isa_in_use'])")
    if found.returncode != 0 and "MAST_EXT_CPU_ISA must be one of" in found.stderr:
        pytest.skip(f"this CPU or this build has no {isa} ({BUILD['cpu_isas']})")
    assert found.stdout.split() == [isa], found.stderr
    result = run(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert result.returncode == 0, result.stdout[-4000:]


def test_unknown_set_is_refused():
    result = run("sse9", "-c", "import mast_ext.functional")
    assert result.returncode != 0
    assert "ValueError: MAST_EXT_CPU_ISA must be one of" in result.stderr
    assert f"{BUILD['cpu_isas'].split()[0]}; got sse9" in result.stderr
