"""Prints folder, version and CUDA version of the torch in every given folder, or the installed one.

Without importing it: that takes seconds, and libraries that may still be downloading.
"""

import importlib.util
import runpy
import sys
from pathlib import Path


def installed() -> Path:
    """The folder of the torch that this Python would import."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("no torch")
    return Path(spec.origin).parent


for folder in [Path(folder) for folder in sys.argv[1:]] or [installed()]:
    version = runpy.run_path(str(folder / "version.py"))
    print(folder, version["__version__"], version["cuda"] or "none", sep="\n")
