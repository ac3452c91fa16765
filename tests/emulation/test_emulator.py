"""The emulator and its race detector find a fault where there is one (faults.cpp)."""

from pathlib import Path

import pytest

# By kernel of faults.cpp: what the launch is refused for.
MESSAGES = {
    "in_order": "no error",
    "no_threads": "a block may have 1024 threads, 64 in z, got 0 x 1 x 1",
    "many_threads": "a block may have 1024 threads, 64 in z, got 1025 x 1 x 1",
    "deep_block": "a block may have 1024 threads, 64 in z, got 1 x 1 x 65",
    "long_grid": "2147483647 x 65535 x 65535 blocks, got 2147483648 x 1 x 1",
    "high_grid": "2147483647 x 65535 x 65535 blocks, got 1 x 65536 x 1",
    "deep_grid": "2147483647 x 65535 x 65535 blocks, got 1 x 1 x 65536",
    "much_static": "53248 bytes of static and 0 of dynamic shared memory are more than 49152",
    "dynamic_unasked": "512 bytes of static and 49152 of dynamic shared memory are more than 49152",
    "dynamic_beyond_asked": "8192 bytes of dynamic shared memory, but only 4096 were asked for",
    "dynamic_beyond_limit": "102400 of dynamic shared memory are more than 49152",
    "writes_behind_dynamic": "writes behind its 4096 bytes of dynamic shared memory",
    "waits_at_two_barriers": "threads of a block wait at different barriers",
    "shuffles_half_a_warp": "threads wait for others that never come",
    "shuffles_two_ways": "lanes of a warp come to different instructions",
    "copies_to_odd_address": "target of an asynchronous copy is not at a multiple of 16 bytes",
    "copies_from_odd_address": "source of an asynchronous copy is not at a multiple of 16 bytes",
    "loads_odd_matrix": "a matrix row is not at a multiple of 16 bytes",
    "loads_odd_vector": "is not at a multiple of 16 bytes",
    "stores_to_shared_as_global": "target of a store to global memory is in shared memory",
    "copies_from_shared": "the source of an asynchronous copy is in shared memory",
    "write_the_same": "race: thread 1 writes what thread 0 writes",
    "read_without_barrier": "thread 0 reads shared memory that its block has not written yet",
    "read_after_shuffle": "race: thread 31 reads what thread 30 writes",
    "passes_barriers": "no error",
    "write_what_is_read": "race: thread 0 reads what thread 127 writes",
    "read_copy_on_its_way": "race: thread 0 reads what thread 0 has a copy on its way to",
    "read_copy_without_barrier": "reads shared memory that its block has not written yet",
    "leave_copy_on_its_way": "a thread ends before its asynchronous copies",
    "read_what_nobody_wrote": "thread 1 reads shared memory that its block has not written yet",
}


def test_finds_which_barriers_are_needed(run, emulation, tmp_path):
    """Those without which there would be a race, each on its own."""
    needed = tmp_path / "needed"
    run(emulation / "faults", "passes_barriers", env={"EMULATE_NEEDED": str(needed)})
    lines = Path(__file__).with_name("faults.cpp").read_text().splitlines()
    want = [i for i, line in enumerate(lines, 1) if "__syncthreads();  // needed" in line]
    found = [place.rpartition(":") for place in needed.read_text().splitlines()]
    assert all(path.endswith("faults.cpp") for path, _, _ in found)
    assert [int(line) for _, _, line in found] == want and len(want) == 2


def test_every_fault_is_listed(run, emulation):
    assert set(run(emulation / "faults").split()) == set(MESSAGES)


@pytest.mark.parametrize("fault", MESSAGES)
def test_finds(fault, run, emulation):
    assert MESSAGES[fault] in run(emulation / "faults", fault)
