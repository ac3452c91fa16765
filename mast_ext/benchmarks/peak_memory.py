"""Peak resident memory of one call, in a process of its own.

``python -m mast_ext.benchmarks.peak_memory WORKLOAD CONTESTANT CASE MODE``, with a case as JSON,
prints the bytes by which the process grew over its size with the inputs made and the code warm.
Linux only.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from mast_ext.benchmarks.harness import step_of
from mast_ext.benchmarks.ops import workloads

CLEAR = Path("/proc/self/clear_refs")
"""A file of Linux: 5 written to it resets the peak."""

_SMALL = 16  # rows, dimensions, …: what the code is warmed with


def peak() -> int:
    """The largest resident size since `forget` (getrusage would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def forget() -> None:
    """Gives freed memory back to the system, and has `peak` begin anew.

    Else what the call takes could be memory that was freed before, or lie below a peak of imports,
    and would not be counted.

    Raises:
        OSError: The system does not let it, as some sandboxes do not.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError as error:
        raise OSError(f"the peak of memory cannot be reset: {CLEAR} ({error.strerror})") from error


def main(name: str, contestant: str, case: str, mode: str) -> None:
    """Prints the bytes."""
    workload, sizes = workloads()[name], json.loads(case)
    function = workload.contestants[contestant]
    small = {each: min(size, _SMALL) for each, size in sizes.items()}
    step_of(function, workload.make_inputs(small, "cpu", torch.float32), mode)()
    step = step_of(function, workload.make_inputs(sizes, "cpu", torch.float32), mode)
    if contestant.startswith("torch.compile"):
        step()  # it is compiled for these sizes alone
        step = step_of(function, workload.make_inputs(sizes, "cpu", torch.float32), mode)
    forget()
    before = peak()
    step()
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
