"""The model of the CUDA kernels' speed (benchmarks/gpu_model): that by it no kernel gets slower."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks.gpu_model.chips import A100, H100, RTX_4090  # noqa: E402
from benchmarks.gpu_model.model import predict, short  # noqa: E402
from benchmarks.gpu_model.resources import Resources, built, resources_of  # noqa: E402
from benchmarks.gpu_model.table import predictions  # noqa: E402
from benchmarks.gpu_model.work import WORK, Work  # noqa: E402

COMMITTED = ROOT / "benchmarks" / "results" / "gpu-model.json"
SLOWER = 1.1
REGENERATE = "If that is meant, write the table again: benchmarks/gpu_model/table.py says how."
REPORT = """\
ptxas info    : Compiling entry function '_Z5tilesIfEvT_' for 'sm_90a'
ptxas info    : Function properties for _Z5tilesIfEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1536 bytes smem
ptxas info    : Compiling entry function '_Z5tilesIfEvT_' for 'sm_80'
ptxas info    : Used 40 registers, used 1 barriers
"""


def launch(blocks, threads=128, shared=0):
    return {"kernel": "tiles", "count": 1, "blocks": blocks, "threads": threads, "shared": shared}


def problems_of(found, before):
    """Which kernels are slower than before, or not the same ones."""
    if different := sorted(found.keys() ^ before.keys()):
        return [f"only now or only before: {key}" for key in different]
    return [
        f"{key}: {before[key]} us, now {us:.2f}"
        for key, us in found.items()
        if us > SLOWER * before[key]
    ]


def test_finds_a_slower_kernel():
    """More registers leave room for fewer blocks, which matters where there are many."""
    step = {
        "operator": "prototype_cross_entropy",
        "case": {"teachers": 2, "students": 2, "batch": 256, "prototypes": 4096},
        "dtype": "bfloat16",
        "launches": [{**launch(132), "kernel": "forward(Work)"}],
    }
    before, same, more = (
        predictions([step], {("forward(Work)", "sm_90a"): Resources(n, 0)}) for n in (64, 64, 255)
    )
    assert len(before) == 1
    assert problems_of(same, before) == problems_of(more, before) == []  # a block in each SM
    step["launches"][0]["blocks"] *= 8
    before, more = (
        predictions([step], {("forward(Work)", "sm_90a"): Resources(n, 0)}) for n in (64, 255)
    )
    (problem,) = problems_of(more, before)
    assert problem.startswith("prototype_cross_entropy, teachers=2 students=2 batch=256")
    assert len(problems_of({}, before)) == 1


def test_reads_a_report():
    assert resources_of([REPORT]) == {
        ("void tiles<float>(float)", "sm_90a"): Resources(168, 1536),
        ("void tiles<float>(float)", "sm_80"): Resources(40, 0),
    }


def test_names_are_short():
    assert short("void mast_ext::kernels::(anonymous namespace)::dots<c10::Half, 8>(int)") == "dots"
    assert short("mast_ext::kernels::merge(Work)") == "merge"
    assert short("contrastive::fused_backward<BFloat16, 128, 49152>") == "fused_backward"


@pytest.mark.parametrize(
    ("chip", "threads", "registers", "shared", "blocks"),
    [
        (H100, 128, 32, 0, 16),  # threads
        (H100, 32, 32, 0, 32),  # blocks
        (RTX_4090, 32, 32, 0, 24),
        (H100, 128, 168, 0, 3),  # registers
        (H100, 128, 32, 64 << 10, 3),  # shared memory: 228 KB, of which each block takes 65
        (A100, 128, 32, 64 << 10, 2),
        (RTX_4090, 128, 32, 64 << 10, 1),
    ],
)
def test_blocks_of_an_sm(chip, threads, registers, shared, blocks):
    assert chip.blocks_per_sm(threads, registers, shared) == blocks


def test_names_what_fits_no_sm():
    with pytest.raises(ValueError, match="no block of tiles fits an SM of RTX 4090"):
        predict(launch(1, shared=100 << 10), Resources(32, 0), None, RTX_4090)


def test_a_block_more_than_the_sms_takes_twice_the_time():
    work, own = Work(tensor=1e12), Resources(255, 0)
    full, one_more = (predict(launch(n, 256), own, work, H100) for n in (132, 133))
    assert full.limiter == "tensor"
    assert 1.9 < one_more.microseconds / full.microseconds < 2.1


def test_few_threads_do_not_fill_memory():
    few, many = (predict(launch(n), Resources(32, 0), Work(moved=1e9), H100) for n in (13, 1300))
    assert few.limiter == many.limiter == "memory"
    assert few.microseconds > 5 * many.microseconds


@pytest.mark.slow
def test_no_kernel_gets_slower(run, emulated_module):
    resources = built()
    if H100.architecture not in {architecture for _, architecture in resources}:
        pytest.skip(f"no report of a CUDA build for {H100.architecture} in build/")
    out = run(
        *(sys.executable, "-m", "benchmarks.gpu_model.record_launches"),
        env={"MAST_EXT_LIBRARY": str(emulated_module)},
    )
    steps = json.loads(out.splitlines()[-1])
    found, before = predictions(steps, resources), json.loads(COMMITTED.read_text())
    seen = {(s["operator"], short(each["kernel"])) for s in steps for each in s["launches"]}
    assert seen >= WORK.keys()
    problems = problems_of(found, before)
    assert not problems, "\n".join([*problems, REGENERATE])
