"""Judges every CUDA kernel on the GPU at hand: build for its chip, tests, sanitizers, benchmarks.

    python .ci/gpu_check.py [--steps build tests training sanitizers kernels benchmarks]
                               [--seconds 540]

Needs this Python with torch, pytest, pytest-benchmark, cmake and ninja, and nvcc and
compute-sanitizer on the PATH; with pytest-xdist the tests take a fraction of the time. Without a
GPU it says so and is content. What was found goes to RESULTS/CHIP.json after every step, the table
of benchmarks to RESULTS/CHIP.md, and the times of all kernels to RESULTS/CHIP-kernels.*; steps
that ran earlier on the same chip, of the same commit and versions, stay in the file. Sanitizers
run beside each other, all else by itself.

`--emulated MODULE` goes through all of it without a GPU: a build with MAST_EXT_EMULATE_CUDA=ON in
place of the chip, the fewest tests and benchmarks of each step, and nothing is compiled.
"""

import argparse
import importlib.util
import itertools
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
STEPS = ("build", "tests", "training", "sanitizers", "kernels", "benchmarks")
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
        group: The name by which it is asked for; neighbors of one group run at the same time.
        name: What it is called in the results.
        command: Program and arguments.
        seconds: How long it may take.
        environment: Variables besides those of this process.
        fault: Says what is wrong from the output and the exit code; None: nothing.
    """

    group: str
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


def beside_each_other() -> list[str]:
    """Options of pytest for tests in many processes: one spends its time on the host."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, min(14, (os.cpu_count() or 1) - 2))), "--dist", "worksteal"]


def all_steps(found: dict[str, object], emulated: str | None, table: Path) -> list[Step]:
    """The whole sequence; see the module's text for `emulated`."""
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    every_operator = "tests/ops/test_every_operator.py"
    kernels = [sys.executable, "benchmarks/kernel_times.py", "--report", f"{table}-kernels.md"]
    bench = [*PYTEST, "benchmarks/ops", "--benchmark-disable-gc", "--report", f"{table}.md"]
    sanitized = [*PYTEST, every_operator, "--plain-memory"]
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16 and not bfloat16")
    if emulated:
        build += ["--help"]
        module = f"--emulated-cuda={emulated}"
        tests = [*PYTEST, every_operator, "-k", "cpu and float32-40", module]
        training = [*PYTEST, "tests/train/test_whole_runs.py", "-k", "reported and cpu-simclr"]
        sanitized += [module]
        dtypes = ("float32-40 and subspace_similarity",)
        kernels += ["--device", "cpu", "--smallest"]
        bench += ["-k", "cpu and not backward", "--rounds", "1", "--smallest"]
        device, arch = "cpu", ""
    else:
        tests = [*PYTEST, "tests/ops", "tests/losses", "-k", "cuda", *beside_each_other()]
        training = [*PYTEST, "tests/train", "-k", "cuda or for_no_gpu", *beside_each_other()]
        bench += ["-k", "cuda", "--rounds", "15", "--seconds", "1"]
        device = "cuda"
        arch = architecture(found["capability"])
    # Without a GPU, it is not the time that is checked.
    patience = 20 if emulated else 1
    probe = [sys.executable, "-c", f"import torch; torch.zeros(1, device={device!r})"]
    start = [*SANITIZE, "--tool", "memcheck", *probe]
    steps = [
        Step("build", "build", build, 170 * patience, {
            "MAST_EXT_CUDA": "ON", "CMAKE_ARGS": f"-DCMAKE_CUDA_ARCHITECTURES={arch}",
        }),
        Step("tests", "tests", tests, 300 * patience, fault=fault_of_tests),
        Step("training", "training", training, 120 * patience, fault=fault_of_tests),
        Step("sanitizer starts", "sanitizer starts", start, 40 * patience),
    ]  # fmt: skip
    for tool in SANITIZERS:
        fault = fault_of_initcheck if tool == "initcheck" else fault_of_sanitizer
        for dtype in dtypes:
            name = f"{tool} {dtype.split()[0]}"
            chosen = ["-k", f"{device} and {dtype}"]
            command = [*SANITIZE, "--tool", tool, *TOOL_OPTIONS[tool], *sanitized, *chosen]
            # A tensor in memory of its own, that nobody used before.
            own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            steps.append(Step("sanitizers", name, command, 180 * patience, own, fault))
    steps.append(Step("kernels", "kernels", kernels, 120 * patience))
    # To compile every rival for every size takes longer than all else: `make bench` does.
    eager = {"TORCHDYNAMO_DISABLE": "1"}
    steps.append(Step("benchmarks", "benchmarks", bench, 300 * patience, eager, fault_of_tests))
    return steps


CHILDREN: set[int] = set()  # the steps that run


def kill(child: int) -> None:
    """Ends a step, and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def run(step: Step, end: float) -> dict[str, object]:
    """Runs a step until that time of the monotonic clock at most; its result for the JSON."""
    begin = time.monotonic()
    seconds = min(step.seconds, end - begin)
    if seconds < 1:
        return {"result": "not run", "fault": "the time for all steps is over", "seconds": 0.0}
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
        CHILDREN.add(child.pid)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(child.pid, signal.SIGINT)  # pytest reports what it has
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
        finally:
            # Also what it has started and left behind: that would keep the GPU busy.
            kill(child.pid)
            child.wait()
            CHILDREN.discard(child.pid)
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
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
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
    wanted = set(options.steps)
    if "sanitizers" in wanted:
        wanted.add("sanitizer starts")

    done: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        table = Path(folder) / slug
        steps = all_steps(found, options.emulated, table)
        chosen = [step for step in steps if step.group in wanted]
        try:
            for _, group in itertools.groupby(chosen, lambda step: step.group):
                running = []
                for step in group:
                    left_out = reason_to_leave_out(step, done)
                    if left_out:
                        result, fault = left_out
                        done[step.name] = {"result": result, "fault": fault, "seconds": 0.0}
                        finish(step.name, done[step.name], results)
                    else:
                        results.put(step.name, {"result": "running", "command": step.command})
                        running.append((step.name, pool.submit(run, step, end)))
                for name, promise in running:
                    done[name] = promise.result()
                    finish(name, done[name], results)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(CHILDREN):  # or the pool would wait for them
                kill(child)
            raise
        for file in (*Path(folder).glob("*.md"), *Path(folder).glob("*-kernels.json")):
            shutil.copy(file, results.path.parent)
        if (races := table.with_suffix(".json")).exists():
            results.document["benchmarks"] = json.loads(races.read_text())
            results.save()

    failed = [name for name, result in done.items() if result["result"] not in CONTENT]
    print(f"gpu-check: results in {results.path}")
    print(f"gpu-check: FAILED: {', '.join(failed)}" if failed else "gpu-check: passed")
    return 1 if failed else 0


def finish(name: str, result: dict[str, object], results: Results) -> None:
    """Keeps a step's result, and says it."""
    results.put(name, result)
    text = f"{name}: {result['result']}, {result['seconds']} s"
    if result["fault"]:
        text += f": {result['fault']}"
    if result["result"] == "failed":
        text += "\n" + str(result["output"])[-3000:]
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
