"""Memory in which the operators' tests run: NaN wherever an operator has no business.

Every op of mast_ext, forward or backward, gets copies of its tensors that lie between NaN, so that
a read beside them shows in its results. What it allocates is NaN until it is written.
"""

import functools

import pytest
import torch
from torch.utils._pytree import tree_map_only

LINE = 64  # bytes of a cache line, and the alignment of every allocation
AROUND = 256  # elements of poison before and after a tensor


def poison(count, dtype, device):
    """NaN; of whole numbers, where there is none, the largest."""
    if dtype == torch.bool:
        return torch.ones((count,), dtype=dtype, device=device)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    value = torch.iinfo(dtype).max if whole else torch.nan
    return torch.full((count,), value, dtype=dtype, device=device)


def same_layout(t):
    """A copy with the strides and the alignment of ``t``, poison around it and in its gaps."""
    once = [1 if stride == 0 else size for size, stride in zip(t.shape, t.stride(), strict=True)]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(once, t.stride(), strict=True))
    start = AROUND + t.data_ptr() % LINE // t.element_size()
    memory = poison(start + extent + AROUND, t.dtype, t.device)
    memory.as_strided(once, t.stride(), start).copy_(
        t.as_strided(once, t.stride(), t.storage_offset())
    )
    return memory.as_strided(t.shape, t.stride(), start)


def padded(t):
    """A copy whose rows have poison between them and begin at any multiple of the element size."""
    gap = 3
    memory = poison(AROUND + 1 + t.numel() // max(1, t.shape[-1]) * (t.shape[-1] + gap) + AROUND,
                    t.dtype, t.device)  # fmt: skip
    strides = [1, t.shape[-1] + gap]
    for size in reversed(t.shape[1:-1]):
        strides.append(strides[-1] * size)
    copy = memory.as_strided(t.shape, strides[: t.dim()][::-1], AROUND + 1)
    return copy.copy_(t)


class PoisonedMemory:
    """Stands before the kernels of mast_ext's ops and lets ``layout`` copy the tensors they get.

    At the key BackendSelect, which comes after autograd and whatever traces ops: a mode of torch
    would be called for every other op, too, and takes longer than all kernels.
    """

    def __init__(self, library):
        self.layout = None  # as they are
        self.library = library
        for name in torch._C._dispatch_get_all_op_names():
            if name.startswith("mast_ext::") and self.has_kernel(name):
                self.stand_before(name.removeprefix("mast_ext::"))

    @staticmethod
    def has_kernel(name):  # other ops call those that have
        return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")

    def stand_before(self, name):
        key = torch._C.DispatchKey.BackendSelect
        after, op = torch._C._dispatch_keyset_full_after(key), getattr(torch.ops.mast_ext, name)

        def copied(keys, *args, **kwargs):
            if self.layout is not None:
                args, kwargs = tree_map_only(torch.Tensor, self.copy, (args, kwargs))
            return op.default.redispatch(keys & after, *args, **kwargs)

        self.library.impl(name, copied, key.name, with_keyset=True)

    def copy(self, t):
        if type(t) is not torch.Tensor or t.numel() == 0:
            return t
        return same_layout(t) if t.dim() == 0 else self.layout(t)


def in_float32(product):
    """A product of torch's, of 16-bit matrices made in float32."""

    def made(*matrices, **options):
        if matrices[0].dtype not in (torch.float16, torch.bfloat16):
            return product(*matrices, **options)
        # With beta = 0 what is there may not be read.
        unread = matrices[:1] if options.get("beta") == 0 else ()
        wide = [torch.zeros_like(matrix, dtype=torch.float32) for matrix in unread]
        wide += [matrix.float() for matrix in matrices[len(unread) :]]
        result = product(*wide, **options)
        return matrices[0].copy_(result) if result is wide[0] else result.to(matrices[0].dtype)

    return made


@pytest.fixture(scope="session")
def plain_products():
    """Vendor kernels that a sanitizer can follow, in the place of those for 16 bits on Hopper.

    What these write by the copy engine looks unwritten to initcheck, and racecheck breaks off.
    """
    key = torch._C.DispatchKey.BackendSelect
    after = torch._C._dispatch_keyset_full_after(key)
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in ("mm", "bmm", "addmm_", "baddbmm_"):
            op = getattr(torch.ops.aten, name).default

            def product(keys, *matrices, op=op, **options):
                original = functools.partial(op.redispatch, keys & after)
                return in_float32(original)(*matrices, **options)

            library.impl(name, product, key.name, with_keyset=True)

        def add_product(keys, total, a, b, dtype, *, beta=1, alpha=1, out):
            return out.copy_(beta * total + alpha * (a.to(dtype) @ b.to(dtype)))

        library.impl("addmm.dtype_out", add_product, key.name, with_keyset=True)
        yield


@pytest.fixture(scope="session")
def memory():
    # Its end takes the kernels away: skip_barriers.py has several sessions in one process.
    with torch.library._scoped_library("mast_ext", "IMPL") as library:
        yield PoisonedMemory(library)


def pytest_generate_tests(metafunc):
    """Tests against a definition run on both layouts; all others on the one that they ask for."""
    if "matches" in metafunc.function.__name__ and "device" in metafunc.fixturenames:
        metafunc.parametrize("poisoned_memory", [same_layout, padded], indirect=True)


def is_needed(item):
    """Whether a test's layout may show what others do not.

    The CPU's kernels treat the memory of all dtypes alike: 16 bits are tested on one layout each.
    A GPU's load as many elements at a time as their size allows. What the emulator, which is slow,
    runs in padded memory is one form of contrastive_logsumexp with a fixed shift of the
    exponentials, and one with a running one: rows are loaded alike for all others, and for
    contrastive_loss.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    layout, dtype = parameters.get("poisoned_memory"), parameters.get("dtype")
    one_layout = item.config.getoption("--one-layout")
    if layout is None or parameters["device"] != "cpu":
        return True
    if item.config.getoption("--emulated-cuda"):
        temperature = parameters.get("options", {}).get("temperature", 0.5)
        return layout is same_layout or (
            temperature in (0.5, 0.02) and item.path.stem != "test_contrastive_loss"
        )
    if dtype in (torch.float16, torch.bfloat16) or one_layout:
        return layout is (same_layout if dtype == torch.bfloat16 else padded)
    return True


def pytest_collection_modifyitems(config, items):
    needed = [item for item in items if is_needed(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in needed])
    items[:] = needed


@pytest.fixture
def chunk_limit(monkeypatch):
    """Sets how many elements or rows the emulated CUDA kernels' host code takes at a time.

    A GPU, and CPU kernels, take as many as ever.
    """
    return lambda limit: monkeypatch.setenv("EMULATE_CHUNK_LIMIT", str(limit))


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    if request.config.getoption("--plain-memory"):
        request.getfixturevalue("plain_products")
        yield
        return
    memory = request.getfixturevalue("memory")
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # Fills what torch allocates; that algorithms without a deterministic form warn is a by-product.
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.layout = getattr(request, "param", same_layout)
    try:
        yield
    finally:
        memory.layout = None
        torch.use_deterministic_algorithms(before, warn_only=warns)
