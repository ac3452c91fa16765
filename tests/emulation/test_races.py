"""No kernel's threads race for shared memory, in any order of warps and copies."""

import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"


def barriers():
    """Every `__syncthreads()` of the kernels, as file:line."""
    for path in sorted(KERNELS.rglob("*.cu*")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"\s*__syncthreads\(\)", line):
                yield f"{path.relative_to(KERNELS)}:{number}"


# Operators with a barrier for what threads of a block pass on in global memory.
GLOBAL_MEMORY = {"cross_correlation_penalty", "prototype_cross_entropy"}

# The second order is for what the first cannot see, which does not depend on padding.
ORDERS = {
    "first warp first, late copies": ("", {}),
    "last warp first, early copies": (
        " and not padded",
        {"EMULATE_LAST_WARP_FIRST": "1", "EMULATE_EARLY_COPIES": "1"},
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_no_kernel_races(order, run, watched_module, watched_tests):
    without, environment = ORDERS[order]
    run(
        sys.executable, "-m", "pytest", "tests/ops", "-q", "-k", watched_tests + without,
        "-p", "no:cacheprovider", f"--emulated-cuda={watched_module}",
        env=environment,
    )  # fmt: skip


def test_every_barrier_is_needed(run, watched_module, watched_tests):
    """With any one taken out, an operator's tests fail with a race.

    Or with wrong results: the detector does not watch global memory, which a few barriers are for.
    """
    out = run(
        sys.executable,
        "tests/emulation/skip_barriers.py",
        watched_module,
        watched_tests,
        *barriers(),
    )  # fmt: skip
    found = dict(line.split(" ", 1) for line in out.splitlines())
    assert set(found) == set(barriers())
    others = {barrier: what for barrier, what in found.items() if what != "race"}
    assert set(others.values()) <= {"wrong results"}, others
    assert {Path(barrier).parent.name for barrier in others} <= GLOBAL_MEMORY, others
