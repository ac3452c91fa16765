"""Prints folder, version and CUDA version of the installed torch, without importing it."""

import importlib.util
import runpy
from pathlib import Path

spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    raise SystemExit("no torch")
folder = Path(spec.origin).parent
version = runpy.run_path(str(folder / "version.py"))
print(folder, version["__version__"], version["cuda"] or "", sep=";", end="")
