"""The native ops as torch sees them: schema and derivative (C++), shape-only kernel."""

from mast_ext import native

try:
    from mast_ext.ops import (  # they look their operators up, which `native` has just registered
        budgeted_masks,
        contrastive_logsumexp,
        contrastive_loss,
        cross_correlation_penalty,
        epps_pulley_distance,
        gather_views,
        gram_difference,
        grouped_means,
        grouped_squared_difference,
        nearest_neighbor_distance,
        prototype_column_logsumexp,
        prototype_cross_entropy,
        rendering,
        scheduled,
        select_hard_cosine_pairs,
        select_hard_crops,
        select_hard_pairs,
        sigmoid_contrast,
        sliced_characteristic_sums,
        subspace_nll,
        subspace_similarity,
        variance_covariance,
        vicreg_terms,
        view_pair_cross_entropy,
        weighted_terms,
    )
except AttributeError as error:
    if "_OpNamespace" not in str(error):
        raise
    raise ImportError(
        f"the native libraries of mast_ext are older than its Python code ({error}): build them "
        "again, in the source by `pip install --no-build-isolation --editable .`"
    ) from error

__all__ = [
    "budgeted_masks",
    "build_info",
    "contrastive_logsumexp",
    "contrastive_loss",
    "cross_correlation_penalty",
    "epps_pulley_distance",
    "gather_views",
    "gram_difference",
    "grouped_means",
    "grouped_squared_difference",
    "nearest_neighbor_distance",
    "prototype_column_logsumexp",
    "prototype_cross_entropy",
    "rendering",
    "scheduled",
    "select_hard_cosine_pairs",
    "select_hard_crops",
    "select_hard_pairs",
    "sigmoid_contrast",
    "sliced_characteristic_sums",
    "subspace_nll",
    "subspace_similarity",
    "variance_covariance",
    "vicreg_terms",
    "view_pair_cross_entropy",
    "weighted_terms",
]


def build_info() -> dict[str, str | None]:
    """What the native libraries were compiled for: torch, compiler, instruction sets, CUDA.

    ``cpu_isa_in_use`` is the instruction set that this process uses: the best one, or that of the
    environment variable ``MAST_EXT_CPU_ISA`` (``baseline``, ``avx2`` or ``avx512``).
    """
    return {**native.build, "cpu_isa_in_use": native.cpu_isa}
