"""The native libraries: what they need of a system, and what is said where there is none."""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from mast_ext import native

# What manylinux_2_28 has, by the names of versioned symbols.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}

LIBRARIES = sorted(native.FOLDER.glob("*.so"))
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)


def printed(*command):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    ).stdout


def test_there_are_libraries():
    assert {"libmast_ext_cpu.so"} < {path.name for path in LIBRARIES}


@pytest.mark.skipif(
    platform.machine() != "x86_64" or int(str(native.build["compiler"]).split(".")[0]) > 12,
    reason="wheels are for x86-64, and built with GCC 12 or older",
)
@every_library
def test_loads_on_older_systems(library):
    found = set(re.findall(r"\b([A-Z]+)_(\d[\d.]*)", printed("readelf", "-W", "-V", library)))
    assert ("GLIBC", "2.2.5") in found
    for name, version in found:
        if name in ("GOMP", "OMP"):  # of the library that comes with PyTorch
            continue
        assert tuple(int(part) for part in version.split(".")) <= NEWEST[name], f"{name}_{version}"


@every_library
def test_knows_no_python(library):
    assert not re.search(r" U _?Py", printed("nm", "-D", library))


@every_library
def test_needs_no_more_than_it_must(library):
    needed = set(re.findall(r"NEEDED.*\[lib(\w+)", printed("readelf", "-d", library)))
    system = {"stdc", "m", "gcc_s", "c"}
    others = {name for name in needed if not name.startswith("ld")} - system
    if "torch" in library.name:
        assert others == {"mast_ext_cpu", "c10", "torch_cpu", "gomp"}
    else:
        assert others == ({"cudart"} if "cuda" in library.name else set())


# Not of a release: its libraries need not be those of one.
@pytest.mark.parametrize("version", ["2.99.1+cpu", "2.11.0a0+git123", "2.11.0.dev20260101"])
def test_other_versions_of_torch(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    ours = ", ".join(native._versions("torch"))
    message = f"this mast_ext is for PyTorch {ours}, not for {version}: install one of these"
    with pytest.raises(ImportError, match=re.escape(message)):
        native._binding()


def test_every_release_of_a_minor_version_is_alike(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    for minor in ("2.9", "2.11", "2.100"):
        (tmp_path / f"libmast_ext_torch{minor}.so").touch()
    monkeypatch.setattr(torch, "__version__", "2.11.3+cu130")
    assert native._binding().name == "libmast_ext_torch2.11.so"
    assert native._versions("torch") == ["2.9", "2.11", "2.100"]


def test_nothing_built(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    with pytest.raises(ImportError, match="native libraries of mast_ext are not built: `pip"):
        native._binding()


def test_a_library_that_is_older_than_the_code():
    """As after `git pull` in an editable installation."""
    script = """
import torch
from mast_ext import native
namespace = torch.ops.mast_ext
class Older:
    def __getattr__(self, name):
        if name == "gather_views":
            raise AttributeError("'_OpNamespace' 'mast_ext' object has no attribute 'gather_views'")
        return getattr(namespace, name)
torch.ops.mast_ext = Older()
try:
    import mast_ext.ops
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    out = run.stdout
    assert "libraries of mast_ext are older than its Python code" in out
    assert "'gather_views'): build them again, in the source by `pip" in out


# torch's CUDA, torch's ROCm, libraries -> what is said
CUDAS = [
    (None, None, ["cuda13"], None),
    (
        "12.8",
        None,
        ["cuda13"],
        "it has kernels for CUDA 13, and this PyTorch is built for CUDA 12.8",
    ),
    ("13.0", None, [], "it was built without CUDA, and this PyTorch is built for CUDA 13.0"),
    (None, "6.4", ["cuda13"], "its kernels are for CUDA, and this PyTorch is built for ROCm"),
    ("13.2", None, ["cuda13"], "libmast_ext_cuda13.so does not load ("),
]


@pytest.mark.parametrize(("cuda", "hip", "libraries", "said"), CUDAS)
def test_why_there_are_no_cuda_kernels(monkeypatch, tmp_path, cuda, hip, libraries, said):
    for name in libraries:
        (tmp_path / f"libmast_ext_{name}.so").write_text("no library")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    reason = native._load_cuda_kernels()
    assert reason == said if said is None else reason.startswith(said)


WITHOUT_CUDA_LIBRARY = """
import shutil, sys, torch
from pathlib import Path
from mast_ext.losses import VICRegLoss
x, y = torch.randn(2, 8, 16)
print(VICRegLoss()(x, y).isfinite().item())
from mast_ext import native
print(native.no_cuda, native.build["cuda"])
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="torch has no CUDA")
def test_works_without_the_cuda_library(tmp_path):
    """Its functions are null in the binding then."""

    package = tmp_path / "mast_ext"
    shutil.copytree(
        Path(native.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("*cuda*", "__pycache__"),
    )
    command = [sys.executable, "-c", WITHOUT_CUDA_LIBRARY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True",
        f"it was built without CUDA, and this PyTorch is built for CUDA {torch.version.cuda} None",
    ]


def test_source_distribution_is_whole(tmp_path):
    """It has every file that the libraries are compiled from, and those that the package reads."""
    root = Path(__file__).parents[1]
    here = ("egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path)
    printed(sys.executable, "setup.py", "--quiet", *here)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path for path in (root / "csrc").rglob("*") if path.is_file()}
    wanted = {"CMakeLists.txt", "pyproject.toml", "mast_ext/py.typed"}
    wanted |= {
        "mast_ext/train/report/page.html",
        "mast_ext/train/recipes/imagenet-vits16/ibot.yaml",
    }
    assert wanted | {str(path.relative_to(root)) for path in sources} <= names
    assert not any(name.endswith(".so") for name in names)
