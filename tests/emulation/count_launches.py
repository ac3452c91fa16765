"""Counts what a step of small losses launches on a GPU, without one; prints JSON by loss.

Of our kernels the emulator knows how many run. Of PyTorch's operations those count that call no
other, and neither only allocate nor only look at memory differently: about as many as on a GPU,
where some, such as a mean, are one kernel, that are two operations on a CPU. The environment
variable MAST_EXT_LIBRARY names the build with the emulated kernels.
"""

import collections
import ctypes
import json
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mast_ext import losses
from mast_ext.losses.common import spread

BATCH, DIM = 256, 128
AUGMENTATIONS = 5
WITHOUT_KERNELS = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
    *("view", "view_as", "_unsafe_view", "reshape", "flatten", "as_strided", "alias", "detach"),
    *("expand", "expand_as", "select", "slice", "narrow", "squeeze", "unsqueeze", "unbind"),
    *("transpose", "t", "permute", "movedim", "diagonal", "chunk", "split", "unflatten"),
    *("contiguous", "to", "lift_fresh", "result_type", "is_same_size", "_has_same_storage_numel"),
}

emulator = ctypes.CDLL(Path(os.environ["MAST_EXT_LIBRARY"]).parent / "libemulated_kernels.so")


def two_views(loss):
    return lambda x, y: loss(x, y)


def mast(**options):
    masks = losses.AugmentationMasks((0.25, 0.2, 0.15, 0.1, 0.05), DIM)
    changed = torch.rand(BATCH, AUGMENTATIONS) < 0.5
    loss = losses.MASTLoss(masks, **options)
    return lambda x, y: loss(x, y, changed).loss


def count(step):
    """Launches of our kernels, and of PyTorch's by the operation."""
    x = torch.randn(BATCH, DIM).requires_grad_()
    y = (x + 0.5 * torch.randn(BATCH, DIM)).detach().requires_grad_()
    step(x, y).backward()
    x.grad = y.grad = None
    before = emulator.emulated_launches()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(x, y).backward()
    of_torch = collections.Counter()
    for event in profiled.events():
        name = event.name.removeprefix("aten::")
        calls_another = any(child.name.startswith("aten::") for child in event.cpu_children)
        if name != event.name and not calls_another and name not in WITHOUT_KERNELS:
            of_torch[name] += 1
    return {"ours": emulator.emulated_launches() - before, "torch": dict(of_torch)}


spread.counts_launches = lambda _: True  # as on a GPU
STEPS = {
    "NTXentLoss": two_views(losses.NTXentLoss()),
    "DCLLoss": two_views(losses.DCLLoss()),
    "InfoNCELoss": two_views(losses.InfoNCELoss()),
    "InfoNCELoss two-sided": two_views(losses.InfoNCELoss(two_sided=True)),
    "VICRegLoss": two_views(losses.VICRegLoss()),
    "BarlowTwinsLoss": two_views(losses.BarlowTwinsLoss()),
    "NegativeCosineSimilarity": two_views(losses.NegativeCosineSimilarity()),
    "MASTLoss": mast(),
}
print(json.dumps({name: count(step) for name, step in STEPS.items()}))
