"""What the kernels that take most of a step must move and compute, as formulas of the sizes.

Kernels that are not here have no prediction: they are small and take about a launch, or what they
do depends on more than the sizes, or they wait for one load or sum after the other, of which the
model knows nothing (select_hard_crops, the search of MAST's masks).
"""

from collections.abc import Callable
from dataclasses import dataclass

Case = dict[str, int]


@dataclass(frozen=True)
class Work:
    """What all launches of a kernel in a step have to do.

    Attributes:
        moved: Bytes that global memory must give or take, each once.
        tensor: Multiply-adds on tensor cores.
        simple: Multiply-adds in float32 elsewhere.
        special: Exponentials, logarithms and reciprocals.
    """

    moved: float = 0
    tensor: float = 0
    simple: float = 0
    special: float = 0


def _rows(case: Case) -> int:
    """Rows of all views that a contrastive loss compares."""
    return case.get("views", 2) * case["batch"]


def _masks(case: Case) -> int:
    return case.get("subspaces", 1)


def _products(size: int) -> int:
    """For one of float32: of the pairs of its three parts of bfloat16 the six that matter."""
    return 6 if size == 4 else 1


def _forward_tiles(case: Case, size: int) -> Work:
    # A tile serves its rows and its columns: half of the products. An exponential for each.
    pairs = _masks(case) * _rows(case) ** 2 / 2
    moved = _rows(case) * case["dim"] * size
    return Work(moved, pairs * case["dim"] * _products(size), special=pairs)


def _fused_backward(case: Case, size: int) -> Work:
    # Every product again, and the weights' product with the rows.
    pairs = _masks(case) * _rows(case) ** 2
    moved = 2 * _rows(case) * case["dim"] * size
    return Work(moved, 2 * pairs * case["dim"] * _products(size), special=pairs)


def _tile_weights(case: Case, size: int) -> Work:
    # Every product again; the weights are written.
    pairs = _masks(case) * _rows(case) ** 2
    return Work(pairs * size, pairs * case["dim"] * _products(size), special=pairs)


def _row_gradients(case: Case, size: int) -> Work:
    # Of each subspace rows and products read, and gradients written, or added to in float32.
    of_gradient = size if _masks(case) == 1 else 2 * 4
    return Work(_masks(case) * _rows(case) * case["dim"] * (2 * size + of_gradient))


def _sigmoid_tiles(case: Case, size: int) -> Work:
    pairs = case["batch"] ** 2
    return Work(pairs * size, pairs * case["dim"] * _products(size), special=3 * pairs)


def _search(case: Case, size: int) -> Work:
    # A tile serves its rows and its columns. float32 is two parts of float16 here, of which three
    # pairs matter.
    elements = case["rows"] * case["dim"]
    return Work(elements * size, case["rows"] / 2 * elements * (3 if size == 4 else 1))


def _pairs(case: Case) -> int:
    """Pairs of views, that of a view with itself included."""
    views = case.get("views", 2)
    return views * (views + 1) // 2


def _elements(case: Case) -> int:
    """Elements of all views."""
    return case.get("views", 2) * case["batch"] * case["dim"]


def _sums_of_products(case: Case, size: int) -> Work:
    # Each product of two elements is made, and added with the weight of each mask.
    of_pairs = _pairs(case) * case["batch"] * case["dim"]
    return Work(_elements(case) * size, simple=of_pairs * (1 + _masks(case)))


def _grads_of_products(case: Case, size: int) -> Work:
    # For each pair, the coefficients of all masks are summed, which serves both elements.
    of_pairs = _pairs(case) * case["batch"] * case["dim"]
    return Work(2 * _elements(case) * size, simple=of_pairs * (2 + _masks(case)))


def _sums_of_likelihoods(case: Case, size: int) -> Work:
    # Log-variances, too; two exponentials, a logarithm and a reciprocal for each pair.
    of_pairs = _pairs(case) * case["batch"] * case["dim"]
    moved = 2 * _elements(case) * size
    return Work(moved, simple=of_pairs * (8 + _masks(case)), special=4 * of_pairs)


def _grads_of_likelihoods(case: Case, size: int) -> Work:
    of_pairs = _pairs(case) * case["batch"] * case["dim"]
    moved = 4 * _elements(case) * size
    return Work(moved, simple=of_pairs * (12 + _masks(case)), special=4 * of_pairs)


