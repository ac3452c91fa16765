"""Shape-only kernel of ``mast_ext::select_hard_cosine_pairs``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only

op = torch.ops.mast_ext.select_hard_cosine_pairs.default


@shape_only("mast_ext::select_hard_cosine_pairs")
def _(x, y, candidates, eps):
    batch = x.shape[1]
    index = x.new_empty((2, batch), dtype=torch.long)
    return index, x.new_empty((batch,), dtype=accumulation_dtype(x))
