r"""Prints, as JSON, every launch of a step of our contestant of every workload, without a GPU.

    MAST_EXT_LIBRARY=build/emulation/libmast_ext.so \
        python -m benchmarks.gpu_model.record_launches [WORKLOAD ...]

The emulator of the tests counts a launch's blocks and does not run them (EMULATE_RECORD), and
PyTorch's matrix products are skipped, so that sizes that take a GPU seconds take the host seconds.
Results are whatever memory held: host code decides by shapes alone, as it must on a GPU, for which
it never waits. Losses that choose their form by the device are told that it is a GPU.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

MODULE = Path(os.environ["MAST_EXT_LIBRARY"]).resolve()
FOLDER = tempfile.TemporaryDirectory()
RECORD = Path(FOLDER.name, "launches")
os.environ["EMULATE_RECORD"] = str(RECORD)  # before the first launch
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from mast_ext import functional  # noqa: E402
from mast_ext.benchmarks.harness import MODES, step_of  # noqa: E402
from mast_ext.benchmarks.ops import workloads  # noqa: E402

SKIPPED = torch.library.Library("aten", "IMPL")  # lives as long as the process
LAUNCH = re.compile(r"(\w+) (\d+) (\d+) (\d+)")


def skip_products() -> None:
    """Replaces PyTorch's products on the CPU by memory that nothing was written to."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(*a.shape[:-1], b.shape[-1])

    def added(start: Tensor, a: Tensor, b: Tensor, **_: object) -> Tensor:
        return product(a, b)

    def into(*_: object, out: Tensor, **__: object) -> Tensor:
        return out

    def in_place(start: Tensor, *_: object, **__: object) -> Tensor:
        return start

    for name in ("mm", "bmm"):
        SKIPPED.impl(name, product, "CPU")
        SKIPPED.impl(f"{name}.out", into, "CPU")
    for name in ("addmm", "baddbmm"):
        SKIPPED.impl(name, added, "CPU")
        SKIPPED.impl(f"{name}.out", into, "CPU")
        SKIPPED.impl(f"{name}_", in_place, "CPU")


def kernels_by_address() -> dict[int, str]:
    """Names of the functions of the library of emulated kernels."""
    library = MODULE.parent / "libemulated_kernels.so"
    listed = subprocess.run(["nm", "-C", library], capture_output=True, text=True, check=True)
    rows = (line.split(" ", 2) for line in listed.stdout.splitlines() if line[:1].isalnum())
    return {int(address, 16): name for address, kind, name in rows if kind in "tTwW"}


def launches_of(names: dict[int, str]) -> list[dict[str, object]]:
    """What was recorded since the last call: equal launches once, with their number."""
    recorded = Counter(RECORD.read_text().splitlines() if RECORD.exists() else [])
    RECORD.unlink(missing_ok=True)
    found = []
    for line, count in recorded.items():
        address, blocks, threads, shared = LAUNCH.fullmatch(line).groups()  # type: ignore[union-attr]
        found.append(
            {
                "kernel": names[int(address, 16)],
                "count": count,
                "blocks": int(blocks),
                "threads": int(threads),
                "shared": int(shared),
            }
        )
    return found


def main() -> None:
    skip_products()
    functional.MOST_TOGETHER = sys.maxsize  # as on a GPU
    names = kernels_by_address()
    chosen = sys.argv[1:]
    rows = []
    for name, workload in workloads().items():
        if chosen and name not in chosen:
            continue
        ours = next(iter(workload.contestants.values()))
        mode = MODES[1] if workload.backward else MODES[0]
        for dtype in (torch.bfloat16, torch.float32):
            for case in [*workload.cases, *workload.gpu_cases]:
                inputs = workload.make_inputs(case, "cpu", dtype)
                step_of(ours, inputs, mode)()
                rows.append(
                    {
                        "operator": name,
                        "case": case,
                        "dtype": str(dtype).removeprefix("torch."),
                        "launches": launches_of(names),
                    }
                )
                print(name, case, dtype, len(rows[-1]["launches"]), file=sys.stderr, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
