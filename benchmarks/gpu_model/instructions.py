"""What the inner loop of every CUDA kernel is made of, by the machine code in the library.

A disassembler of CUDA's reads it: `cuobjdump`, with `nvdisasm` beside it, on the PATH or in the
package triton, which PyTorch for CUDA brings along.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.chips import H100
from benchmarks.gpu_model.model import short
from benchmarks.gpu_model.resources import ROOT

LIBRARIES = "mast_ext/lib/libmast_ext_cuda*.so"

# Names of instructions, up to the first point, by what they do.
KINDS = {
    "tensor": {"HMMA", "HGMMA", "IMMA", "QGMMA", "DMMA"},
    "float32": {"FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "FSWZADD"},
    "float16": {"HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSETP2", "HSET2"},
    "float64": {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX"},
    "special": {"MUFU"},
    "conversions": {"F2F", "F2FP", "F2I", "I2F", "I2FP", "FRND", "I2I", "PRMT"},
    "global memory": {
        *("LDG", "STG", "LD", "ST", "LDGSTS", "ATOM", "ATOMG", "RED", "CCTL"),
        *("UTMALDG", "UTMASTG", "UBLKCP"),
    },
    "shared memory": {"LDS", "LDSM", "STS", "STSM", "ATOMS", "SYNCS"},
    "lanes": {"SHFL", "VOTE", "VOTEU", "MATCH", "REDUX", "MOVM"},
    "spilled": {"LDL", "STL"},
    "waiting": {"BAR", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "MEMBAR", "NANOSLEEP", "ERRBAR"},
    "branches": {
        *("BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "BMOV", "NOP"),
        *("YIELD", "ENDCOLLECTIVE", "RPCMOV", "BPT", "KILL"),
    },
}
REST = "integers"  # and addresses, predicates and moves
# By how much work there is in an instruction, roughly.
ARITHMETIC = {"tensor": 16, "float32": 1, "float16": 1, "float64": 1, "special": 1}

FUNCTION = re.compile(r"^\s*Function : (\w+)$")
INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][A-Z0-9_.]*)"
    r"(?P<rest>[^;]*);"
)
TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")


@dataclass(frozen=True)
class Mix:
    """Instructions of a kernel's inner loop, or of all of it if it has none.

    Attributes:
        loop: Whether they are those of a loop.
        count: How many there are of each kind.
    """

    loop: bool
    count: Counter[str]


def kind_of(name: str) -> str:
    """What an instruction does."""
    stem = name.split(".")[0]
    return next((kind for kind, names in KINDS.items() if stem in names), REST)


def inner_loop(code: list[tuple[int, str, str]]) -> Mix:
    """The smallest loop with half of the arithmetic that all loops of a function have.

    Args:
        code: Address, name and operands of every instruction.
    """
    kinds = [kind_of(name) for _, name, _ in code]
    position = {address: i for i, (address, _, _) in enumerate(code)}
    loops = []
    for end, (address, name, rest) in enumerate(code):
        target = TARGET.search(rest)
        if name.startswith("BRA") and target and int(target[1], 16) < address:
            loops.append((position[int(target[1], 16)], end + 1))
    if not loops:
        return Mix(False, Counter(kinds))
    inside = {i for begin, end in loops for i in range(begin, end)}

    def arithmetic(places: Iterable[int]) -> int:
        return sum(ARITHMETIC.get(kinds[i], 0) for i in places)

    enough = arithmetic(inside) / 2
    begin, end = min(
        (loop for loop in loops if arithmetic(range(*loop)) >= enough),
        key=lambda loop: loop[1] - loop[0],
        default=max(loops, key=lambda loop: arithmetic(range(*loop))),
    )
    return Mix(True, Counter(kinds[begin:end]))


def functions(text: Iterator[str]) -> Iterator[tuple[str, list[tuple[int, str, str]]]]:
    """Mangled name and code of every function that the disassembler prints."""
    name = ""
    code: list[tuple[int, str, str]] = []
    for line in text:
        if found := FUNCTION.match(line):
            if name:
                yield name, code
            name, code = found[1], []
        elif found := INSTRUCTION.match(line):
            code.append((int(found["address"], 16), found["name"], found["rest"].strip()))
    if name:
        yield name, code


def disassembler() -> Path | None:
    """`cuobjdump`, if there is one."""
    if on_path := shutil.which("cuobjdump"):
        return Path(on_path)
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    file = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return file if file.exists() else None


def mixes_of(program: Path, architecture: str = H100.architecture) -> dict[str, Mix]:
    """What all kernels of the built libraries are made of, by their demangled names."""
    found: dict[str, Mix] = {}
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    for library in sorted(ROOT.glob(LIBRARIES)):
        command = [program, "-sass", "-arch", architecture, library]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as running:
            assert running.stdout is not None
            mixes = {name: inner_loop(code) for name, code in functions(running.stdout)}
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, command)
        names = subprocess.run(
            ["c++filt"], input="\n".join(mixes), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        found.update(zip(names, mixes.values(), strict=True))
    return found


HEAD = """\
# Instructions of the kernels

What the inner loop of each kernel is made of: the smallest loop with half of the arithmetic that
all of its loops have; of a kernel without loops, all of it (*no loop*). Static shares of the
instructions of sm_90a, in %, by the disassembler. How often each runs is not in them: paths for
rows that are not aligned count as those for rows that are. *{rest}* are also addresses, predicates
and moves. Kernels and types are those of the launches of [the model](gpu-model.md).

"""


def instructions_table(steps: list[dict[str, Any]], mixes: dict[str, Mix]) -> str:
    """The page as Markdown, with the kernels launched in steps of record_launches.py."""
    rows: dict[tuple[str, str], str] = {}
    kinds = [*KINDS, REST]
    for step in steps:
        for launch in step["launches"]:
            kernel = launch["kernel"]
            mix = mixes[kernel]
            total = mix.count.total()
            shares = [f"{100 * mix.count[kind] / total:.0f}" for kind in kinds]
            cells = [
                f"`{short(kernel)}`",
                step["dtype"],
                str(total) + ("" if mix.loop else " (no loop)"),
            ]
            cells += [share if share != "0" else "" for share in shares]
            rows[step["operator"], kernel] = f"| {' | '.join(cells)} |"
    lines = []
    operator = ""
    for (of, _), row in rows.items():
        if of != operator:
            operator = of
            columns = ["kernel", "dtype", "instructions", *kinds]
            lines += ["", f"## {of}", "", f"| {' | '.join(columns)} |"]
            lines.append("|---|---|" + "---:|" * (len(columns) - 2))
        lines.append(row)
    return HEAD.format(rest=REST).rstrip() + "\n" + "\n".join(lines) + "\n"