def _moves(elements: Callable[[Case], int]) -> Callable[[Case, int], Work]:
    """A kernel that is bound by the elements of the inputs' type that it moves."""
    return lambda case, size: Work(elements(case) * size)


def _moves_float32(elements: Callable[[Case], int]) -> Callable[[Case, int], Work]:
    """The same of float32, whatever the type of the inputs."""
    return lambda case, _: Work(elements(case) * 4)


def _logits(case: Case) -> int:
    return case["batch"] * case["prototypes"]


# Of sinkhorn_knopp: three times columns are normalized, and rows before each but the first.
def _normalized_columns(case: Case, size: int) -> Work:
    logits = 3 * case["rows"] * case["prototypes"]
    return Work(logits * size, special=logits)


def _normalized_rows(case: Case, size: int) -> Work:
    logits = 2 * case["rows"] * case["prototypes"]
    return Work(logits * size, special=logits)


def _gram_operands(case: Case) -> int:
    """Elements of gram_difference's two tensors that are read, and of their sum and difference."""
    passes = 2 if case["tokens"] > 2 * case["dim"] else 1  # the moments' form writes them again
    return passes * 4 * case["images"] * case["tokens"] * case["dim"]


SLICES, KNOTS = 1024, 17  # of SIGReg, by default
ROTATION = 14  # multiply-adds of a sine and a cosine


def _characteristic_sums(case: Case, _: int) -> Work:
    # Of a projection the rotations of the first knot and between two; of each knot two sums and a
    # rotation of four.
    projections = case["views"] * case["batch"] * SLICES
    return Work(projections * 4, simple=projections * (2 * ROTATION + 6 * KNOTS))


def _characteristic_grads(case: Case, _: int) -> Work:
    # The polynomial's step of each knot is a complex product and sum.
    projections = case["views"] * case["batch"] * SLICES
    return Work(2 * projections * 4, simple=projections * (2 * ROTATION + 4 * KNOTS))


def _characteristic_distance(case: Case, _: int) -> Work:
    # A product, a difference and a square of every sum.
    sums = case["views"] * 2 * KNOTS * SLICES
    return Work(sums * 4, simple=3 * sums)


def _characteristic_distance_grads(case: Case, _: int) -> Work:
    sums = case["views"] * 2 * KNOTS * SLICES
    return Work(2 * sums * 4, simple=3 * sums)


def _view_pairs(case: Case) -> tuple[int, int]:
    """Views, and images of each."""
    return case.get("views", 2), case.get("images") or case["batch"]


def _view_pair_terms(case: Case, _: int) -> Work:
    # Sums of every pair, one with itself included, positives of the others; two exponentials and
    # two logarithms for each anchor.
    views, images = _view_pairs(case)
    terms = views * (views - 1) * images
    return Work((2 * terms + views * images) * 4, special=4 * terms)


def _view_pair_slopes(case: Case, _: int) -> Work:
    # Sums and positives read, both gradients written; three sigmoids besides.
    views, images = _view_pairs(case)
    return Work(4 * views**2 * images * 4, special=8 * views * (views - 1) * images)


def _anchors(case: Case, _: int) -> Work:
    # Sums of at least two splits and positives read, sums and both slopes written; the terms'
    # exponentials and logarithms, three sigmoids, and a logarithm for every sum that is merged.
    views, images = _view_pairs(case)
    return Work(6 * views**2 * images * 4, special=13 * views**2 * images)


GROUPS = 32  # of pairs in MAST: by which of five augmentations differ


