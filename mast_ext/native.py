"""The native library: loading it registers the ops of mast_ext with torch.

It has no symbol of Python's, so that one serves all versions of Python.

Attributes:
    build: What the library was compiled for (:func:`mast_ext.ops.build_info`).
    cpu_isa: The instruction set of the CPU kernels in this process.
    kept_elements: A limit that shape-only kernels need (csrc/host/columns/forms.h).
"""

import os
from pathlib import Path

import torch

# The environment variable is for tests, which run other builds of the library.
FILE = os.environ.get("MAST_EXT_LIBRARY") or str(Path(__file__).with_name("libmast_ext.so"))

try:
    torch.ops.load_library(FILE)
except OSError as error:
    raise ImportError(
        f"the native library of mast_ext does not load ({error}): build it against the installed "
        "PyTorch with `pip install --no-build-isolation .`"
    ) from error


def _described(lines: str) -> dict[str, str | None]:
    pairs = (line.split("=", 1) for line in lines.splitlines())
    return {name: value or None for name, value in pairs}


build = _described(torch.ops.mast_ext.build_info())
kept_elements: int = torch.ops.mast_ext.kept_elements()
# A ValueError if MAST_EXT_CPU_ISA names what this machine does not have.
cpu_isa: str = torch.ops.mast_ext.cpu_isa()
