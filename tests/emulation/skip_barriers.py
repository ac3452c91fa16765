"""skip_barriers.py MODULE TESTS FILE:LINE...: runs an operator's tests without one barrier.

For barriers that order global memory, which the race detector does not watch. Does so for one after
the other, with the tests that `-k TESTS` selects, and prints a line for each: the barrier, and
"race", or "wrong results", or "nothing" where no test fails.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest


class FirstFailure:
    """Keeps what the first test that fails says."""

    text = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.text:
            self.text = report.longreprtext


def outcome(module, tests, barrier):
    operator = Path(barrier).parent.name
    failure = FirstFailure()
    os.environ["EMULATE_SKIP_BARRIER"] = barrier
    arguments = [
        f"tests/ops/test_{operator}.py", "-k", tests, "-x",
        "-p", "no:cacheprovider", f"--emulated-cuda={module}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(arguments, plugins=[failure])
    if "race: thread" in failure.text or "has not written yet" in failure.text:
        return "race"
    return "wrong results" if failure.text else "nothing"


module, tests, *barriers = sys.argv[1:]
for barrier in barriers:
    os.environ.pop("EMULATE_LAST_WARP_FIRST", None)
    found = outcome(module, tests, barrier)
    if found == "nothing":  # what the first warp does for the others
        os.environ["EMULATE_LAST_WARP_FIRST"] = "1"
        found = outcome(module, tests, barrier)
    print(barrier, found, flush=True)
