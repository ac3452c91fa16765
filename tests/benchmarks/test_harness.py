"""How contestants are raced: on equal inputs, only if they agree, and in turn."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mast_ext.benchmarks import harness, rates
from mast_ext.benchmarks.harness import DisagreementError, Workload, race
from mast_ext.benchmarks.ops import workloads
from mast_ext.benchmarks.peak_memory import CLEAR
from mast_ext.benchmarks.rates import Rates

CALLS: list[str] = []


def called(name, value=0.0):
    def contestant(x):
        CALLS.append(name)
        return x.square().sum() + value

    return contestant


SQUARES = Workload(
    name="squares",
    cases=[{"rows": 4}],
    inputs=lambda rows, dtype: (torch.randn(rows, dtype=dtype),),
    contestants={"mast_ext": called("ours"), "rival": called("rival")},
    least=lambda rows: (2 * rows, 0),
)


def test_contestants_are_timed_in_turn():
    CALLS.clear()
    results = race(SQUARES, {"rows": 4}, "forward + backward", "cpu", 4, memory=False)
    assert [(r.name, len(r.milliseconds), r.peak_bytes) for r in results] == [
        ("mast_ext", 4, None),
        ("rival", 4, None),
    ]
    timed = CALLS[-16:]  # each is called once before it is timed
    assert timed == ["ours", "ours", "rival", "rival"] * 4


def test_who_does_not_agree_is_not_timed():
    wrong = replace(SQUARES, contestants={**SQUARES.contestants, "wrong": called("wrong", 0.1)})
    CALLS.clear()
    with pytest.raises(DisagreementError, match=r"squares of {'rows': 4}: wrong gives .* mast_ext"):
        race(wrong, {"rows": 4}, "forward", "cpu", 4, memory=False)
    assert CALLS == ["ours", "rival", "wrong"]
    small = {"mast_ext": lambda x: 0 * x.sum() + 7e-4, "nothing": lambda x: 0 * x.sum()}
    with pytest.raises(DisagreementError, match="nothing gives"):  # of a loss that is small
        race(replace(SQUARES, contestants=small), {"rows": 4}, "forward", "cpu", 4, memory=False)
    nan = replace(SQUARES, contestants={**SQUARES.contestants, "NaN": called("nan", float("nan"))})
    with pytest.raises(DisagreementError, match="NaN gives nan"):
        race(nan, {"rows": 4}, "forward", "cpu", 4, memory=False)


def test_compiled_contestants_can_be_left_out():
    compiled = replace(SQUARES, contestants={**SQUARES.contestants, "torch.compile": None})
    results = race(compiled, {"rows": 4}, "forward", "cpu", 3, compiled=False, memory=False)
    assert [result.name for result in results] == ["mast_ext", "rival"]


def test_slow_ones_get_fewer_rounds(monkeypatch):
    monkeypatch.setattr(harness.Clock, "__call__", lambda self, step: 1000.0)
    results = race(SQUARES, {"rows": 4}, "forward", "cpu", 20, seconds=5.0, memory=False)
    assert [len(result.milliseconds) for result in results] == [5, 5]


def test_least_work_is_of_whole_steps():
    assert SQUARES.least_work({"rows": 4}, "forward + backward", torch.float32) == (32, 0)
    assert SQUARES.least_work({"rows": 4}, "forward + backward", torch.bfloat16) == (16, 0)
    assert SQUARES.least_work({"rows": 4}, "forward", torch.float32) is None
    alone = replace(SQUARES, backward=False)
    assert alone.least_work({"rows": 4}, "forward", torch.float32) == (32, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_a_contestant_holds():
    """One matrix of NT-Xent: 2048 x 2048 similarities of 4 bytes, several times over."""
    contestant = ("ntxent", "one matrix", '{"batch": 1024, "dim": 128}', "forward + backward")
    command = [sys.executable, "-m", "mast_ext.benchmarks.peak_memory", *contestant]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 30e6 < int(found) < 300e6


HELD = """
import torch
from mast_ext.benchmarks.peak_memory import forget, peak

torch.ones(100_000_000).sum()  # a peak that is over
blocks = [torch.ones(10_000) for _ in range(5_000)]  # memory of the heap, which is free again
del blocks
forget()
before = peak()
blocks = [torch.ones(10_000) for _ in range(2_000)]
print(peak() - before)
"""


@pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason=f"writes {CLEAR}")
def test_memory_counts_whatever_was_there_before():
    found = subprocess.run([sys.executable, "-c", HELD], check=True, capture_output=True, text=True)
    assert 60e6 < int(found.stdout) < 120e6


def test_rates_say_the_least_time():
    found = Rates(copy=10e9, cached_copy=100e9, products={torch.float32: 50e9})
    large = 10**9
    assert found.least_seconds(large, 0, torch.float32) == pytest.approx(0.1)
    assert found.least_seconds(large, 10**10, torch.float32) == pytest.approx(0.2)
    assert found.least_seconds(10**6, 0, torch.float32) == pytest.approx(1e-5)


def test_rates_are_measured(monkeypatch):
    monkeypatch.setattr(rates, "LARGE", 1 << 22)
    monkeypatch.setitem(rates.SIDE, "cpu", 64)
    found = rates.measure_rates("cpu", [torch.float32])
    assert found.copy > 0 and found.cached_copy > 0 and found.products[torch.float32] > 0


TINY = {
    **{"views": 2, "batch": 12, "dim": 16, "subspaces": 3, "rows": 20, "prototypes": 32},
    **{"images": 3, "tokens": 9, "teachers": 2, "students": 3, "num_globals": 2, "local_crops": 4},
}


@pytest.mark.parametrize("name", workloads())
def test_contestants_of_every_workload_agree(name):
    """Also at sizes that are not its own, as `mast-ext bench ops` allows them."""
    workload = workloads()[name]
    case = {size: TINY[size] for size in workload.cases[0]}
    mode = "forward + backward" if workload.backward else "forward"
    results = race(workload, case, mode, "cpu", 1, compiled=False, memory=False)
    assert len(results) > 1 and results[0].name == "mast_ext"
    assert all(case.keys() == workload.cases[0].keys() for case in workload.gpu_cases)
    if workload.least is not None:
        moved, operations = workload.least_work(case, mode, torch.float32)
        assert moved > 0 and operations >= 0
