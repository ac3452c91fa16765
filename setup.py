"""Thin driver: everything native is described in CMakeLists.txt.

MAST_EXT_CUDA=AUTO|ON|OFF, MAST_EXT_CPU=all|native, MAST_EXT_TORCH=FOLDER;FOLDER... (the PyTorchs to
build for, by default the installed one) and CMAKE_ARGS reach CMake; MAX_JOBS bounds the build. The
build tree stays in build/, so that a changed file costs only its own compilation.
MAST_EXT_BUILD=later installs the package without its native libraries: `make pretrain` compiles
them while packages are downloaded.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)


def run(command: list[str]) -> None:
    """Runs a step of the build; its own output has said why when it fails."""
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"mast_ext: {shlex.join(command[:2])} failed with exit code {error.returncode}")


class CMakeBuild(build_ext):
    """Configures and builds ./CMakeLists.txt, then installs the libraries into mast_ext/lib."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"  # no version of Python in it

    def build_extension(self, ext: Extension) -> None:
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                sys.exit(f"mast_ext: building needs {tool}: pip install {tool}")
        cuda = os.environ.get("MAST_EXT_CUDA", "AUTO").upper()
        if cuda not in ("AUTO", "ON", "OFF"):
            sys.exit(f"mast_ext: MAST_EXT_CUDA must be AUTO, ON or OFF, got {cuda}")
        options = [
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DMAST_EXT_CUDA={cuda}",
            f"-DMAST_EXT_CPU={os.environ.get('MAST_EXT_CPU', 'all')}",
            f"-DMAST_EXT_TORCH={os.environ.get('MAST_EXT_TORCH', '')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        run(["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options])
        run(["cmake", "--build", str(BUILD), "--parallel", jobs])
        self.install(Path(self.get_ext_fullpath(ext.name)).resolve().parents[1])

    def install(self, package: Path) -> None:
        """Puts the libraries into the folder of the package."""
        for old in package.glob("lib/*.so"):  # of another PyTorch or CUDA
            old.unlink()
        strip = [] if self.debug else ["--strip"]
        run(["cmake", "--install", str(BUILD), "--prefix", str(package), *strip])

    def copy_extensions_to_source(self) -> None:
        """Of a build in place; setuptools would copy the one library that it knows."""
        if self.extensions:
            self.install(ROOT / "mast_ext")


class PythonWheel(bdist_wheel):
    """A wheel for every version of Python: the libraries have no symbol of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


later = os.environ.get("MAST_EXT_BUILD") == "later"
modules = [] if later else [Extension("mast_ext.lib.libmast_ext_cpu", sources=[])]
setup(ext_modules=modules, cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PythonWheel})
