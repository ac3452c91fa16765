"""The check for machines with a GPU, on one without: its whole sequence, with emulated kernels."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / ".ci" / "gpu_check.py"
STEPS = {
    "build",
    "tests",
    "training",
    "sanitizer starts",
    "memcheck float32-40",
    "racecheck float32-40",
    "synccheck float32-40",
    "initcheck float32-40",
    "kernels",
    "benchmarks",
}
PATIENCE = ["--seconds=9000"]  # for a machine that is busy with other things

# Takes the options that the manual of compute-sanitizer lists and no others, runs the program and
# reports as the tool does. Where STAND_IN_FAULTS is set, the program's part is played, too, and the
# tools that it lists find a fault in our kernels.
STAND_IN = r"""
import os, re, subprocess, sys

KNOWN = {
    "--tool": "memcheck|racecheck|synccheck|initcheck",
    "--error-exitcode": r"\d+",
    "--report-api-errors": "all|explicit|no",
    "--kernel-name": "(kns|kernel_substring|kne|kernel_name)=.+",
    "--kernel-name-exclude": "(kns|kernel_substring|kne|kernel_name)=.+",
    "--padding": r"\d+",
    "--print-limit": r"\d+",
    "--launch-timeout": r"\d+",
    "--show-backtrace": "yes|no|host|device",
    "--require-cuda-init": "yes|no",
    "--target-processes": "all|application-only",
}
arguments, options = sys.argv[1:], {}
while arguments and arguments[0].startswith("-"):
    name, value = arguments.pop(0), arguments.pop(0)
    if name not in KNOWN or not re.fullmatch(KNOWN[name], value):
        sys.exit(f"compute-sanitizer: unknown option {name} {value}")
    options[name] = value
tool = options.get("--tool", "memcheck")
if "--padding" in options and tool != "memcheck":
    sys.exit("compute-sanitizer: --padding is an option of memcheck")
print("========= COMPUTE-SANITIZER", flush=True)
faults = os.environ.get("STAND_IN_FAULTS")
if faults is None:
    code = subprocess.run(arguments).returncode
else:
    code = 0
    print("12 passed in 1s")
ours = tool in (faults or "").split()
kernel = "mast_ext::kernels::tile" if ours else "at::native::fill"
found = ours or tool == "initcheck"
if found:
    title = "Uninitialized" if tool == "initcheck" else "Invalid"
    print(f"========= {title} __global__ memory read of size 4 bytes")
    print(f"=========     at 0x150 in void {kernel}<float>(float*)\n=========")
if tool == "racecheck":
    print(f"========= RACECHECK SUMMARY: {int(found)} hazards displayed")
else:
    print(f"========= ERROR SUMMARY: {int(found)} errors")
