"""A steady training step of any method makes the host wait for the GPU nowhere.

On a machine without a GPU the step runs on torch's meta device, whose tensors have shapes and no
values, as the host sees those of a GPU that has yet to compute them. A watch notes what a GPU would
be waited for: values read, searches whose result has as many rows as values say, copies from or to
memory that is not page-locked, and what Python numbers are sent for. With a GPU torch itself looks.
"""

import traceback
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mast_ext.methods import METHODS as REGISTRY
from mast_ext.methods import HardViewOptions
from mast_ext.train.loop import fit as fitting
from mast_ext.train.loop.module import PretrainModule

DEVICE = torch.device("meta")
FIRST, LAST = 1, 3  # steps that are watched, from 0, the last one excluded

METHODS = [
    *sorted(REGISTRY),
    *(f"{name}+hard" for name in sorted(REGISTRY)),
    *("simclr+equimod", "dino+equimod", "ibot+equimod", "mast+equimod+hard", "ibot+equimod+hard"),
]


class Enough(Exception):
    """Ends a run that has been watched."""


class PageLocked:
    """Memory that counts as page-locked."""

    def __init__(self):
        self.tensors = {}  # by address; kept, so that no other memory gets it

    def add(self, tensor):
        self.tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def __contains__(self, tensor):
        return tensor.untyped_storage().data_ptr() in self.tensors


def where():
    """The line of the package, or else of this file, that is being run."""
    frames = [f for f in traceback.extract_stack() if "torch" not in f.filename]
    own = [f for f in frames if "mast_ext/" in f.filename] or frames[:-3]
    return f"{own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}"


class Watch(TorchDispatchMode):
    """Notes what of the device's the host waits for; computes what the host computes."""

    def __init__(self, pinned):
        super().__init__()
        self.pinned, self.found, self.watching = pinned, [], False
        self.python = PythonValues(self)

    def note(self, what):
        if self.watching:
            self.found.append(f"{what} at {where()}")

    def __enter__(self):
        self.python.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.python.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "_to_copy":
            return self._copy(func, args, kwargs)
        if name == "copy_":
            return self._copy_into(func, *args, **kwargs)
        here = [tensor for tensor in tensors if tensor.is_meta]
        if name == "_local_scalar_dense" and here:
            self.note("a value is read")
            return torch.ones((), dtype=here[0].dtype).item()
        if name.startswith(("index", "_unsafe_index", "_index")) and any(
            index.dtype in (torch.bool, torch.uint8)
            for index in tree_leaves(args[1])
            if isinstance(index, Tensor) and index.is_meta
        ):
            self.note("a search by a mask")
        others = [tensor for tensor in tensors if not tensor.is_meta]
        # Elementwise operations take a number on the host along as an argument.
        numbers = torch.Tag.pointwise in func.tags and name != "where"
        if here and any(tensor.ndim or not numbers for tensor in others):
            self.note(f"{name} takes host memory")
        try:
            return func(*args, **kwargs)
        except NotImplementedError:
            self.found.append(f"{name} has no result without values at {where()}")
            raise Enough from None

    def _copy(self, func, args, kwargs):
        source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        if source.is_meta == (target.type == "meta"):
            return func(*args, **kwargs)
        if source.is_meta:
            self.note("a copy to the host")
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        self._require_page_locked(source, kwargs.get("non_blocking", False))
        return func(*args, **kwargs)

    def _copy_into(self, func, target, source, non_blocking=False):
        if target.is_meta and not source.is_meta:
            self._require_page_locked(source, non_blocking)
        if target.is_meta or not source.is_meta:
            return func(target, source, non_blocking)
        self._require_page_locked(target, non_blocking)
        return target.fill_(1)

    def _require_page_locked(self, host, non_blocking):
        if not non_blocking or host not in self.pinned:
            self.note("a copy from or to memory that is not page-locked")


