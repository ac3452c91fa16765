"""What the machine reaches by a copy and by matrix products, to hold operators against."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LARGE, CACHED = 1 << 28, 1 << 20  # bytes that are copied: more than caches hold, and fewer
CACHE_LIMIT = 16 << 20  # bytes that count as in a CPU's caches from one call to the next
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices


@dataclass(frozen=True)
class Rates:
    """What PyTorch reaches here.

    Attributes:
        copy: Bytes per second, read and written, of a copy from memory to memory.
        cached_copy: The same inside of the caches; on a GPU the same as ``copy``.
        products: Operations per second of square matrix products, by dtype.
    """

    copy: float
    cached_copy: float
    products: dict[torch.dtype, float]

    def least_seconds(self, moved: int, operations: int, dtype: torch.dtype) -> float:
        """How long it takes to move these bytes or to do the products, whichever is longer."""
        copy = self.cached_copy if moved <= CACHE_LIMIT else self.copy
        return max(moved / copy, operations / self.products[dtype])


def measure_rates(device: str, dtypes: Sequence[torch.dtype]) -> Rates:
    """Measures; takes about a second."""
    copy = _copy_rate(LARGE << 3 if device == "cuda" else LARGE, device)
    cached = copy if device == "cuda" else _copy_rate(CACHED, device)
    return Rates(copy, cached, {dtype: _product_rate(device, dtype) for dtype in dtypes})


def _copy_rate(size: int, device: str) -> float:
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _least_seconds(lambda: target.copy_(source), device)


def _product_rate(device: str, dtype: torch.dtype) -> float:
    side = SIDE[device]
    matrix = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / _least_seconds(lambda: matrix @ matrix, device)


def _least_seconds(step: Callable[[], object], device: str) -> float:
    """Of several times the least: what else the machine does may only slow it down."""
    return min(seconds_of(step, device, 3)[1] for _ in range(5))


def seconds_of(step: Callable[[], object], device: str, calls: int = 10) -> tuple[float, float]:
    """How long a call keeps the host, and how long it takes in all."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        step()
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        step()
    host = time.perf_counter() - begin
    wait()
    return host / calls, (time.perf_counter() - begin) / calls
