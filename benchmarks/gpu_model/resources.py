"""What the compiler gave every CUDA kernel, by ptxas's report (csrc/cmake/keep_ptxas_report.sh)."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPORTS = "build/*/CMakeFiles/mast_ext_cuda*.dir/csrc/kernels/**/*.ptxas"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'"
    r"(?:(?!Compiling).)*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """Registers of a thread, and bytes of static shared memory of a block."""

    registers: int
    static_shared: int


# By the kernel's demangled name and the architecture, as ``"sm_90a"``.
AllResources = dict[tuple[str, str], Resources]


def resources_of(reports: list[str]) -> AllResources:
    """The resources of all kernels in ptxas's reports.

    Kernels of one name in several files, for which the name does not tell, have the most of each.
    """
    entries = [entry for report in reports for entry in ENTRY.finditer(report)]
    mangled = "\n".join(entry["name"] for entry in entries)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True)
    found: AllResources = {}
    for entry, name in zip(entries, names.stdout.splitlines(), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        key = (name, entry["architecture"])
        before = found.get(key, Resources(0, 0))
        found[key] = Resources(
            max(before.registers, int(entry["registers"])),
            max(before.static_shared, int(shared[1]) if shared else 0),
        )
    return found


def built() -> AllResources:
    """The resources of the last CUDA build in build/; none where CUDA was not compiled."""
    return resources_of([path.read_text() for path in sorted(ROOT.glob(REPORTS))])


def find(resources: AllResources, kernel: str, architecture: str) -> Resources:
    """The resources of one kernel.

    Raises:
        LookupError: The emulator has a kernel that the CUDA build has not.
    """
    try:
        return resources[kernel, architecture]
    except KeyError:
        raise LookupError(
            f"no report of {kernel} for {architecture} in build/: compile the CUDA kernels again"
        ) from None
