"""The native ops as torch sees them: schema and derivative (C++), shape-only kernel."""

import torch  # noqa: F401  libtorch has to be loaded before _C, which links to it

try:
    from mast_ext import _C
except ImportError as error:
    raise ImportError(
        f"the native module mast_ext._C does not load ({error}): build it against the installed "
        "PyTorch with `pip install --no-build-isolation .`"
    ) from error
from mast_ext.ops import (  # they look their operators up, which _C has just registered
    budgeted_masks,
    contrastive_logsumexp,
    cross_correlation_penalty,
    gather_views,
    grouped_squared_difference,
    nearest_neighbor_distance,
    prototype_column_logsumexp,
    prototype_cross_entropy,
    scheduled,
    select_hard_cosine_pairs,
    select_hard_crops,
    select_hard_pairs,
    subspace_nll,
    subspace_similarity,
    variance_covariance,
)

_C.cpu_isa()  # raises a ValueError if MAST_EXT_CPU_ISA names what this machine does not have

__all__ = [
    "budgeted_masks",
    "build_info",
    "contrastive_logsumexp",
    "cross_correlation_penalty",
    "gather_views",
    "grouped_squared_difference",
    "nearest_neighbor_distance",
    "prototype_column_logsumexp",
    "prototype_cross_entropy",
    "scheduled",
    "select_hard_cosine_pairs",
    "select_hard_crops",
    "select_hard_pairs",
    "subspace_nll",
    "subspace_similarity",
    "variance_covariance",
]


def build_info() -> dict[str, str | None]:
    """What ``_C`` was compiled for: torch, compiler, CPU instruction sets, CUDA and its chips.

    ``cpu_isa_in_use`` is the instruction set that this process uses: the best one, or that of the
    environment variable ``MAST_EXT_CPU_ISA`` (``baseline``, ``avx2`` or ``avx512``).
    """
    return dict(_C.build, cpu_isa_in_use=_C.cpu_isa())
