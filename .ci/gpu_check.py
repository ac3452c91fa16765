"""Judges every CUDA kernel on the GPU at hand: build for its chip, tests, sanitizers, benchmarks.

    python .ci/gpu_check.py [--steps build tests sanitizers benchmarks] [--seconds 540]

Needs this Python with torch, pytest, pytest-benchmark, cmake and ninja, and nvcc and
compute-sanitizer on the PATH. Without a GPU it says so and is content. What was found goes to
RESULTS/CHIP.json after every step, and the table of benchmarks to RESULTS/CHIP.md; steps that ran
earlier on the same chip, of the same commit and versions, stay in the file.

`--emulated MODULE` goes through all of it without a GPU: a build with MAST_EXT_EMULATE_CUDA=ON in
place of the chip, the fewest tests and benchmarks of each step, and nothing is compiled.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
GROUPS = {"build": ("build",), "tests": ("tests",), "sanitizers": SANITIZERS}
GROUPS["benchmarks"] = ("benchmarks",)
OUTPUT_KEPT = 12_000  # characters of a step's output that go into the JSON
CONTENT = ("passed", "skipped")

# Found faults give this exit code. Calls of the driver that PyTorch knows may fail are no faults.
SANITIZE = ["compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no"]
OURS = ["--kernel-name", "kns=mast_ext"]  # instruments kernels with this in their name, no others
TOOL_OPTIONS = {
    "memcheck": [*OURS, "--padding", "512"],  # a read beyond a tensor meets no other tensor
    "racecheck": OURS,
    "synccheck": OURS,
    # It has to see who writes, also where PyTorch's kernels do; so that it reports those too.
    "initcheck": ["--print-limit", "0"],
}

ENVIRONMENT_PROGRAM = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "chip": None}
if torch.cuda.is_available():
    found["chip"] = torch.cuda.get_device_name()
    found["capability"] = list(torch.cuda.get_device_capability())
print(json.dumps(found))
"""


@dataclass
class Step:
    """One command.

    Attributes:
        name: What it is called in the results.
        command: Program and arguments.
        seconds: How long it may take.
        environment: Variables besides those of this process.
        fault: Says what is wrong from the output and the exit code; None: nothing.
    """

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    fault: Callable[[str, int], str | None] = lambda _, code: f"exit code {code}" if code else None


def fault_of_tests(output: str, code: int) -> str | None:
    """Tests that are all skipped, because nothing was built for the GPU, say, are a fault."""
    if code != 0:
        return f"exit code {code}"
    return None if re.search(r"\b[1-9]\d* passed", output) else "no test passed"


def fault_of_sanitizer(output: str, code: int) -> str | None:
    if re.search(r"^=+ (ERROR|RACECHECK) SUMMARY:", output, re.MULTILINE) is None:
        return f"exit code {code}, and no summary: the sanitizer did not run to its end"
    return fault_of_tests(output, code)


def fault_of_initcheck(output: str, code: int) -> str | None:
    """Reads of our kernels, and copies to the host, of what nobody wrote; not those of PyTorch."""
    records = re.split(r"^=+\s*$", output, flags=re.MULTILINE)
    unwritten = [record for record in records if "Uninitialized" in record]
    ours = [r for r in unwritten if "mast_ext" in r or "Host API memory access" in r]
    if ours:
        return f"{len(ours)} uninitialized reads, the first: {ours[0].strip()}"
    return fault_of_sanitizer(output, 0 if unwritten and code == 9 else code)


def output_of(*command: str) -> str | None:
    """What a program prints; None where there is none, or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, object]:
    """What results depend on. `chip` is None where PyTorch has no GPU."""
    found = json.loads(output_of(sys.executable, "-c", ENVIRONMENT_PROGRAM) or '{"chip": null}')
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    nvcc = output_of(os.environ.get("CUDACXX", "nvcc"), "--version")
    release = re.search(r"release ([\d.]+)", nvcc or "")
    return found | {
        "driver": driver.splitlines()[0] if driver else None,
        "nvcc": release.group(1) if release else None,
        "python": sys.version.split()[0],
        # COMMIT: for a copy of the tree without its history.
        "mast_ext": output_of("git", "describe", "--always", "--dirty") or os.environ.get("COMMIT"),
    }


def architecture(capability: list[int]) -> str:
    major, minor = capability
    return f"{major}{minor}{'a' if major == 9 else ''}-real"


def all_steps(found: dict[str, object], emulated: str | None, table: Path) -> list[Step]:
    """The whole sequence; see the module's text for `emulated`."""
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    every_operator = "tests/ops/test_every_operator.py"
    bench = [*PYTEST, "benchmarks/ops", "--benchmark-disable-gc", "--report", str(table)]
    if emulated:
        build += ["--help"]
        module = f"--emulated-cuda={emulated}"
        tests = [*PYTEST, every_operator, "-k", "cpu and float32-40", module]
        few = "cpu and float32-40 and subspace_similarity"
        sanitized = [*PYTEST, every_operator, "--plain-memory", "-k", few, module]
        bench += ["-k", "cpu and not backward", "--rounds", "1", "--smallest"]
        device, arch, compiling = "cpu", "", {"TORCHDYNAMO_DISABLE": "1"}
    else:
        tests = [*PYTEST, "tests/ops", "tests/losses", "-k", "cuda"]
        sanitized = [*PYTEST, every_operator, "--plain-memory", "-k", "cuda"]
        bench += ["-k", "cuda", "--rounds", "15"]
        device, compiling = "cuda", {}
        arch = architecture(found["capability"])
    # Without a GPU, it is not the time that is checked.
    patience = 20 if emulated else 1
    probe = [sys.executable, "-c", f"import torch; torch.zeros(1, device={device!r})"]
    steps = [
        Step("build", build, 170 * patience, {
            "MAST_EXT_CUDA": "ON", "CMAKE_ARGS": f"-DCMAKE_CUDA_ARCHITECTURES={arch}",
        }),
        Step("tests", tests, 120 * patience, fault=fault_of_tests),
        Step("sanitizer starts", [*SANITIZE, "--tool", "memcheck", *probe], 40 * patience),
    ]  # fmt: skip
    for tool in SANITIZERS:
        fault = fault_of_initcheck if tool == "initcheck" else fault_of_sanitizer
        command = [*SANITIZE, "--tool", tool, *TOOL_OPTIONS[tool], *sanitized]
        # A tensor in memory of its own, that nobody used before.
        own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        steps.append(Step(tool, command, 60 * patience, own, fault))
    steps.append(Step("benchmarks", bench, 300 * patience, compiling, fault_of_tests))
    return steps


