"""The floors of the house: who may use whom. A floor sees those below it, and no sibling."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mast_ext"

# Lowest first; modules of one floor are siblings, and none imports another.
FLOORS = [
    {"native", "compiling", "checks"},
    {"ops"},
    {"functional"},
    {"distributed"},
    {"losses", "augment", "data", "models"},
    {"methods", "benchmarks"},
    {"train"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

# What an import of mast_ext and its losses may pull in besides the standard library.
CORE_PACKAGES = {"mast_ext", "torch", "numpy"}

# Lowest first: what a file of each may include.
NATIVE_FLOORS = {
    "kernels": re.compile(
        r"<torch/headeronly/[\w/]+\.h>|<cuda\w*(\.h)?>|<immintrin\.h>|<(?!torch)[a-z_]+>"
        r"|\"kernels/[\w/.]+\""
    ),
    "host": re.compile(
        r"<ATen/core/Tensor\.h>|<ATen/(Context|ExpandUtils|Parallel|ThreadLocalState)\.h>"
        r"|<ATen/ops/(addmm|from_blob|mul|stack)\.h>|<c10/core/DeviceGuard\.h>|<sys/mman\.h>|<[a-z_]+>|\"(kernels|host)/[\w/.]+\""
    ),
    "binding": re.compile(r"<[a-z_]+>|\"(kernels|host|binding)/[\w/.]+\""),
}

# What the dispatcher is told about the ops, and by which file alone.
DISPATCHER_INCLUDES = {
    "library.cpp": {"<torch/library.h>"},
    "build_info.cpp": {"<torch/library.h>"},
    "op_handle.h": {
        "<ATen/core/LegacyTypeDispatch.h>",
        "<ATen/core/Tensor.h>",
        "<ATen/core/dispatch/Dispatcher.h>",
    },
    "composites.cpp": {
        "<ATen/ExpandUtils.h>",
        "<ATen/TensorSubclassLikeUtils.h>",
        "<torch/library.h>",
    },
    "formula.h": {
        "<ATen/FuncTorchTLS.h>",
        "<torch/csrc/autograd/custom_function.h>",
    },
    "autograd.cpp": {
        "<ATen/TensorSubclassLikeUtils.h>",
        "<torch/csrc/autograd/functions/utils.h>",
        "<torch/csrc/autograd/graph_task.h>",
        "<torch/library.h>",
    },
}


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of what a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """The member of a floor that a module belongs to; None for the package itself."""
    names = module.split(".")
    return names[1] if names[0] == "mast_ext" and len(names) > 1 else None


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if own in (None, "reference"):  # the package lists what is public; reference uses torch alone
        return
    for name in imports_of(path):
        other = part_of(name)
        if other in (None, own, "__version__"):
            continue
        if other == "reference":
            assert own == "benchmarks", f"{name} is for tests, benchmarks and docs"
            continue
        assert other in LEVEL, f"{name} has no floor"
        assert LEVEL[other] < LEVEL[own], f"{own} may not use {name}"


def test_reference_is_plain_torch():
    for name in imports_of(PACKAGE / "reference.py"):
        assert name.split(".")[0] in {"torch", "typing", "collections"}, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_ops_knows_the_dispatcher(path):
    if path.parent.name != "ops" and path.name != "native.py":
        assert "torch.ops." not in path.read_text()
        assert "mast_ext.native" not in imports_of(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_stay_where_they_belong(path):
    names = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names)
    part = path.relative_to(PACKAGE).parts[0]
    if part in ("__init__.py", "functional.py", "reference.py", "distributed.py", "ops", "losses"):
        assert names <= CORE_PACKAGES
    if path.relative_to(PACKAGE).as_posix() not in ("augment/dali.py", "augment/dali_graph.py"):
        assert "nvidia" not in names


@pytest.mark.parametrize("floor", NATIVE_FLOORS)
def test_native_includes(floor):
    allowed = NATIVE_FLOORS[floor]
    files = [path for path in sorted((ROOT / "csrc" / floor).rglob("*")) if path.is_file()]
    assert files
    for path in files:
        for line in re.findall(r"^\s*#\s*include (.*)$", path.read_text(), re.MULTILINE):
            dispatcher = line in DISPATCHER_INCLUDES.get(path.name, ())
            assert dispatcher or allowed.fullmatch(line), f"{path.relative_to(ROOT)}: {line}"


def test_devices_are_told_apart_in_one_place():
    """By run_on.h. chunk_limit.h has a limit of emulated kernels; the rest say what was built."""
    users = {
        path.name
        for folder in ("host", "binding")
        for path in (ROOT / "csrc" / folder).rglob("*")
        if path.is_file() and re.search(r"MAST_EXT_EMULATE_CUDA|is_cuda|, CUDA,", path.read_text())
    }
    assert users == {"run_on.h", "chunk_limit.h", "library.cpp", "build_info.cpp"}


def test_losses_load_no_compiler():
    """Which takes more than half as long as to import torch, and is in use in few programs."""
    code = "import mast_ext.losses, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "torchvision", "sympy"}
