"""Every workload at all of its sizes, on every device there is, under pytest-benchmark."""

import pytest

from mast_ext.benchmarks.harness import MODES
from mast_ext.benchmarks.ops import workloads

RUNS = [
    pytest.param(name, device, case, mode, id=f"{name}-{device}-{case}-{mode}")
    for name, workload in workloads().items()
    for device, case in workload.runs()
    for mode in (MODES if workload.backward else MODES[:1])
]


@pytest.mark.parametrize(("name", "device", "case", "mode"), RUNS)
def bench_ops(compare, name, device, case, mode):
    compare(workloads()[name], device, case, mode)
