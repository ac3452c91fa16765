"""The native libraries: loading them registers the ops of mast_ext with torch.

There are three kinds in ``mast_ext/lib``: the CPU kernels, the CUDA kernels for a major version of
CUDA, and a binding for every minor version of PyTorch, which registers the ops and calls the
kernels. None has a symbol of Python's, so they serve all versions of Python.

Attributes:
    build: What the libraries were compiled for (:func:`mast_ext.ops.build_info`).
    cpu_isa: The instruction set of the CPU kernels in this process.
    kept_elements: A limit that shape-only kernels need (csrc/host/columns/forms.h).
    no_cuda: Why CUDA kernels cannot run with this PyTorch, in a sentence; None if they can, or if
        this PyTorch has no CUDA itself.
"""

import ctypes
import os
import re
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("lib")
FROM_SOURCE = "`pip install --no-build-isolation .` in its source"


def _versions(kind: str) -> list[str]:
    """Of the libraries of this kind, in order."""
    names = [path.name for path in FOLDER.glob(f"libmast_ext_{kind}*.so")]
    found = [name.removeprefix(f"libmast_ext_{kind}").removesuffix(".so") for name in names]
    return sorted(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])


def _binding() -> Path:
    """The binding for this PyTorch, or an ImportError that says which ones there are."""
    # All releases of a minor version are alike to a library. What comes before a release is not.
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\+.*)?", torch.__version__)
    file = FOLDER / f"libmast_ext_torch{release[1] if release else torch.__version__}.so"
    if file.exists():
        return file
    there = _versions("torch")
    if not there:
        raise ImportError(
            f"the native libraries of mast_ext are not built: {FROM_SOURCE}, or there "
            "`python setup.py build_ext --inplace`"
        )
    raise ImportError(
        f"this mast_ext is for PyTorch {', '.join(there)}, not for {torch.__version__}: install "
        f"one of these, or build mast_ext for yours: {FROM_SOURCE}"
    )


def _load_cuda_kernels() -> str | None:
    """Makes them visible to the binding; returns why that is not possible."""
    if torch.version.hip is not None:
        return "its kernels are for CUDA, and this PyTorch is built for ROCm"
    if torch.version.cuda is None:
        return None
    major = torch.version.cuda.split(".")[0]
    there = _versions("cuda")
    if major not in there:
        ours = f"has kernels for CUDA {', '.join(there)}" if there else "was built without CUDA"
        return f"it {ours}, and this PyTorch is built for CUDA {torch.version.cuda}"
    file = FOLDER / f"libmast_ext_cuda{major}.so"
    try:
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"{file.name} does not load ({error})"
    return None


def _load() -> str | None:
    # The environment variable is for tests, which run other builds.
    if other := os.environ.get("MAST_EXT_LIBRARY"):
        torch.ops.load_library(other)
        return None
    file = _binding()
    reason = _load_cuda_kernels()
    try:
        torch.ops.load_library(file)
    except OSError as error:
        raise ImportError(
            f"{file.name} of mast_ext does not load with PyTorch {torch.__version__} "
            f"({error.__cause__ or error}): install mast_ext again, or build it: {FROM_SOURCE}"
        ) from error
    if reason is not None:
        torch.ops.mast_ext.no_cuda_library(reason)
    return reason


def _described(lines: str) -> dict[str, str | None]:
    pairs = (line.split("=", 1) for line in lines.splitlines())
    return {name: value or None for name, value in pairs}


no_cuda = _load()
build = _described(torch.ops.mast_ext.build_info())
kept_elements: int = torch.ops.mast_ext.kept_elements()
# A ValueError if MAST_EXT_CPU_ISA names what this machine does not have.
cpu_isa: str = torch.ops.mast_ext.cpu_isa()