class PythonValues(TorchFunctionMode):
    """Notes for a watch what of Python's is sent to the device."""

    CREATE = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
    INDEX = (Tensor.__getitem__, Tensor.__setitem__)

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.CREATE and not isinstance(args[0], Tensor):
            target = kwargs.get("device")
            if target is not None and torch.device(target).type == "meta":
                self.watch.note("Python numbers are sent")
        if func is Tensor.new_tensor and args[0].is_meta:
            self.watch.note("Python numbers are sent")
        if func in self.INDEX and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(entry, (list, np.ndarray)) for entry in index):
                self.watch.note("a list of indices is sent")
        return func(*args, **kwargs)


def pretend_streams(monkeypatch, pinned):
    """Streams and events that do nothing, and memory that counts as page-locked."""
    stream = SimpleNamespace(record_event=lambda: None, wait_event=lambda event: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(
        Tensor, "pin_memory", lambda own: own if own in pinned else pinned.add(own.clone())
    )
    empty = torch.empty

    def empty_or_locked(*args, pin_memory=False, **kwargs):
        made = empty(*args, **kwargs)
        return pinned.add(made) if pin_memory else made

    monkeypatch.setattr(torch, "empty", empty_or_locked)


def pretend_autocast(monkeypatch):
    """The meta device has no autocast: the CPU's stands for it."""
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        original = getattr(torch, name)

        def instead(device, *args, original=original, **kwargs):
            device = "cpu" if str(device) == "meta" else device
            return original(device, *args, **kwargs)

        monkeypatch.setattr(torch, name, instead)


def pretend_generators(monkeypatch):
    """The meta device has no random numbers, and so no generators: one of the CPU's goes unused."""
    generator, randn = torch.Generator, torch.randn

    def instead(*size, generator=None, **options):
        return randn(*size, **options)

    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch, "randn", instead)


@pytest.fixture
def watch(monkeypatch):
    """A watch that runs, for a machine without a GPU."""
    pinned = PageLocked()
    pretend_streams(monkeypatch, pinned)
    pretend_autocast(monkeypatch)
    pretend_generators(monkeypatch)
    with Watch(pinned) as watch:
        yield watch


def steady(tiny, **changes):
    """Settings with nothing but steps among those that are watched."""
    train = replace(tiny.train, checkpoint_every=1000, log_every=1000, logger="csv")
    data = replace(tiny.data, max_images=8 * (LAST + 1))
    return replace(tiny, train=replace(train, **changes), data=data)


def run_watched(train_tiny, monkeypatch, config, method, begin, end):
    """Runs steps 0 to `LAST`, with calls before the first watched step and behind the last one."""

    def hook(module, batch, batch_idx):
        if module.trainer.global_step == FIRST:
            begin()
        if module.trainer.global_step == LAST:
            end()
            raise Enough

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", hook)
    with pytest.raises(Enough):
        train_tiny(config=config, method=method)


def waits_of(train_tiny, monkeypatch, watch, config, method):
    strategy = SingleDeviceStrategy(DEVICE)
    monkeypatch.setattr(fitting, "_strategy", lambda train: {"devices": 1, "strategy": strategy})
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda own, device: None)
    began = []

    def begin():
        began.append(True)
        watch.watching = True

    def end():
        watch.watching = False

    run_watched(train_tiny, monkeypatch, config, method, begin, end)
    assert began or watch.found
    return sorted(set(watch.found))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_nothing(train_tiny, tiny, monkeypatch, watch, method):
    assert waits_of(train_tiny, monkeypatch, watch, steady(tiny), method) == []


