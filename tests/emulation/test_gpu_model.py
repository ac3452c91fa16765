"""How launches fill a GPU is what the committed table says, or better."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "gpu-model.md"
AGAIN = f"python benchmarks/gpu_model.py --report {TABLE.relative_to(ROOT)}"


@pytest.fixture
def gpu_model(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_model

    return gpu_model


@pytest.mark.parametrize(
    (
        "threads",
        "registers",
        "shared",
        "blocks",
    ),  # on H100, A100, RTX 4090; by hand from the limits
    [
        (128, 255, 0, (2, 2, 2)),
        (256, 32, 0, (8, 8, 6)),
        (256, 64, 0, (4, 4, 4)),
        (1024, 32, 0, (2, 2, 1)),
        (32, 16, 0, (32, 32, 24)),
        (128, 128, 68096, (3, 2, 1)),
        (128, 32, 99 << 10, (2, 1, 1)),
    ],
)
def test_blocks_of_a_processor(gpu_model, threads, registers, shared, blocks):
    found = (c.blocks_per_processor(threads, registers, shared) for c in gpu_model.CHIPS)
    assert tuple(found) == blocks


def test_what_takes_most_of_a_step(gpu_model):
    h100 = gpu_model.CHIPS[0]
    byte, operation = 2 / h100.bandwidth, 3.5 / h100.products
    for least, most, seconds in (
        ((10**6, 10**6), "launches", 4 * 2.5e-6 + 10**6 * byte),
        ((10**9, 10**9), "memory", 4 * 2.5e-6 + 10**9 * byte),
        ((10**6, 10**12), "products", 4 * 2.5e-6 + 10**12 * operation),
    ):
        found = gpu_model.expected(h100, 4, least)
        assert found == (pytest.approx(seconds), most)


def test_names(gpu_model):
    name = "void mast_ext::kernels::(anonymous namespace)::tiles<c10::Half, 64>(Work<(bool)1>, int)"
    other = name.replace("(anonymous namespace)", "_GLOBAL__N__1a_5_tiles_cu_2b")
    assert gpu_model.full_name(name) == gpu_model.full_name(other)
    assert gpu_model.short_name(gpu_model.full_name(name)) == "tiles<Half, 64>"


def by_launch(path):
    keys = ("operator", "case", "kernel", "blocks", "threads")
    rows = json.loads(path.read_text())["launches"]
    return {tuple(row[key] for key in keys): row for row in rows}


@pytest.mark.slow
def test_no_launch_fills_less_of_a_gpu(run, gpu_model, emulated_module, tmp_path):
    if not gpu_model.needs_of_kernels():
        pytest.skip("no report of a CUDA build in build/: no nvcc, or MAST_EXT_CUDA=OFF")
    run(sys.executable, "benchmarks/gpu_model.py", "--report", str(tmp_path / "table.md"))
    found = by_launch(tmp_path / "table.json")
    committed = by_launch(TABLE.with_suffix(".json"))
    assert found.keys() == committed.keys(), f"other launches than in the table; again: {AGAIN}"
    for key, row in found.items():
        before = committed[key]
        assert row["launches"] == before["launches"], (key, AGAIN)
        for chip, blocks in row["in_flight"].items():
            assert blocks >= 0.9 * before["in_flight"][chip], (key, chip, AGAIN)
