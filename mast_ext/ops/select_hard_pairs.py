"""Shape-only kernel of ``mast_ext::select_hard_pairs``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only

op = torch.ops.mast_ext.select_hard_pairs.default


@shape_only("mast_ext::select_hard_pairs")
def _(pair_losses, candidates):
    batch = pair_losses.shape[2]
    index = pair_losses.new_empty((2, batch), dtype=torch.long)
    return index, pair_losses.new_empty((batch,), dtype=accumulation_dtype(pair_losses))
