"""No kernel's threads race for shared memory, in any order of warps and copies."""

import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"

# Small inputs of every operator, which together pass every barrier. Of the contrastive kernels:
# with a fixed shift of the exponentials, and with a running one and a view left out. Thousands of
# rows, which a block walks along, are in one layout: few are in both.
TESTS = (
    "cpu and (matches_definition or matches_search or in_chunks or in_tiles) "
    "and (not contrastive or 0.5 or 0.02) and not (many_wide_rows and padded)"
)


def barriers():
    """Every `__syncthreads()` of the kernels, as file:line."""
    for path in sorted(KERNELS.rglob("*.cu*")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"\s*__syncthreads\(\)", line):
                yield f"{path.relative_to(KERNELS)}:{number}"


# Operators with a barrier for what threads of a block pass on in global memory.
GLOBAL_MEMORY = {"cross_correlation_penalty", "prototype_cross_entropy"}

ORDERS = {
    "first warp first, late copies": {},
    "last warp first, early copies": {"EMULATE_LAST_WARP_FIRST": "1", "EMULATE_EARLY_COPIES": "1"},
}


@pytest.mark.parametrize("order", ORDERS)
def test_no_kernel_races(order, run, watched_module):
    run(
        sys.executable, "-m", "pytest", "tests/ops", "-q", "-k", TESTS,
        "-p", "no:cacheprovider", f"--emulated-cuda={watched_module}",
        env=ORDERS[order],
    )  # fmt: skip


def test_every_barrier_is_needed(run, watched_module):
    """With any one taken out, an operator's tests fail with a race.

    Or with wrong results: the detector does not watch global memory, which a few barriers are for.
    """
    out = run(
        sys.executable, "tests/emulation/skip_barriers.py", watched_module, TESTS, *barriers()
    )
    found = dict(line.split(" ", 1) for line in out.splitlines())
    assert set(found) == set(barriers())
    others = {barrier: what for barrier, what in found.items() if what != "race"}
    assert set(others.values()) <= {"wrong results"}, others
    assert {Path(barrier).parent.name for barrier in others} <= GLOBAL_MEMORY, others
