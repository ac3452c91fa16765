"""``mast-ext doctor``: what is installed, what is fast, what is missing and how to mend it.

It imports nothing that may be absent: versions come from package metadata, and the native libraries
are tried last.
"""

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mast_ext.cli.errors import UsageError

TRAINING = {
    "jinja2": "jinja2",
    "jsonargparse": "jsonargparse",
    "lightning": "lightning",
    "matplotlib": "matplotlib",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "torchmetrics": "torchmetrics",
    "timm": "timm",
    "torchvision": "torchvision",
}
"""What the training side needs: name of the package, name of its module."""

OPTIONAL = {
    "datasets": "data.name huggingface needs it: mast-ext[huggingface]",
    "tifffile": "TIFF files of many channels or 16 bits in color need it: mast-ext[images]",
    "imagecodecs": "PNG files in color of 16 bits need it: mast-ext[images]",
}
"""Packages for images of some kinds, and which need them."""

INSTALL_TRAINING = "pip install 'mast-ext[train]'"
USAGE = """\
usage: mast-ext doctor [--train]

What is installed, what is fast, what is missing.

  --train  exit with status 1, too, where packages are absent that only training needs
"""
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps . (in mast_ext's source)"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``ok``, ``slow`` (works, but could be faster), ``absent`` (operators and losses work
            without it) or ``missing``.
        what: What was looked at.
        detail: What was found.
        fix: What to do about it, when something can be done.
    """

    state: str
    what: str
    detail: str
    fix: str = ""


def main(arguments: Sequence[str]) -> int:
    """Prints the findings.

    Returns:
        1 when something that operators and losses need is missing, or with ``--train`` something
        that `mast-ext pretrain` needs; else 0.
    """
    for argument in arguments:
        if argument in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if argument != "--train":
            raise UsageError(f"doctor takes --train and nothing else, got {argument}")
    found = list(examine(training=bool(arguments)))
    width = max(len(finding.what) for finding in found)
    last = {finding.fix: finding for finding in found}  # what mends several is said once
    for finding in found:
        print(f"{finding.state:<8}{finding.what:<{width}}  {finding.detail}")
        if finding.fix and finding is last[finding.fix]:
            print(f"{'':<8}{'':<{width}}  fix: {finding.fix}")
    return int(any(finding.state == "missing" for finding in found))


def examine(*, training: bool = False) -> Iterator[Finding]:
    """Looks at everything, most basic first.

    Args:
        training: Whether packages that only training needs are missed where they are not there.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.machine()}")
    yield _package("mast-ext", "mast_ext", REBUILD)
    torch = _import("torch")
    if torch is None:
        yield Finding("missing", "torch", "not importable", "pip install 'torch>=2.11'")
        return
    yield Finding("ok", "torch", torch.__version__)
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("ok", "cpu", f"{cores} cores, {torch.get_num_threads()} threads, {capability}")
    build, why = _native_build()
    if build is None:
        yield Finding("missing", "native kernels", why, REBUILD)
    else:
        yield _compiled_for(build)
    yield _cuda(torch, build, why)
    yield _distributed(torch)
    for package, module in TRAINING.items():
        fix = f"to train by mast-ext: {INSTALL_TRAINING}"
        yield _package(package, module, fix, "missing" if training else "absent")
    yield _dali()
    for package, use in OPTIONAL.items():
        found = _package(package, package, "", "absent")
        there = found.state == "ok"
        yield found if there else Finding("ok", package, f"not installed; {use}")


def require_training_packages() -> None:
    """Raises a ModuleNotFoundError that says what to install unless all of `TRAINING` is there."""
    missing = [p for p, module in TRAINING.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"training needs {', '.join(missing)}, not installed here: {INSTALL_TRAINING}"
        )


