"""The loss on both sides of the size up to which one operation negates and takes the mean."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mast_ext.losses import NegativeCosineSimilarity
from mast_ext.losses.negative_cosine_similarity import MOST_IN_ONE_SUM


@pytest.mark.parametrize("rows", [1, MOST_IN_ONE_SUM, MOST_IN_ONE_SUM + 1])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_matches_torch(rows, dim, device):
    shape = (3, rows) if dim == 0 else (rows, 3)
    x, y = (torch.randn(shape, device=device).requires_grad_() for _ in range(2))
    want = -F.cosine_similarity(x, y, dim).mean()
    want_grads = torch.autograd.grad(want, (x, y))
    found = NegativeCosineSimilarity(dim)(x, y)
    assert_close(found, want)
    assert_close(torch.autograd.grad(found, (x, y)), want_grads)