sys.exit(int(options["--error-exitcode"]) if found and not code else code)
"""


@pytest.fixture
def stand_in(tmp_path):
    """A folder for the PATH that holds a compute-sanitizer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!{sys.executable}\n{STAND_IN}")
    tool.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def gpu_check():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(results, *arguments, path=None, **environment):
    """Exit code, output, and the JSON."""
    paths = [str(path)] * (path is not None) + [os.environ["PATH"]]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), f"--results={results}", *arguments],
        env={**os.environ, "PATH": os.pathsep.join(paths), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    file = results / "emulated.json"
    return done.returncode, done.stdout, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.slow
def test_whole_sequence(emulated_module, stand_in, tmp_path):
    results = tmp_path / "results"
    code, output, found = run(results, f"--emulated={emulated_module}", *PATIENCE, path=stand_in)
    assert code == 0, output
    assert {name: step["result"] for name, step in found["steps"].items()} == dict.fromkeys(
        STEPS, "passed"
    )
    for name, step in found["steps"].items():
        assert step["seconds"] > 0 and step["fault"] is None, name
        assert f"{name}: passed, {step['seconds']} s" in output
    assert {"chip", "driver", "torch", "cuda", "nvcc", "mast_ext"} <= found["environment"].keys()
    assert len(found["benchmarks"]["races"]) > 10
    assert "| mast_ext |" in (results / "emulated.md").read_text()
    assert "## ntxent" in (results / "emulated-kernels.md").read_text()


def test_faults_are_named_and_do_not_stop_other_steps(stand_in, tmp_path):
    code, output, found = run(
        tmp_path,
        "--emulated=none",
        "--steps=sanitizers",
        *PATIENCE,
        path=stand_in,
        STAND_IN_FAULTS="racecheck initcheck",
    )
    assert code == 1
    assert "gpu-check: FAILED: racecheck float32-40, initcheck float32-40\n" in output
    failed = {name for name, step in found["steps"].items() if step["result"] != "passed"}
    assert failed == {"racecheck float32-40", "initcheck float32-40"}
    for tool in failed:
        assert "mast_ext::kernels::tile" in found["steps"][tool]["output"]


def test_steps_of_several_runs_are_in_one_file(stand_in, tmp_path):
    missing = "--emulated=no/such/module.so"
    assert run(tmp_path, missing, "--steps", "build")[0] == 0
    code, output, found = run(tmp_path, missing, "--steps", "tests")
    assert code == 1 and "FAILED: tests" in output
    assert found["steps"]["build"]["result"] == "passed"
    assert found["steps"]["tests"]["result"] == "failed"
    assert "no/such/module.so" in found["steps"]["tests"]["output"]


def test_no_sanitizer_is_said(tmp_path):
    code, output, found = run(
        tmp_path, "--emulated=none", "--steps", "sanitizers", PATH=str(tmp_path)
    )
    assert code == 0
    assert (
        "memcheck float32-40: skipped, 0.0 s: there is no compute-sanitizer on the PATH" in output
    )
    assert {step["result"] for step in found["steps"].values()} == {"skipped"}


def test_no_gpu_is_said(tmp_path):
    code, output, found = run(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (code, found) == (0, None)
    skipped = "build tests training sanitizers kernels benchmarks"
    assert f"no GPU that PyTorch can use. Skipped: {skipped}" in output


def is_running(pid):
    """Whether a process exists and is not just waiting to be forgotten."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_step_that_hangs_is_ended(gpu_check):
    """With all that it started, and what it had printed is kept."""
    program = (
        "import subprocess, sys;"
        "other = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
        " signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1000)']);"
        "print('started', other.pid, flush=True); other.wait()"
    )
    step = gpu_check.Step("tests", "hangs", [sys.executable, "-c", program], 2)
    result = gpu_check.run(step, time.monotonic() + 1000)
    assert result["result"] == "failed" and result["fault"] == "out of time"
    pid = int(re.search(r"started (\d+)", result["output"])[1])
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_time_over_is_a_failure(tmp_path):
    code, output, found = run(tmp_path, "--emulated=none", "--steps", "build", "--seconds=0")
    assert code == 1 and "FAILED: build" in output
    assert found["steps"]["build"]["result"] == "not run"


def test_skipped_tests_are_a_fault(gpu_check):
    assert gpu_check.fault_of_tests("12 passed, 3 skipped in 1s", 0) is None
    assert gpu_check.fault_of_tests("300 skipped in 1s", 0) == "no test passed"
    assert gpu_check.fault_of_tests("1 failed, 12 passed in 1s", 1) == "exit code 1"


def test_a_sanitizer_without_a_summary_is_a_fault(gpu_check):
    fault = gpu_check.fault_of_sanitizer("12 passed in 1s", 0)
    assert "no summary" in fault
    assert gpu_check.fault_of_sanitizer("12 passed\n========= ERROR SUMMARY: 0 errors", 0) is None
    hazards = "12 passed\n========= RACECHECK SUMMARY: 1 hazard displayed"
    assert gpu_check.fault_of_sanitizer(hazards, 9) == "exit code 9"


def test_uninitialized_reads_of_pytorch_are_not_ours(gpu_check):
    def log(*kernels):
        records = [
            "========= Uninitialized __global__ memory read of size 4 bytes\n"
            f"=========     at 0x150 in void {kernel}<float>(float *)\n=========\n"
            for kernel in kernels
        ]
        return f"12 passed\n{''.join(records)}========= ERROR SUMMARY: {len(kernels)} errors"

    fault = gpu_check.fault_of_initcheck
    assert fault(log(), 0) is None
    assert fault(log("at::native::fill"), 9) is None
    assert "1 uninitialized reads" in fault(log("at::native::fill", "mast_ext::kernels::tile"), 9)
    assert fault(log("at::native::fill"), 1) == "exit code 1"
    copied = (
        "========= Host API memory access error\n=========     Uninitialized access\n=========\n"
    )
    assert "1 uninitialized reads" in fault(copied + log(), 9)


@pytest.mark.parametrize(
    ("capability", "name"), [([8, 0], "80-real"), ([9, 0], "90a-real"), ([12, 0], "120-real")]
)
def test_builds_for_the_chip(gpu_check, capability, name):
    assert gpu_check.architecture(capability) == name


def test_its_tests_need_no_more_than_it_says():
    """On a machine with PyTorch and little else, all files of tests are found to be importable."""
    program = """
import sys
import time
from contextlib import suppress
for name in ("lightly", "lightning", "jsonargparse", "timm", "nvidia.dali", "rich"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["tests/ops", "tests/losses", "--collect-only", "-q"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "tests/losses/" in done.stdout
