"""Which devices the operators are tested on.

`--emulated-cuda FILE` loads a build in which the CUDA kernels run on the CPU (tests/emulation) in
place of the installed one, and keeps the tests that exercise kernels.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption("--emulated-cuda", help="the library of a build with MAST_EXT_EMULATE_CUDA=ON")
    parser.addoption(
        "--plain-memory",
        action="store_true",
        help="no poison around tensors (tests/ops/conftest.py): a sanitizer watches their bounds",
    )
    parser.addoption(
        "--one-layout",
        action="store_true",
        help="definitions of operators in one memory layout instead of two (tests/ops/conftest.py)",
    )

    parser.addoption(
        "--fuzz",
        type=int,
        default=1,
        help="so many times as many random inputs as by default, and others for each number"
        " (tests/ops/test_fuzz.py, tests/augment/test_odd_files.py), and whole runs under kills"
        " (tests/train/faults/test_kills.py)",
    )


def pytest_configure(config):
    if file := config.getoption("--emulated-cuda"):
        os.environ["MAST_EXT_LIBRARY"] = str(file)  # mast_ext is not imported yet


def parameter(item, name):
    return item.callspec.params.get(name) if hasattr(item, "callspec") else None


def has_cuda_kernels():
    """Whether there is a GPU, and the installed build is for one."""
    from mast_ext import ops

    return torch.cuda.is_available() and ops.build_info()["cuda"]


# What is in them takes about half of the time of all tests: `make test` runs it beside the others.
BESIDE = [
    ROOT / "tests" / path for path in ("emulation", "sanitizers", "benchmarks", "test_gpu_check.py")
]


def pytest_collection_modifyitems(config, items):
    """Marks one half of the tests, and skips what needs a GPU where there is none.

    With emulated kernels, leaves out what does not exercise them: tests of a `device` do that are
    not about how torch calls operators.
    """
    for item in items:
        if any(item.path.is_relative_to(path) for path in BESIDE):
            item.add_marker(pytest.mark.beside)
    of_gpu = [item for item in items if parameter(item, "device") == "cuda"]
    if of_gpu and not has_cuda_kernels():
        for item in of_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU and a CUDA build"))
    if config.getoption("--emulated-cuda"):
        kept = [
            item
            for item in items
            if "device" in item.fixturenames and not item.get_closest_marker("dispatch")
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True)
def handlers_stay():
    """No test leaves a handler of SIGTERM or SIGINT: another would not end by them as it should."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# Without a GPU thousands of tests need not even be made, to be skipped.
@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    torch.manual_seed(0)
    return torch.device(request.param)


@pytest.fixture(scope="session")
def fuzz(request):
    """How many times as many random inputs to try as by default; which ones depends on it."""
    return request.config.getoption("--fuzz")


def photograph(seed, height, width):
    """A picture with structure at all scales, and edges, as of a camera."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for scale in (2, 8, 32, 128):
        shape = (height // scale + 2, width // scale + 2, 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        total += scale**0.5 * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    for row, column, radius in generator.uniform(0.1, 0.9, (6, 3)):
        inside = (rows / height - row) ** 2 + (columns / width - column) ** 2 < radius**2 / 8
        total[inside] += generator.uniform(-1000, 1000, 3)
    total -= total.min()
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A tar of 24 pictures in folders of three classes, in all kinds of files there are."""
    import tarfile

    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    for i in range(24):
        picture = photograph(i, 200 + 16 * (i % 5), 180 + 40 * (i % 4))
        exif = Image.Exif()
        exif[0x0112] = i % 8 + 1  # orientation
        mode, suffix, options = [
            ("RGB", "JPEG", {"quality": 90, "exif": exif}),
            ("RGB", "jpg", {"quality": 75, "progressive": True}),
            ("CMYK", "jpg", {"quality": 90}),
            ("L", "jpg", {"quality": 90}),
            ("I;16", "png", {}),
            ("P", "png", {}),
            ("RGBA", "png", {"exif": exif}),
            ("RGB", "webp", {"quality": 90, "exif": exif}),
        ][i % 8]
        if mode == "I;16":
            picture = picture.convert("L").point(lambda level: 257 * level, "I").convert(mode)
        path = folder / f"class{i % 3}" / f"{i:02}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        picture.convert(mode).save(path, **options)
    archive = folder / "photographs.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.glob("class*/*")):
            tar.add(path, path.relative_to(folder))
    return archive


def module_in(folder):
    return folder / "libmast_ext.so"


@pytest.fixture(scope="session")
def emulation():
    """The folder of the modules for tests without a GPU, up to date (tests/emulation/build.py)."""
    command = [sys.executable, "tests/emulation/build.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def emulated_module(emulation):
    return module_in(emulation)


@pytest.fixture(scope="session")
def watched_module(emulation):
    """The emulated kernels with the race detector."""
    return module_in(emulation / "races")


@pytest.fixture(scope="session")
def sanitized_module(emulation):
    """The CUDA kernels, emulated, and the CPU kernels: EMULATE_NOTHING chooses."""
    return module_in(emulation / "sanitized")
