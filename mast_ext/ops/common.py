"""What the shape-only kernels share."""

import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mast_ext.checks import require_one_device

Shapes = TypeVar("Shapes", bound=Callable[..., Any])


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype sums over ``x`` are carried, and results returned, in."""
    return torch.promote_types(x.dtype, torch.float32)


def shape_only(name: str, *, on_host: Collection[str] = ()) -> Callable[[Shapes], Shapes]:
    """`torch.library.register_fake` of an operator, which finds tensors of two devices, too.

    Kernels find them by themselves, but of a tensor without data (on ``meta``, or while a compiler
    traces) none is run.

    Args:
        name: The operator's, with ``mast_ext::``.
        on_host: Arguments that are on the CPU, wherever the others are.
    """

    def register(shapes: Shapes) -> Shapes:
        names = list(inspect.signature(shapes).parameters)

        @functools.wraps(shapes)
        def checked(*args: Any, **options: Any) -> Any:
            given = zip(names, args, strict=False)
            require_one_device(**{name: x for name, x in given if name not in on_host})
            return shapes(*args, **options)

        torch.library.register_fake(name)(checked)
        return shapes

    return register


def prefers_gram(rows: int, dim: int, subspaces: int) -> bool:
    """As in csrc/host/columns/forms.h; the numbers may be symbolic."""
    return dim >= 2 * subspaces * (rows - 1)


def product_dtype(z: Tensor) -> torch.dtype:
    """The dtype of matrix products, as ``product_type`` in csrc/host/columns/column_passes.h."""
    cuda_bfloat16 = z.device.type == "cuda" and z.dtype == torch.bfloat16
    return torch.bfloat16 if cuda_bfloat16 else accumulation_dtype(z)


def kept_products(
    x: Tensor, subspaces: int, rows: int, columns: int, keep: bool
) -> tuple[int, ...]:
    """As ``ContrastiveInputs::kept_shape`` in csrc/host; the numbers may be symbolic."""
    kept = (subspaces, rows, columns + 16)
    return kept if keep and x.device.type == "cpu" and math.prod(kept) <= 1 << 20 else (0,)


def wanted_like(reference: Tensor | None, wanted: bool, fallback: Tensor) -> Tensor:
    """Shape of a gradient a backward op returns: like ``reference``, or empty if not wanted."""
    if reference is None:
        return fallback.new_empty(0)
    return (
        torch.empty_like(reference, memory_format=torch.contiguous_format)
        if wanted
        else (reference.new_empty(0))
    )


def one_by_one(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """What `torch.library.register_vmap` takes for an operator of lists: a call for every sample.

    So torch calls other operators by itself, but none that takes or returns lists.
    """

    def calls(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def sample(i: int) -> tuple[Any, ...]:
            return tree_map(lambda x, dim: x if dim is None else x.select(dim, i), args, in_dims)

        results = [op(*sample(i)) for i in range(info.batch_size)]
        stacked = tree_map(lambda *each: torch.stack(each), *results)
        return stacked, tree_map(lambda _: 0, stacked)

    return calls
