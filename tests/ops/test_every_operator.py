"""Every operator, forward and backward, in small and in all its kernels: what sanitizers run.

That results are right is for the other files. Here they have to be finite, of inputs that are.
"""

from pathlib import Path

import pytest
import torch
from operators import CALLS, Recorder

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"
SHARED = {"common", "columns", "hard_pairs", "pair_sums"}  # folders of no operator
# They render views: nothing differentiates or traces them (tests/augment/test_view_operators.py).
OF_PIXELS = {f"mast_ext::{name}" for name in ("new_pixels", "photometry", "resized_crops")}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of embeddings: a tile that is filled in part, one, several, and more than fit the fused backward.
DIMS = [40, 64, 128, 192, 320]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_is_finite(call, dtype, dim, device):
    results, gradients = call.with_gradients(call.tensors(9, dim, device=device, dtype=dtype))
    for tensor in (*results, *gradients.values()):
        assert tensor.cpu().isfinite().all()


def is_composite(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def test_all_are_here():
    with Recorder() as recorder:
        for call in CALLS:
            call.with_gradients(call.tensors())
    called = {op.name() for op, *_ in recorder.calls}
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "mast_ext::" in name}
    made_of_others = {name for name in registered if is_composite(name)}
    assert called and called == registered - made_of_others - OF_PIXELS
    folders = {path.name for path in KERNELS.iterdir()} - SHARED
    assert {f"mast_ext::{name}" for name in folders} <= registered
