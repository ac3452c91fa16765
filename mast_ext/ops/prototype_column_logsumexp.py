"""Shape-only kernel of ``mast_ext::prototype_column_logsumexp``; schema in library.cpp."""

import torch

from mast_ext.ops.common import accumulation_dtype, shape_only

op = torch.ops.mast_ext.prototype_column_logsumexp.default


@shape_only("mast_ext::prototype_column_logsumexp")
def shapes(logits, center, temperature, normalize_rows):
    """What the operator returns, without values."""
    return logits.new_empty((logits.shape[1],), dtype=accumulation_dtype(logits))