def run(step: Step, seconds: float) -> dict[str, object]:
    """Runs a step for so long at most; its result as it goes into the JSON."""
    begin = time.monotonic()
    timed_out = False
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(child.pid, signal.SIGINT)  # pytest reports what it has
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
        finally:
            # Also what it has started and left behind: that would keep the GPU busy.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        log.seek(0)
        output = log.read()
    fault = "out of time" if timed_out else step.fault(output, child.returncode)
    return {
        "result": "failed" if fault else "passed",
        "fault": fault,
        "exit_code": child.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "limit": round(seconds),
        "command": step.command,
        "output": output[-OUTPUT_KEPT:],
    }


class Results:
    """The JSON: written before and after every step, so that whatever ends this leaves it whole."""

    def __init__(self, path: Path, found: dict[str, object]) -> None:
        self.path = path
        self.document: dict[str, object] = {"environment": found, "steps": {}, "benchmarks": None}
        if path.exists():
            earlier = json.loads(path.read_text())
            if earlier.get("environment") == found:
                self.document = earlier
        self.steps: dict[str, dict[str, object]] = self.document["steps"]

    def put(self, name: str, result: dict[str, object]) -> None:
        self.steps[name] = result
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.document, indent=1) + "\n")
        unfinished.replace(self.path)


def reason_to_leave_out(step: Step, done: dict[str, dict[str, object]]) -> tuple[str, str] | None:
    """Why a step cannot run, as result and fault, from what ran before it."""
    if step.name != "build" and done.get("build", {}).get("result") == "failed":
        return "not run", "there is no build"
    if step.command[0] == SANITIZE[0]:
        if shutil.which(SANITIZE[0]) is None:
            return "skipped", f"there is no {SANITIZE[0]} on the PATH"
        start = done.get("sanitizer starts")
        if start and start["result"] != "passed":
            refused = "not supported" in str(start.get("output"))
            return "skipped" if refused else "not run", "the sanitizer does not start here"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=540, help="for all steps together")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--emulated", metavar="MODULE", help="the library of an emulated build")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, and takes the step along
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )

    found = environment()
    if options.emulated:
        found["chip"] = "emulated"
    if found["chip"] is None:
        print("gpu-check: no GPU that PyTorch can use. Skipped:", *options.steps)
        return 0
    print("gpu-check:", json.dumps(found))
    slug = re.sub(r"[^a-z0-9]+", "-", str(found["chip"]).lower()).strip("-")
    results = Results(options.results / f"{slug}.json", found)
    wanted = {name for group in options.steps for name in GROUPS[group]}
    if "sanitizers" in options.steps:
        wanted.add("sanitizer starts")

    done: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / f"{slug}.md"
        for step in all_steps(found, options.emulated, table):
            if step.name not in wanted:
                continue
            seconds = min(step.seconds, end - time.monotonic())
            left_out = reason_to_leave_out(step, done)
            if left_out is None and seconds < 1:
                left_out = "not run", f"the {options.seconds:.0f} seconds for all steps are over"
            if left_out:
                result, fault = left_out
                done[step.name] = {"result": result, "fault": fault, "seconds": 0.0}
            else:
                results.put(step.name, {"result": "running", "command": step.command})
                done[step.name] = run(step, seconds)
            results.put(step.name, done[step.name])
            report(step.name, done[step.name])
        if table.exists():
            races = json.loads(table.with_suffix(".json").read_text())
            results.document["benchmarks"] = races
            results.save()
            shutil.copy(table, results.path.with_suffix(".md"))

    failed = [name for name, result in done.items() if result["result"] not in CONTENT]
    print(f"gpu-check: results in {results.path}")
    print(f"gpu-check: FAILED: {', '.join(failed)}" if failed else "gpu-check: passed")
    return 1 if failed else 0


def report(name: str, result: dict[str, object]) -> None:
    text = f"{name}: {result['result']}, {result['seconds']} s"
    if result["fault"]:
        text += f": {result['fault']}"
    if result["result"] == "failed":
        text += "\n" + str(result["output"])[-3000:]
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
