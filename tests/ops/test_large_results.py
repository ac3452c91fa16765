"""Results of 32 MB and more on the CPU lie in memory that is kept for the next ones."""

import gc
import sys

import pytest
import torch

from mast_ext import functional

PROTOTYPES = 1 << 20  # 16 rows of float32 logits take 64 MB


@pytest.fixture(autouse=True)
def poisoned_memory():
    """None: here tensors are large, and memory is looked at."""


def gradient(rows: int, seed: int = 0) -> torch.Tensor:
    """Of a sum of cross entropies with respect to ``rows`` rows of logits."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(1, rows, PROTOTYPES, generator=generator).requires_grad_()
    teacher = torch.rand(1, rows, PROTOTYPES, generator=generator)
    ce = functional.prototype_cross_entropy(
        student, teacher, student_temperature=0.1, teacher_temperature=0.04
    )
    return torch.autograd.grad(ce.sum(), student)[0]


def test_results_that_live_together_do_not_share_memory():
    first, second = gradient(9), gradient(9, seed=1)
    expected = first.clone()
    third = gradient(9, seed=2)
    assert len({t.untyped_storage().data_ptr() for t in (first, second, third)}) == 3
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    # What an element's gradient sums to: softmax minus softmax.
    assert first.sum(-1).abs().max() < 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux")
def test_memory_is_used_again_whatever_it_held():
    expected = gradient(9)
    saved = expected.clone()
    expected.fill_(torch.nan)
    place = expected.untyped_storage().data_ptr()
    del expected
    gc.collect()
    again = gradient(9)
    assert again.untyped_storage().data_ptr() == place
    torch.testing.assert_close(again, saved, rtol=0, atol=0)


def test_views_keep_the_memory():
    row = gradient(9)[0, 0]
    expected = row.clone()
    other = gradient(9, seed=1)
    torch.testing.assert_close(row, expected, rtol=0, atol=0)
    assert other.untyped_storage().data_ptr() != row.untyped_storage().data_ptr()


def test_gradients_of_a_list_share_memory():
    """They are large together; each keeps it."""
    teacher = torch.rand(1, 3, PROTOTYPES)

    def gradients():
        student = [torch.rand(3, PROTOTYPES).requires_grad_() for _ in range(3)]
        ce = functional.prototype_cross_entropy(
            student, teacher, student_temperature=0.1, teacher_temperature=0.04
        )
        return torch.autograd.grad(ce.sum(), student)

    first = gradients()
    assert all(grad.data_ptr() % 64 == 0 for grad in first)
    assert len({grad.untyped_storage().data_ptr() for grad in first}) == 3
    last, place = first[-1], first[0].data_ptr()
    expected = last.clone()
    del first
    other = gradients()
    torch.testing.assert_close(last, expected, rtol=0, atol=0)
    del last
    gc.collect()
    assert other[0].data_ptr() != place
    if sys.platform == "linux":
        assert gradients()[0].data_ptr() == place


def test_another_size_finds_its_own_memory():
    small = gradient(9)
    del small
    large = gradient(16)
    assert large.isfinite().all()
    assert large.shape == (1, 16, PROTOTYPES)


def test_denormal_numbers_are_left_to_the_caller():
    tiny = torch.tensor([1e-40])
    gradient(9)
    assert (tiny * 0.5).item() > 0
