"""Peak resident memory of one call, in a process of its own.

python peak_memory.py FILE CONTESTANT CASE MODE prints the bytes by which the process grew
over its size with the inputs made and the code warm. Linux only.
"""

import importlib.util
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import Workload, step_of  # noqa: E402


def load_workload(file: str) -> Workload:
    spec = importlib.util.spec_from_file_location("workload", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WORKLOAD


def peak() -> int:
    """The largest resident size since the process began (getrusage would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main(file: str, name: str, case: str, mode: str) -> None:
    workload = load_workload(file)
    function = workload.contestants[name]
    small = workload.make_inputs(workload.cases[0], "cpu", torch.float32)
    step_of(function, small, mode)()
    inputs = workload.make_inputs(workload.cases[int(case)], "cpu", torch.float32)
    before = peak()
    step_of(function, inputs, mode)()
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
