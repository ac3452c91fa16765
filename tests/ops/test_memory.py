"""How much memory operators take, from the peak of a process that does nothing else."""

import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.dispatch,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc"),
]

PROGRAM = """
import json
from pathlib import Path

import torch
from mast_ext import functional

def memory(kind):
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{kind}:")[1].split()[0]) / 1024

def rise(step, small, large):
    "What a step with large inputs adds to the memory, in MB, when a small one has loaded all code."
    step(*small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmHWM")
    step(*large)
    return memory("VmHWM") - before

def contrast(x):
    lse, positive = functional.contrastive_logsumexp(x, temperature=0.1)
    (lse.sum() - positive.sum()).backward()

def sigmoid_contrast(x, y):
    functional.sigmoid_contrast(x, y, scale=10.0, bias=-10.0, weights=torch.ones(())).backward()

def cross_entropy(student, teacher):
    ce, mean = functional.prototype_cross_entropy_with_mean(
        student, teacher, student_temperature=0.1, teacher_temperature=0.04
    )
    return torch.autograd.grad(ce.sum(), [student])

def rows(*shape):
    return torch.randn(shape, requires_grad=True)

def logits(*shape):
    return torch.randn(shape, requires_grad=True), torch.randn(shape)

rises = {
    "prototype_cross_entropy": rise(cross_entropy, logits(2, 2, 8), logits(2, 32, 65536)),
    "contrastive_logsumexp": rise(
        contrast,
        [torch.randn(2, 8, 128, requires_grad=True)],
        [torch.randn(2, 4096, 128, requires_grad=True)],
    ),
    "sigmoid_contrast": rise(
        sigmoid_contrast,
        [torch.randn(8, 128, requires_grad=True) for _ in range(2)],
        [torch.randn(8192, 128, requires_grad=True) for _ in range(2)],
    ),
}
# Of forward passes alone; without a gradient first, as memory is used again.
forwards = {
    "sliced_characteristic_sums": (
        functional.sliced_characteristic_sums,
        [rows(1, 4, 512), torch.randn(512, 1024)],
        [rows(4, 2048, 512), torch.randn(512, 1024)],
    ),
    "gram_difference of few": (
        functional.gram_difference,
        [rows(2, 8, 384) for _ in range(2)],
        [rows(64, 256, 384) for _ in range(2)],
    ),
    "gram_difference of many": (
        functional.gram_difference,
        [rows(2, 40, 16) for _ in range(2)],
        [rows(64, 400, 192) for _ in range(2)],
    ),
}
for name, (forward, *sizes) in forwards.items():
    rises[name] = {"no_grad": rise(torch.no_grad()(forward), *sizes), "grad": rise(forward, *sizes)}
print(json.dumps(rises))
"""


@pytest.fixture(scope="module")
def rises():
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_cross_entropy_takes_memory_for_its_gradient_alone(rises):
    """16 MB; probabilities of one list of views would be as much again."""
    assert 12 < rises["prototype_cross_entropy"] < 16 + 6


def test_contrast_stays_far_below_the_matrix_of_similarities(rises):
    """Of 8192 rows it would take 256 MB."""
    assert 4 < rises["contrastive_logsumexp"] < 50


def test_sigmoid_contrast_stays_far_below_the_matrix_of_logits(rises):
    """Of 8192 rows and columns it would take 256 MB; the gradients take 8."""
    assert 8 <= rises["sigmoid_contrast"] < 50


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("sliced_characteristic_sums", 33),  # projections
        ("gram_difference of few", 16),  # products of tokens
        ("gram_difference of many", 36),  # products of dimensions
    ],
)
def test_nothing_is_kept_where_no_gradient_is_wanted(rises, name, kept):
    """What is kept for the backward, in MB, is more than all that a forward takes without."""
    assert rises[name]["grad"] > 0.9 * kept
    assert rises[name]["no_grad"] < 0.7 * kept
