"""The native code under AddressSanitizer and UndefinedBehaviorSanitizer, and that they see faults.

One build holds the CUDA kernels, emulated, and the CPU kernels; EMULATE_NOTHING chooses the latter.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KERNELS = {"cuda": {}, "cpu": {"EMULATE_NOTHING": "1"}}
# Python leaks on purpose, and coroutines (tests/emulation) keep their frames where they are.
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"


@pytest.fixture(scope="module")
def compiler(emulation):
    cache = (emulation / "CMakeCache.txt").read_text()
    return re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE).group(1)


@pytest.fixture(scope="module")
def python(compiler):
    """Runs Python with the sanitizers' library, which has to come before all others."""

    def library(name):
        command = [compiler, f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": ASAN_OPTIONS,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }

    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


@pytest.mark.parametrize("kernels", KERNELS)
def test_no_operator_has_a_fault(kernels, sanitized_module, python):
    done = python(
        "-m", "pytest", "tests/ops/test_every_operator.py", "-q", "--plain-memory",
        "-k", "cpu and (40 and bfloat16 or 320 and float32)", "-p", "no:cacheprovider",
        f"--emulated-cuda={sanitized_module}", **KERNELS[kernels],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 60


def test_no_operator_of_pixels_has_a_fault(sanitized_module, python):
    done = python(
        "-m", "pytest", "tests/augment/test_view_operators.py", "-q", "-m", "not slow",
        "-p", "no:cacheprovider", MAST_EXT_LIBRARY=str(sanitized_module), EMULATE_NOTHING="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 40


# The tensor ends after three quarters of what its shape says.
READ_BEYOND_A_TENSOR = """
import os, sys, torch
os.environ["MAST_EXT_LIBRARY"] = sys.argv[1]
from mast_ext import functional
x = torch.randn(2, 4, 40)
functional.subspace_similarity(x)
print("as it should be", flush=True)
x.untyped_storage().resize_(x.nbytes * 3 // 4)
functional.subspace_similarity(x)
"""


@pytest.mark.parametrize("kernels", KERNELS)
def test_reads_beyond_a_tensor_are_found(kernels, sanitized_module, python):
    # Without names of functions: to find those of libtorch takes minutes.
    options = KERNELS[kernels] | {"ASAN_OPTIONS": f"{ASAN_OPTIONS}:symbolize=0"}
    done = python("-c", READ_BEYOND_A_TENSOR, str(sanitized_module), **options)
    assert "as it should be" in done.stdout
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout


FAULTY_KERNELS = """
#include <cstdlib>
#include <string>

#include "kernels/common/launch.cuh"

__global__ void beyond_a_tensor(const float* from, float* to) { *to = from[32]; }

__global__ void beyond_shared_memory(const float* from, float* to) {
  __shared__ float shared[8];
  shared[0] = from[0];
  *to = shared[from[0] > 1.0f ? 0 : 8];
}

__global__ void misaligned(const float* from, float* to) {
  *to = reinterpret_cast<const float4*>(from + 1)->x;
}

__global__ void nothing_wrong(const float* from, float* to) { *to = from[31]; }

int main(int, char** arguments) {
  const std::string name = arguments[1];
  auto* const kernel = name == "beyond_a_tensor"        ? beyond_a_tensor
                       : name == "beyond_shared_memory" ? beyond_shared_memory
                       : name == "misaligned"           ? misaligned
                                                        : nothing_wrong;
  auto* const from = static_cast<float*>(std::calloc(32, sizeof(float)));
  float to = 0;
  return mast_ext::kernels::launch(kernel, 1, 64, nullptr, from, &to);
}
"""


@pytest.fixture(scope="module")
def faulty_kernels(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    source, program = folder / "faulty_kernels.cpp", folder / "faulty_kernels"
    source.write_text(FAULTY_KERNELS)
    flags = ["-std=c++20", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    emulation = ROOT / "tests" / "emulation"
    sources = [str(source), str(emulation / "emulator.cpp")]
    includes = [f"-I{emulation}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, *includes, *sources, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("beyond_a_tensor", "heap-buffer-overflow"),
        ("beyond_shared_memory", "out of bounds"),
        ("misaligned", "misaligned address"),
        ("nothing_wrong", None),
    ],
)
def test_faults_of_kernels_are_found(kernel, report, faulty_kernels):
    done = subprocess.run(
        [faulty_kernels, kernel],
        env={**os.environ, "ASAN_OPTIONS": ASAN_OPTIONS},
        capture_output=True,
        text=True,
    )
    if report is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode != 0 and report in done.stderr
