"""The workloads: each operator or loss, its rivals, and the sizes at which they are compared."""

import functools
import importlib
import pkgutil

from mast_ext.benchmarks.harness import Workload


@functools.cache
def workloads() -> dict[str, Workload]:
    """All of them by name. Imports PyTorch's compiler, which takes a second."""
    found: dict[str, Workload] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        here = [value for value in vars(module).values() if isinstance(value, Workload)]
        found |= {workload.name: workload for workload in here}
    return found
