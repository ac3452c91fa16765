"""Shape-only kernel of ``mast_ext::select_hard_pairs``; schema in library.cpp. No gradient."""

from typing import Any

import torch

from mast_ext.ops.common import accumulation_dtype

op = torch.ops.mast_ext.select_hard_pairs.default


@torch.library.register_fake("mast_ext::select_hard_pairs")
def _(pair_losses, candidates):
    batch = pair_losses.shape[2]
    index = pair_losses.new_empty((2, batch), dtype=torch.long)
    return index, pair_losses.new_empty((batch,), dtype=accumulation_dtype(pair_losses))


def no_gradient(op_name: str) -> None:
    """Detaches the results of an op that has no gradient from its inputs."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
        ctx.inputs = len(inputs)

    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        return (None,) * ctx.inputs

    torch.library.register_autograd(f"mast_ext::{op_name}", backward, setup_context=setup_context)


no_gradient("select_hard_pairs")
