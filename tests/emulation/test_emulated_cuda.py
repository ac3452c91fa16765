"""The operators' tests, and those of confident losses, on the CUDA kernels run on the CPU.

Without test_every_operator.py, which the sanitizers' tests run on them, and what test_races.py runs
on the same kernels, watched; and without what repeats itself here: blocks run one after the other,
whatever the number of threads, and the least, the middle and the largest of five probabilities tell
how exact a loss is.
"""

import sys

import pytest

TESTS = "cpu and not any_number_of_threads and not 0.9-torch and not 0.999-torch"


@pytest.mark.slow
def test_operators_on_emulated_kernels(run, emulated_module, watched_tests):
    out = run(
        sys.executable, "-m", "pytest", "tests/ops", "tests/losses/test_confident.py", "-q",
        "-k", f"{TESTS} and not ({watched_tests})", "--ignore=tests/ops/test_every_operator.py",
        "-p", "no:cacheprovider", f"--emulated-cuda={emulated_module}",
    )  # fmt: skip
    passed = [line for line in out.splitlines() if " passed" in line]
    assert passed and "failed" not in passed[-1] and int(passed[-1].split()[0]) > 100, out[-2000:]


LAUNCH = """
import torch
from mast_ext import functional
try:
    functional.subspace_similarity(torch.randn(2, 4, 8))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("error", [98, 209])
def test_a_gpu_without_kernels(error, run, emulated_module):
    """The launch's error says which GPU it is, what there are kernels for, and what to do."""
    env = {"MAST_EXT_LIBRARY": str(emulated_module), "EMULATE_ERROR": str(error)}
    said = run(sys.executable, "-c", LAUNCH, env=env)
    assert said.startswith(
        "NotImplementedError mast_ext has no kernels for cpu (emulated GPU, compute capability "
        "7.5): its CUDA library is compiled for 80-real. For a GPU of compute capability 8.0 or"
    )


def test_other_errors_of_launches_are_as_they_were(run, emulated_module):
    env = {"MAST_EXT_LIBRARY": str(emulated_module), "EMULATE_ERROR": "700"}
    assert run(sys.executable, "-c", LAUNCH, env=env).startswith(
        "RuntimeError emulated CUDA: error"
    )