def _package(package: str, module: str, fix: str, absent: str = "missing") -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(absent, package, "not installed", fix)
    try:
        return Finding("ok", package, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding("ok", package, "version unknown (not installed as a package)")


def _dali() -> Finding:
    """DALI, without which everything works but its own ways of rendering views."""
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return Finding("ok", "dali", f"{package} {metadata.version(package)}")
    return Finding("ok", "dali", "not installed, torchvision renders views: mast-ext[dali-cu13]")


def _native_build() -> tuple[dict[str, str | None] | None, str]:
    """What the native libraries were built for, or None if they do not load.

    And why they do not load, or why they have no CUDA kernels for this PyTorch, if so.
    """
    try:
        native = importlib.import_module("mast_ext.native")
    except ImportError as error:
        return None, " ".join(str(error).split())
    return {**native.build, "cpu_isa_in_use": native.cpu_isa}, native.no_cuda or ""


def _compiled_for(build: dict[str, str | None]) -> Finding:
    detail = (
        f"built against torch {build.get('torch')} for CPU {build.get('cpu_isas')}, "
        f"using {build.get('cpu_isa_in_use')}"
    )
    if build.get("build_type") not in (None, "Release"):
        detail += f", {build['build_type']}"
        return Finding("slow", "native kernels", detail, f"build a release: {REBUILD}")
    return Finding("ok", "native kernels", detail)


def _cuda(torch: Any, build: dict[str, str | None] | None, why: str) -> Finding:
    native = build.get("cuda") if build else None
    archs = f" for {build.get('cuda_archs')}" if build and native else ""
    kernels = f"kernels built with CUDA {native}{archs}" if native else "no CUDA kernels"
    kernels += f": {why}" if why and build else ""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if build and native:
            return _gpus(torch, build.get("cuda_archs") or "", kernels)
        fix = f"with nvcc of CUDA {torch.version.cuda}: {REBUILD}"
        return Finding("missing", "gpu", f"{name}, but {kernels}", fix)
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        fix = "install a CUDA build of torch (pytorch.org)"
        return Finding("slow", "gpu", "a driver is there, but torch is built without CUDA", fix)
    return Finding("ok", "gpu", f"none here: everything runs on the CPU ({kernels})")


def _gpus(torch: Any, archs: str, kernels: str) -> Finding:
    """Whether every GPU has kernels in the library: an operator raises on one without."""
    count = torch.cuda.device_count()
    gpus = {
        torch.cuda.get_device_capability(i): torch.cuda.get_device_name(i) for i in range(count)
    }
    without = {its: name for its, name in gpus.items() if not runs_on(its, archs)}
    if not without:
        return Finding("ok", "gpu", f"{torch.cuda.get_device_name()}, {kernels}")
    names = ", ".join(f"{name} ({its[0]}.{its[1]})" for its, name in without.items())
    detail = f"{names}, but {kernels}, which do not run there"
    state = "missing" if len(without) == len(gpus) else "slow"
    if min(without) < (8, 0):  # for which nothing can be built
        fix = "take the CPU or, with CUDA_VISIBLE_DEVICES, GPUs of compute capability 8.0 or newer"
    else:
        fix = f"on this machine, with nvcc: CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native {REBUILD}"
    return Finding(state, "gpu", detail, fix)


def runs_on(capability: tuple[int, int], archs: str) -> bool:
    """Whether kernels of these architectures run on a GPU of this compute capability.

    Machine code (``-real``) runs on GPUs of its own major version, from its minor one on; PTX,
    which other entries have besides or alone, on all newer ones. What is for one chip (``90a``) or
    one family (``100f``) runs there alone.

    Args:
        capability: Of the GPU: its major and its minor version.
        archs: As CMake writes them: ``80-real 90a-real 120``. Of other words, such as ``native``,
            it is not known for which GPUs they are: the answer is yes.
    """
    for arch in archs.split():
        found = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", arch)
        if found is None:
            return True
        own, narrow, kind = (int(found[1]), int(found[2])), found[3], found[4]
        if narrow == "a":
            runs = capability == own
        else:
            family = narrow == "f" or kind == "-real"
            runs = capability >= own and (capability[0] == own[0] or not family)
        if runs:
            return True
    return False


def _distributed(torch: Any) -> Finding:
    """Whether several processes can train together, on the CPU by gloo, on GPUs by NCCL."""
    together = torch.distributed
    if not together.is_available():
        fix = "install a build of torch with distributed for --train.devices above 1"
        return Finding("slow", "distributed", "torch is built without it: one process only", fix)
    there = {"gloo": together.is_gloo_available(), "nccl": together.is_nccl_available()}
    names = " and ".join(name for name, here in there.items() if here) or "no backend"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there["gloo"] or (gpus > 1 and not there["nccl"]):
        lacking = "gloo" if not there["gloo"] else f"nccl, for {gpus} GPUs"
        return Finding("slow", "distributed", names, f"install a build of torch with {lacking}")
    return Finding("ok", "distributed", names)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