VARIANTS = {
    "parts": lambda config: replace(config, train=replace(config.train, accumulate=2)),
    "sgd": lambda config: replace(config, optimizer=replace(config.optimizer, name="sgd")),
    "lars": lambda config: replace(config, optimizer=replace(config.optimizer, name="lars")),
    "clip": lambda config: replace(config, optimizer=replace(config.optimizer, clip=1.0)),
    "progress": lambda config: replace(config, train=replace(config.train, progress="on")),
    "no selection": lambda config: replace(config, hard_views=HardViewOptions(4, warmup=99.0)),
    "random selection": lambda config: replace(
        config, hard_views=HardViewOptions(4, strategy="softmax", fraction=0.5)
    ),
    "uncertainty": lambda config: replace(config, mast=replace(config.mast, uncertainty=True)),
    "fixed masks": lambda config: replace(config, mast=replace(config.mast, masks="blocks")),
    "contrast": lambda config: replace(config, mast=replace(config.mast, base="nt_xent")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_waits(train_tiny, tiny, monkeypatch, watch, variant):
    config = VARIANTS[variant](steady(tiny))
    assert waits_of(train_tiny, monkeypatch, watch, config, "mast") == []


@pytest.mark.parametrize("method", ["ibot", "dino"])
@pytest.mark.parametrize("warmup", [0.0, 99.0])
def test_no_parts_of_crops_wait(train_tiny, tiny, monkeypatch, watch, method, warmup):
    config = VARIANTS["parts"](steady(tiny))
    config = replace(config, hard_views=HardViewOptions(4, local_views=3, warmup=warmup))
    assert waits_of(train_tiny, monkeypatch, watch, config, method) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to wait for")
def test_a_step_waits_for_no_gpu(train_tiny, tiny, monkeypatch, method):
    def begin():
        torch.cuda.set_sync_debug_mode("error")

    def end():
        torch.cuda.set_sync_debug_mode("default")

    try:
        run_watched(train_tiny, monkeypatch, steady(tiny, accelerator="cuda"), method, begin, end)
    finally:
        end()


def host(*shape):
    return torch.ones(shape)


FAULTS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "truth": lambda x: bool((x > 0).all()),
    "list": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "nonzero": lambda x: (x > 0).nonzero(),
    "mask": lambda x: x[x > 0],
    "mask to write": lambda x: x.index_put((x > 0,), torch.zeros((), device=DEVICE)),
    "equal": lambda x: torch.equal(x, x),
    "list of indices": lambda x: x[[0, 1]],
    "list behind a slice": lambda x: x[:, [0, 1]],
    "array of indices": lambda x: x[np.array([0, 1])],
    "indices on the host": lambda x: x[torch.tensor([0, 1])],
    "constant": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "constant like": lambda x: x.new_tensor([1.0]),
    "constant moved": lambda x: torch.tensor([1.0]).to(DEVICE),
    "as tensor": lambda x: torch.as_tensor(1.0, device=DEVICE),
    "pageable": lambda x: host(2).to(DEVICE, non_blocking=True),
    "blocking": lambda x: host(2).pin_memory().to(DEVICE),
    "pageable written": lambda x: x.copy_(host(3, 4), non_blocking=True),
    "read into pageable": lambda x: host(3, 4).copy_(x, non_blocking=True),
    "where with a number on the host": lambda x: torch.where(x > 0, x, torch.tensor(1.0)),
}

FINE = {
    "page-locked": lambda x: host(2).pin_memory().to(DEVICE, non_blocking=True),
    "read into page-locked": lambda x: torch.empty(3, 4, pin_memory=True).copy_(x, True),
    "where with Python's number": lambda x: x.where(x > 0, 0.0),
    "made there": lambda x: torch.full((), 2.0, device=DEVICE),
    "scaled by a number on the host": lambda x: x * torch.tensor(2.0),
    "indices": lambda x: x[torch.arange(2, device=DEVICE)],
    "host alone": lambda x: host(3)[host(3) > 0].sum().item(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_watch_sees(watch, fault):
    x = torch.empty(3, 4, device=DEVICE)
    watch.watching = True
    with suppress(Enough, NotImplementedError, RuntimeError):
        FAULTS[fault](x)
    watch.watching = False
    assert len(watch.found) >= 1


@pytest.mark.parametrize("fine", FINE)
def test_the_watch_lets_pass(watch, fine):
    x = torch.empty(3, 4, device=DEVICE)
    watch.watching = True
    FINE[fine](x)
    watch.watching = False
    assert watch.found == []
