"""What the kernels need of a GPU, from the compiler's report: shared memory and spills.

csrc/cmake/keep_ptxas_report.sh keeps the report of every CUDA build.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"

# Of a block, in bytes: on every GPU since sm_80; and without asking (launch.cuh).
MOST_SHARED, UNASKED_SHARED = 99 << 10, 48 << 10

# Kernels that keep part of a thread's variables in memory, and for how many bytes of stack and of
# spills at most: registers that did not fit, and arrays that are indexed at run time.
SPILLS = {
    "fused_backward": 608,  # of 256 dimensions on sm_100; else 224
    "forward_tiles": 256,
    "tile_weights": 208,
    "rows_of_slice": 144,
    "search": 80,  # of two planes
    "dots": 80,
    "matrix_and_differences": 68,  # of widths that are no packets, on sm_80 and sm_120
    "backward": 80,
    "finish_rows": 48,
    "write_shifted": 40,  # on sm_80 alone
    "forward": 32,
    "sum_pairs_unmasked": 32,
    "select_of_many": 16,
    "sigmoid_tiles": 16,  # one register, which branches in the place of selections would save
}

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used \d+ registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass
class Kernel:
    """One instantiation, compiled for one architecture."""

    name: str
    architecture: str
    stack: int
    spills: int
    static_shared: int

    @property
    def template(self):
        """The name alone, without arguments."""
        scoped = re.split("[<(]", self.name.replace("(anonymous namespace)::", ""))[0]
        return scoped.split("::")[-1].split()[-1]

    @property
    def most_dynamic_shared(self):
        """What DynamicShared<...>, its first parameter, says."""
        found = re.search(r"\((?:\w+::)*DynamicShared<(?:\(int\))?(\d+)>", self.name)
        return int(found[1]) if found else 0


def kernels_of(report):
    """The kernels of what `ptxas -v` printed."""
    entries = list(ENTRY.finditer(report))
    names = "\n".join(entry["name"] for entry in entries)
    names = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    for entry, name in zip(entries, names.stdout.splitlines(), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        yield Kernel(
            name=name,
            architecture=entry["architecture"],
            stack=int(entry["stack"]),
            spills=int(entry["stores"]) + int(entry["loads"]),
            static_shared=int(shared[1]) if shared else 0,
        )


def problems_of(kernel):
    """What of `kernel` no GPU, or not every one, could launch."""
    dynamic, static = kernel.most_dynamic_shared, kernel.static_shared
    most_static = UNASKED_SHARED if dynamic == 0 else MOST_SHARED - dynamic
    if static > most_static:
        yield f"{static} bytes of static shared memory beside {dynamic} of dynamic"
    if kernel.stack + kernel.spills > SPILLS.get(kernel.template, 0):
        yield f"{kernel.stack} bytes of stack, {kernel.spills} of spills"


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5tilesIfLi49152EEv13DynamicSharedIXT0_EE4Work' for 'sm_90a'
ptxas info    : Function properties for _Z5tilesIfLi49152EEv13DynamicSharedIXT0_EE4Work
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 224 registers, used 1 barriers, {static} bytes smem
ptxas info    : Compile time = 51.077 ms
"""  # noqa: E501


def test_reads_a_report():
    (kernel,) = kernels_of(REPORT.format(stack=0, spills=0, static=1536))
    assert (kernel.architecture, kernel.static_shared) == ("sm_90a", 1536)
    assert kernel.template == "tiles" and kernel.most_dynamic_shared == 49152
    assert list(problems_of(kernel)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"static": 52225}, "52225 bytes of static shared memory beside 49152 of dynamic"),
        ({"stack": 8}, "8 bytes of stack, 0 of spills"),
        ({"spills": 4}, "0 bytes of stack, 4 of spills"),
    ],
    ids=str,
)
def test_finds_what_does_not_fit(change, problem):
    fits = {"stack": 0, "spills": 0, "static": 1536}
    (kernel,) = kernels_of(REPORT.format(**(fits | change)))
    assert list(problems_of(kernel)) == [problem]


def test_every_kernel_says_how_many_threads_it_has():
    """With launch bounds the compiler uses no more registers than a block's threads have."""
    paths = sorted(KERNELS.rglob("*.cu*"))
    assert paths
    for path in paths:
        text = path.read_text()
        bounded = re.findall(r"__global__\s+void\s+__launch_bounds__\(", text)
        assert len(bounded) == text.count("__global__"), path.relative_to(ROOT)


def test_kernels_fit_every_gpu():
    reports = sorted(ROOT.glob("build/*/CMakeFiles/mast_ext_cuda*.dir/csrc/kernels/**/*.ptxas"))
    if not reports:
        pytest.skip("no report of a CUDA build in build/: no nvcc, or MAST_EXT_CUDA=OFF")
    kernels = [kernel for path in reports for kernel in kernels_of(path.read_text())]
    assert {path.name.split(".")[0] for path in reports} == {
        path.stem for path in KERNELS.rglob("*.cu")
    }
    problems = [
        f"{kernel.name} for {kernel.architecture}: {problem}"
        for kernel in kernels
        for problem in problems_of(kernel)
    ]
    assert not problems, "\n".join(problems)
    assert any(kernel.most_dynamic_shared > 0 for kernel in kernels)
