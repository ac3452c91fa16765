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