# By operator and kernel, without namespaces and arguments.
WORK: dict[tuple[str, str], Callable[[Case, int], Work]] = {
    ("ntxent", "forward_tiles"): _forward_tiles,
    ("ntxent", "fused_backward"): _fused_backward,
    ("ntxent", "tile_weights"): _tile_weights,
    ("ntxent", "rows_of_slice"): _row_gradients,
    ("ntxent", "inverse_norms"): _moves(_elements),
    ("contrastive_logsumexp", "forward_tiles"): _forward_tiles,
    ("contrastive_logsumexp", "fused_backward"): _fused_backward,
    ("contrastive_logsumexp", "tile_weights"): _tile_weights,
    ("contrastive_logsumexp", "rows_of_slice"): _row_gradients,
    ("select_hard_pairs_nt_xent", "forward_tiles"): _forward_tiles,
    ("sigmoid_contrast", "sigmoid_tiles"): _sigmoid_tiles,
    ("sigmoid_contrast", "rows_of_slice"): _row_gradients,
    ("sigmoid_contrast", "inverse_norms"): _moves(_elements),
    ("nearest_neighbor_distance", "search"): _search,
    # Rows read, and as much written for the search; rows and those of the neighbors read.
    ("nearest_neighbor_distance", "write_planes"): _moves(lambda c: 2 * c["rows"] * c["dim"]),
    ("nearest_neighbor_distance", "measure"): _moves(lambda c: 2 * c["rows"] * c["dim"]),
    # Rows and those of the neighbors read, gradients written.
    ("nearest_neighbor_distance", "backward"): _moves(lambda c: 3 * c["rows"] * c["dim"]),
    ("subspace_similarity", "sum_pairs"): _sums_of_products,
    ("subspace_similarity", "grads"): _grads_of_products,
    ("subspace_nll", "sum_pairs"): _sums_of_likelihoods,
    ("subspace_nll", "grads"): _grads_of_likelihoods,
    ("negative_cosine_similarity", "compare_two"): _moves(_elements),
    ("negative_cosine_similarity", "grads"): _moves(lambda c: 2 * _elements(c)),
    ("select_hard_pairs_cosine", "select_of_few"): _moves(_elements),
    ("prototype_cross_entropy", "forward"): _moves(
        lambda c: (c["teachers"] + c["students"]) * _logits(c)
    ),
    ("prototype_cross_entropy", "backward"): _moves(
        lambda c: (c["teachers"] + 2 * c["students"]) * _logits(c)
    ),
    # x and y read; gradients written besides.
    ("grouped_squared_difference", "add_sorted_rows"): _moves(_elements),
    ("grouped_squared_difference", "write_grads"): _moves(lambda c: 2 * _elements(c)),
    # Both views read, for VICReg twice: by themselves, and for their differences.
    ("variance_covariance", "moments"): _moves(lambda c: 2 * _elements(c)),
    ("cross_correlation_penalty", "moments"): _moves(_elements),
    # The views and the gradient of the products read, gradients written; of VICReg x and y are read
    # again, for what their difference adds.
    ("variance_covariance", "combine_with_differences"): _moves(lambda c: 4 * _elements(c)),
    ("cross_correlation_penalty", "combine"): _moves(lambda c: 3 * _elements(c)),
    # VICReg's terms in MAST; of the rest MAST's own: groups of pairs have weights, their gradients
    # and sums, float32.
    ("mast", "moments"): _moves(_elements),
    ("mast", "combine_with_differences"): _moves(lambda c: 4 * _elements(c)),
    ("mast", "add_sorted_rows"): _moves(_elements),
    ("mast", "divide"): _moves_float32(lambda c: 2 * GROUPS * c["dim"]),
    ("mast", "write_subsets"): _moves_float32(lambda c: GROUPS * c["dim"]),
    # Each of five masks reads the weights, and their gradients, of half of the groups.
    ("mast", "write_logit_grads"): _moves_float32(lambda c: 5 * GROUPS * c["dim"]),
    ("sinkhorn_knopp", "add_rows"): _normalized_columns,
    ("sinkhorn_knopp", "normalize_rows"): _normalized_rows,
    ("gram_difference", "write_operands"): _moves_float32(_gram_operands),
    ("gram_difference", "add_squares"): _moves_float32(lambda c: c["images"] * c["tokens"] ** 2),
    ("gram_difference", "write_weights"): _moves_float32(
        lambda c: 2 * c["images"] * c["tokens"] ** 2
    ),
    # Four blocks of D x D read; of the student's matrix two written.
    ("gram_difference", "add_traces"): _moves_float32(lambda c: 4 * c["images"] * c["dim"] ** 2),
    ("gram_difference", "write_matrices"): _moves_float32(
        lambda c: 6 * c["images"] * c["dim"] ** 2
    ),
    ("sliced_characteristic_distance", "add_rows"): _characteristic_sums,
    ("sliced_characteristic_distance", "differentiate"): _characteristic_grads,
    ("sliced_characteristic_distance", "measure"): _characteristic_distance,
    ("sliced_characteristic_distance", "write_grads"): _characteristic_distance_grads,
    ("view_pair_cross_entropy", "write_mean"): _view_pair_terms,
    ("view_pair_cross_entropy", "write_gradients"): _view_pair_slopes,
    ("ntxent", "anchors"): _anchors,
}
