"""The model of the CUDA kernels' speed (benchmarks/gpu_model): that by it no kernel gets slower."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks import kernel_times  # noqa: E402
from benchmarks.gpu_model.calibrate import (  # noqa: E402
    CHOICES,
    at_ends,
    calibrate,
    left_out,
    report,
)
from benchmarks.gpu_model.chips import A100, H100, RTX_4090  # noqa: E402
from benchmarks.gpu_model.measured import measured  # noqa: E402
from benchmarks.gpu_model.model import (  # noqa: E402
    CONSTANTS,
    Constants,
    predict,
    short,
    work_of,
)
from benchmarks.gpu_model.points import Point  # noqa: E402
from benchmarks.gpu_model.resources import Resources, built, find, resources_of  # noqa: E402
from benchmarks.gpu_model.table import predictions  # noqa: E402
from benchmarks.gpu_model.targets import (  # noqa: E402
    GRAPH,
    TARGETS,
    Measurements,
    Step,
    beside_products,
    faster,
    graph_within,
    measurements,
    predicted,
    share,
    within,
)
from benchmarks.gpu_model.work import WORK, Work  # noqa: E402

COMMITTED = ROOT / "benchmarks" / "results" / "gpu-model.json"
SLOWER = 1.1
REGENERATE = "If that is meant, write the table again: benchmarks/gpu_model/__main__.py says how."
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
    """More shared memory leaves room for fewer blocks, which matters where there are many."""

    def found(blocks, shared):
        step = {
            "operator": "prototype_cross_entropy",
            "case": {"teachers": 2, "students": 2, "batch": 256, "prototypes": 4096},
            "dtype": "bfloat16",
            "launches": [{**launch(blocks), "kernel": "forward(Work)"}],
        }
        return predictions([step], {("forward(Work)", "sm_90a"): Resources(64, shared)})

    little, much = 1 << 10, 200 << 10
    before = found(132, little)
    assert len(before) == 1
    assert problems_of(found(132, much), before) == []  # a block in each SM
    before = found(132 * 16, little)
    (problem,) = problems_of(found(132 * 16, much), before)
    assert problem.startswith("prototype_cross_entropy, teachers=2 students=2 batch=256")
    assert problems_of(before, found(132 * 16, much)) == []  # faster
    assert len(problems_of({}, before)) == 1


def test_reads_a_report():
    assert resources_of([REPORT]) == {
        ("void tiles<float>(float)", "sm_90a"): Resources(168, 1536),
        ("void tiles<float>(float)", "sm_80"): Resources(40, 0),
    }


def test_names_what_was_not_compiled():
    with pytest.raises(LookupError, match=r"no report of tiles for sm_80 in build/: compile"):
        find({("tiles", "sm_90a"): Resources(32, 0)}, "tiles", "sm_80")


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
        (H100, 32, 148, 0, 12),  # of a warp 4,864: three in each quarter of 16,384
        (H100, 96, 148, 0, 4),
        (H100, 128, 32, 64 << 10, 3),  # shared memory: 228 KB, of which each block takes 65
        (A100, 128, 32, 64 << 10, 2),
        (RTX_4090, 128, 32, 64 << 10, 1),
        (H100, 128, 32, 45_670, 4),  # 46,694 with what CUDA takes: 46,720 are given
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


def test_launches_of_a_kernel_share_its_work():
    """Also those that are listed apart, as their grids differ."""
    launches = [launch(8), {**launch(4), "count": 3}, {**launch(4), "kernel": "finish(Work)"}]
    launches[:2] = [{**each, "kernel": "forward(Work)"} for each in launches[:2]]
    case = {"teachers": 1, "students": 1, "batch": 8, "prototypes": 64}
    step = {
        "operator": "prototype_cross_entropy",
        "case": case,
        "dtype": "float32",
        "launches": launches,
    }
    share = Work(moved=2 * 8 * 64 * 4 / 4)
    assert [work_of(step, each) for each in launches] == [share, share, None]


def test_reads_measured_times(tmp_path):
    """Of every chip that has a file, of the one with all kernels where there are both."""
    step = {
        "operator": "ntxent",
        "case": {"batch": 4, "dim": 8},
        "dtype": "float32",
        "mode": "forward",
        "host_us": 5.0,
        "elements": None,
        # Two kernels of one name: the mean of a launch.
        "kernels": [
            ["void mast_ext::kernels::rows<float>(Work)", 1, 8.0],
            ["void mast_ext::kernels::rows<double>(Work)", 3, 4.0],
            *([f"kernel_{n}(Work)", 1, 3.0] for n in range(4)),
        ],
    }
    document = json.dumps({"environment": {}, "rates": {}, "steps": [step]})
    markdown = kernel_times.table({"copy": 1, "bfloat16": 1, "float32": 1}, [step], {})
    (tmp_path / "gpu-h100-kernels.md").write_text(markdown)
    (tmp_path / "gpu-rtx-4090-kernels.md").write_text(markdown)
    (tmp_path / "gpu-rtx-4090-kernels.json").write_text(document)
    all_of = {"rows": 5.0, **{f"kernel_{n}": 3.0 for n in range(4)}}
    times = {("ntxent", "batch=4 dim=8", "float32", name): us for name, us in all_of.items()}
    found = measured(tmp_path)
    assert found == {H100: found[H100], RTX_4090: times}
    assert found[H100] == dict(list(times.items())[:4])  # five kernels


def points_by(constants, chip):
    """Launches that take as long as constants make them, each of an operator of its own."""
    many, few, single = launch(1320), launch(13), launch(132)
    launches = [
        *((many, Work(moved=1e8 * n)) for n in range(1, 4)),
        *((single, Work(tensor=1e10 * n)) for n in range(1, 4)),
        (single, Work(simple=1e9)),
        (single, Work(special=1e9)),
        (few, Work(moved=1e8)),
        (many, Work(tensor=1e11)),
        (many, Work(moved=8)),
    ]
    for at, (each, work) in enumerate(launches):
        seen = predict(each, Resources(64, 0), work, chip, constants).microseconds
        yield Point(str(at), str(at), chip, each, Resources(64, 0), work, seen)


def test_finds_the_constants_of_measured_times():
    meant = Constants(
        2e-6, 0.5, tensor=0.05, simple=0.01, special=0.025, full_warps=16, in_flight=24
    )
    points = list(points_by(meant, H100))
    found = calibrate(points)
    assert found == meant
    assert max(point.error(found) for point in points) == 0


def test_reports_what_one_chip_says_of_another():
    meant = Constants(launch=2e-6, memory=1.0)
    points = [*points_by(meant, H100), *points_by(meant, A100)]
    lines = list(report(points))
    assert "  A100 by H100's times: 1.00, 1.00" in lines
    assert "  H100 by A100's times: 1.00, 1.00" in lines
    assert f"The best found for all: {meant}" in lines
    assert "  memory is at an end of its choices" in lines
    assert "model.py" in lines[-1]  # which has others


def test_an_operator_says_nothing_of_itself():
    """Only the one that is left out has float32: without it, that constant is where it starts."""
    points = list(points_by(Constants(simple=0.04), H100))
    (error,) = left_out(points)["6"]
    assert error > 1
    assert max(error for name, (error,) in left_out(points).items() if name in "345") == 0


def test_constants_are_choices_with_larger_and_smaller_ones():
    assert at_ends(CONSTANTS) == []
    assert all(value in CHOICES[name] for name, value in asdict(CONSTANTS).items())


def test_targets_are_compared_with_what_was_measured():
    step = Step("ntxent", {"batch": 4, "dim": 8}, "NTXentLoss")
    known = Measurements(
        {"copy": 1e6, "bfloat16": 1e7},  # a byte, or ten operations, in a microsecond
        {
            "elements": 30,
            "operations": 400,
            "kernels": [["rows", 2, 10.0], ["nvjet_bz_TNT", 1, 60.0]],
        },
        {"mast_ext": 0.2, GRAPH: 0.05, "lightly": 1.0},
    )
    of_floor, of_rate = (
        share(which, step, 60) for which in (Measurements.floor, Measurements.of_products)
    )
    targets = [
        (of_floor, 75, True),  # 60 bytes in 80 us
        (of_rate, 50, False),
        (faster(step, "lightly", 5), 5, True),
        (faster(step, "lightly", 21, GRAPH), 20, False),
        (within(step, 80), 80, True),
        (graph_within(step, 49), 50, False),
        (beside_products(step, 1.4), 80 / 60, True),
    ]
    for target, value, reached in targets:
        found = target.measured(known)
        assert found == pytest.approx(value), target.goal
        assert target.reached(found) == reached, target.goal
    assert of_floor.predicted(120, known) == 50
    nothing = Measurements(known.rates, None, {})
    assert [target.measured(nothing) for target, *_ in targets] == [None] * len(targets)


def test_targets_were_measured():
    for target in TARGETS:
        assert target.measured(measurements(target.of)) is not None, (target.of, target.goal)


def test_predicts_all_kernels_of_a_step():
    """One without a formula, here by the name of its operator, is a launch."""
    step = Step("none", {"batch": 4}, "None")
    launches = [
        {"operator": "none", "case": {"batch": 4}, "dtype": dtype, "launches": [launch(1)] * count}
        for dtype, count in (("float32", 1), ("bfloat16", 2))
    ]
    resources = {("tiles", H100.architecture): Resources(64, 0)}
    assert predicted(step, launches, resources) == pytest.approx(2e6 * CONSTANTS.launch)
    assert predicted(Step("none", {"batch": 5}, "None"), launches, resources) is None


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
    # VICReg takes both views in one call, as it does on a GPU, not on a CPU.
    vicreg = [step for step in steps if step["operator"] == "variance_covariance"]
    moments = [each for s in vicreg for each in s["launches"] if short(each["kernel"]) == "moments"]
    assert [each["count"] for each in moments] == [1] * len(vicreg)
    found, before = predictions(steps, resources), json.loads(COMMITTED.read_text())
    seen = {(s["operator"], short(each["kernel"])) for s in steps for each in s["launches"]}
    assert seen >= WORK.keys()
    problems = problems_of(found, before)
    assert not problems, "\n".join([*problems, REGENERATE])
