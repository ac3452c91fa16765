"""Shape-only kernel of ``mast_ext::select_hard_cosine_pairs``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype

op = torch.ops.mast_ext.select_hard_cosine_pairs.default


@torch.library.register_fake("mast_ext::select_hard_cosine_pairs")
def _(x, y, candidates, eps):
    batch = x.shape[1]
    index = x.new_empty((2, batch), dtype=torch.long)
    return index, x.new_empty((batch,), dtype=accumulation_dtype(x))
