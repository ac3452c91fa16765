"""Shared arrays that kernels read or write in packets lie where packets may.

The compiler aligns an array like its elements. Where it happens to lie better nothing fails, on the
emulator as on a GPU, until another array beside it changes that.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDEST = 16  # bytes that a thread reads or writes at once

ARRAYS = re.compile(r"(?:alignas\((?P<bytes>\d+)\) )?__shared__ (?P<rest>[^;]*\[[^;]*);")
# What is cast, but for addresses that are looked at as integers.
CAST = re.compile(r"reinterpret_cast<(?!std::u?intptr_t)[^()]*>\((?P<what>(?:[^();]|\([^()]*\))*)")


def cast_in(text):
    return {name for found in CAST.finditer(text) for name in re.findall(r"\w+", found["what"])}


def misaligned(text):
    """Names of the shared arrays of a file that are cast, but may lie anywhere.

    In their kernel, or in a function of the file that has no shared memory itself: its parameters
    have the names of what is passed.
    """
    functions = re.split(r"^}", text, flags=re.MULTILINE)
    in_helpers = {name for each in functions if not ARRAYS.search(each) for name in cast_in(each)}
    for function in functions:
        cast = cast_in(function) | in_helpers
        for found in ARRAYS.finditer(function):
            names = set(re.findall(r"(\w+)\[", found["rest"]))
            if int(found["bytes"] or 0) < WIDEST:
                yield from sorted(names & cast)


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("__shared__ float sums[kRows][kColumns];", ["sums"]),
        ("__shared__ float other[8], sums[kRows][32 * kChunks];", ["sums"]),
        ("__shared__ std::int64_t sums[4][4];", ["sums"]),
        ("alignas(8) __shared__ float sums[4][4];", ["sums"]),
        ("alignas(16) __shared__ float sums[4][4];", []),
        ("alignas(32) __shared__ float sums[4][4];", []),
        ("__shared__ float more_sums[4][4];", []),
        ("extern __shared__ float sums[];", ["sums"]),
    ],
)
def test_finds_what_may_lie_anywhere(declared, found):
    cast = "*reinterpret_cast<float4*>(&sums[warp][d]) =\n    make_float4(0, 0, 0, 0);"
    assert list(misaligned(f"{declared}\n{cast}\n")) == found


# Casts and where they are beside the array `sums` -> whether it must be aligned
PLACES = [
    ("void kernel() { SUMS f(*reinterpret_cast<Packet<float, N>*>(own(sums) + i)); \n}", True),
    ("void g(float* sums) { *reinterpret_cast<float2*>(sums); \n}\nvoid kernel() { SUMS \n}", True),
    ("void one() { __shared__ float sums[4]; \n}", False),
    ("void kernel() { SUMS f(reinterpret_cast<std::uintptr_t>(sums)); \n}", False),
    ("void kernel() { SUMS *reinterpret_cast<float4*>(to) = f(sums); \n}", False),
    (
        "void g() { __shared__ int n[1]; *reinterpret_cast<int2*>(sums);\n}\nvoid k() { SUMS\n}",
        False,
    ),
]


@pytest.mark.parametrize(("text", "found"), PLACES)
def test_knows_whose_array_is_cast(text, found):
    assert list(misaligned(text.replace("SUMS", "__shared__ float sums[4];"))) == ["sums"] * found


@pytest.mark.parametrize("path", sorted(ROOT.glob("csrc/**/*.cu*")), ids=lambda path: path.name)
def test_shared_arrays_are_aligned(path):
    assert not list(misaligned(path.read_text()))


def test_knows_the_arrays_that_are_cast():
    """Without their alignment they would be found."""
    texts = [path.read_text() for path in ROOT.glob("csrc/**/*.cu*")]
    plain = [re.sub(r"alignas\(\d+\) __shared__", "__shared__", text) for text in texts]
    found = {name for text in plain for name in misaligned(text)}
    assert {"weights", "partial", "column_scale", "grad_masks"} <= found
