"""No kernel's threads race for shared memory, in any order of warps and copies."""

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
            if "__syncthreads()" in line.partition("//")[0]:
                yield f"{path.relative_to(KERNELS)}:{number}"


# Operators with a barrier for what threads of a block pass on in global memory.
GLOBAL_MEMORY = {"cross_correlation_penalty", "prototype_cross_entropy"}


@pytest.fixture(scope="module")
def watch(run, watched_module, watched_tests):
    """Runs the watched tests."""

    def watch(without="", **environment):
        run(
            sys.executable, "-m", "pytest", "tests/ops", "-q", "-k", watched_tests + without,
            "-p", "no:cacheprovider", f"--emulated-cuda={watched_module}",
            env=environment,
        )  # fmt: skip

    return watch


@pytest.fixture(scope="module")
def needed(watch, tmp_path_factory):
    """The barriers without which the detector sees a race, of all that the tests pass."""
    file = tmp_path_factory.mktemp("barriers") / "needed"
    file.touch()
    watch(EMULATE_NEEDED=str(file))
    return {place.rpartition("/csrc/kernels/")[2] for place in file.read_text().splitlines()}


def test_no_kernel_races_and_every_barrier_is_needed(needed, run, watched_module, watched_tests):
    """First warp first, late copies.

    The detector does not watch global memory, which a few barriers are for. Without one of these,
    the operator's tests, which run once more for each, fail with wrong results.
    """
    assert needed <= set(barriers())
    others = sorted(set(barriers()) - needed)
    assert {Path(barrier).parent.name for barrier in others} <= GLOBAL_MEMORY, others
    out = run(
        sys.executable, "tests/emulation/skip_barriers.py", watched_module, watched_tests, *others
    )
    assert out.splitlines() == [f"{barrier} wrong results" for barrier in others]


def test_no_kernel_races_in_the_opposite_order(watch):
    """Last warp first, early copies: for what the first order cannot see.

    That does not depend on padding.
    """
    watch(" and not padded", EMULATE_LAST_WARP_FIRST="1", EMULATE_EARLY_COPIES="1")
