"""Counts what a step of small losses launches on a GPU, without one; prints JSON by loss.

Of our kernels the emulator knows how many run. Of PyTorch's operations, those inside of ours
included, each that has a CUDA kernel counts as one launch, unless it only allocates or only looks
at memory differently. The environment variable MAST_EXT_LIBRARY names the build with the emulated
kernels.
"""

import collections
import ctypes
import json
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mast_ext import losses

BATCH, DIM = 256, 128
AUGMENTATIONS = 5
WITHOUT_LAUNCH = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
    *("view", "view_as", "_unsafe_view", "reshape", "flatten", "as_strided", "alias", "detach"),
    *("expand", "expand_as", "select", "slice", "narrow", "squeeze", "unsqueeze", "unbind"),
    *("transpose", "t", "permute", "movedim", "diagonal", "chunk", "split", "unflatten"),
    "broadcast_tensors",
    *("result_type", "promote_types", "resolve_conj", "resolve_neg", "lift_fresh"),
    *("_has_same_storage_numel", "is_same_size"),
}
# Which call others, if anything.
WITHOUT_WORK = {"to", "contiguous", "expand_as", "reshape", "flatten"}

KNOWN = {*torch._C._dispatch_get_all_op_names()}

emulator = ctypes.CDLL(Path(os.environ["MAST_EXT_LIBRARY"]).parent / "libemulated_kernels.so")


def two_views(loss):
    return lambda x, y: loss(x, y)


def mast(**options):
    masks = losses.AugmentationMasks((0.25, 0.2, 0.15, 0.1, 0.05), DIM)
    changed = torch.rand(BATCH, AUGMENTATIONS) < 0.5
    loss = losses.MASTLoss(masks, **options)

    def step(x, y):
        masks.zero_grad()
        return loss(x, y, changed).loss

    return step


def has_cuda_kernel(name):
    overloads = getattr(torch.ops.aten, name).overloads()
    names = {f"aten::{name}" if o == "default" else f"aten::{name}.{o}" for o in overloads}
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA") for n in names & KNOWN)


def launches_of(event):
    """Names of the operations of torch that an event of the profiler launches."""
    name = event.name.removeprefix("aten::")
    if name != event.name:
        if name in WITHOUT_LAUNCH:
            return []
        if has_cuda_kernel(name) or not (event.cpu_children or name in WITHOUT_WORK):
            return [name]
    return [launched for child in event.cpu_children for launched in launches_of(child)]


def count(step):
    """Launches of our kernels, and of PyTorch's by the operation."""
    x = torch.randn(BATCH, DIM).requires_grad_()
    y = (x + 0.5 * torch.randn(BATCH, DIM)).detach().requires_grad_()
    step(x, y).backward()
    x.grad = y.grad = None
    before = emulator.emulated_launches()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(x, y).backward()
    top = [event for event in profiled.events() if event.cpu_parent is None]
    names = [name for event in top for name in launches_of(event)]
    return {
        "ours": emulator.emulated_launches() - before,
        "torch": dict(collections.Counter(names)),
    }


sigreg = losses.SIGReg()
STEPS = {
    "NTXentLoss": two_views(losses.NTXentLoss()),
    "DCLLoss": two_views(losses.DCLLoss()),
    "InfoNCELoss": two_views(losses.InfoNCELoss()),
    "InfoNCELoss two-sided": two_views(losses.InfoNCELoss(two_sided=True)),
    "VICRegLoss": two_views(losses.VICRegLoss()),
    "BarlowTwinsLoss": two_views(losses.BarlowTwinsLoss()),
    "NegativeCosineSimilarity": two_views(losses.NegativeCosineSimilarity()),
    "MASTLoss": mast(),
    "SIGReg": lambda x, y: sigreg(torch.stack((x, y))),
}
print(json.dumps({name: count(step) for name, step in STEPS.items()}))
