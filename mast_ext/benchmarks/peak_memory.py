"""Peak resident memory of one call, in a process of its own.

``python -m mast_ext.benchmarks.peak_memory WORKLOAD CONTESTANT CASE MODE``, with a case as JSON,
prints the bytes by which the process grew over its size with the inputs made and the code warm.
Linux only.
"""

import json
import sys
from pathlib import Path

import torch

from mast_ext.benchmarks.harness import step_of
from mast_ext.benchmarks.ops import workloads


def peak() -> int:
    """The largest resident size since the process began (getrusage would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main(name: str, contestant: str, case: str, mode: str) -> None:
    """Prints the bytes."""
    workload = workloads()[name]
    function = workload.contestants[contestant]
    small = workload.make_inputs(workload.cases[0], "cpu", torch.float32)
    step_of(function, small, mode)()
    inputs = workload.make_inputs(json.loads(case), "cpu", torch.float32)
    before = peak()
    step_of(function, inputs, mode)()
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
