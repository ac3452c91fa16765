"""Stateless entry points; the canonical public API."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from mast_ext import ops
from mast_ext.checks import (
    as_integer,
    as_number,
    explains_types,
    require_integer,
    require_number,
    require_numbers,
    require_one_device,
    require_positive,
)
from mast_ext.compiling import changes_between_calls, out_of_inference

P = ParamSpec("P")
T = TypeVar("T")
Interval = Literal["half", "symmetric"]

__all__ = [
    "budgeted_masks",
    "contrastive_logsumexp",
    "contrastive_loss",
    "cross_correlation_penalty",
    "epps_pulley_distance",
    "epps_pulley_grid",
    "gather_views",
    "gram_difference",
    "grouped_means",
    "grouped_squared_difference",
    "grouped_squared_difference_with_residual",
    "nearest_neighbor_distance",
    "prototype_column_logsumexp",
    "prototype_cross_entropy",
    "prototype_cross_entropy_with_mean",
    "select_hard_cosine_pairs",
    "select_hard_crops",
    "select_hard_pairs",
    "sigmoid_contrast",
    "sinkhorn_knopp",
    "sliced_characteristic_distance",
    "sliced_characteristic_sums",
    "subspace_nll",
    "subspace_similarity",
    "variance_covariance",
    "vicreg_terms",
    "view_pair_cross_entropy",
    "weighted_terms",
]

# Numbers of a view up to which `vicreg_terms` takes both views at once on a CPU. One large view
# after the other is faster there: what is made of it stays in the cache.
MOST_TOGETHER = 2**16

# More make no sense, and overflow the size of a result, of which torch names no argument.
MOST_KNOTS = 2**31 - 1

# Most groups that the operators take (csrc/host).
MOST_GROUPS = 65535


def _repeatable(function: Callable[P, T]) -> Callable[P, T]:
    """`explains_types`, of the functions here: none changes anything."""
    return explains_types(function, out_of_inference=out_of_inference)


@_repeatable
def subspace_similarity(
    x: Tensor,
    y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    metric: Literal["cosine", "sqeuclidean"] = "cosine",
    eps: float = 1e-8,
) -> Tensor:
    r"""Per-image similarity of every view of ``x`` with every view of ``y``, in every subspace.

    With :math:`w_k = m_k^2`::

        cosine        S[k,i,j,b] = Σ_d w_kd x_ibd y_jbd / (|m_k∘x_ib| · |m_k∘y_jb|)
        sqeuclidean   S[k,i,j,b] = Σ_d w_kd (x_ibd − y_jbd)²

    One pass reads ``x`` and ``y`` once for all subspaces and all pairs; nothing of size
    ``K·V·B·D`` is allocated. Distances are summed from the differences, so that near pairs keep
    their digits.

    Args:
        x: Embeddings ``[Vx, B, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        y: Embeddings ``[Vy, B, D]``, dtype and device of ``x``. ``None`` compares ``x`` with
            itself: the result is symmetric and every unordered pair is computed once.
        masks: Non-negative masks ``[K, D]``, float32 (float64 beside float64 embeddings). ``None``
            is one subspace of all ones; the result keeps its leading axis ``K = 1``.
        metric: ``"cosine"`` or ``"sqeuclidean"``.
        eps: Norms below it count as ``eps`` (cosine only), so that a blank row has similarity 0 and
            a finite gradient.

    Returns:
        ``[K, Vx, Vy, B]`` in float32 (float64 for float64 inputs). Differentiable once in ``x``,
        ``y`` and ``masks``.

    Raises:
        ValueError: A shape or device does not fit, a mask is negative (checked on the CPU; a GPU
            is not waited for, and a mask's sign has no effect there), or ``eps`` is not positive.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    return ops.subspace_similarity.op(x, y, masks, metric, as_number("eps", eps))[0]


@_repeatable
def subspace_nll(
    x: Tensor,
    log_var_x: Tensor,
    y: Tensor | None = None,
    log_var_y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    variance: Literal["diagonal", "subspace"] | None = None,
) -> Tensor:
    r"""Negative log-likelihood that two uncertain embeddings agree, per pair of views and subspace.

    The Gaussian likelihood with learned variances of Kendall & Gal (2017), between two uncertain
    points as in the mutual likelihood score of Shi & Jain (2019), up to a constant. With
    :math:`w_k = m_k^2`::

        log_var [V, B, D] ("diagonal"):   s_d = exp(lvx_ibd) + exp(lvy_jbd)
            L[k,i,j,b] = ½ · Σ_d w_kd [ (x_ibd − y_jbd)² / s_d + log s_d ] / Σ_d w_kd
        log_var [V, B, K] ("subspace"):   s_k = exp(lvx_ibk) + exp(lvy_jbk)
            L[k,i,j,b] = ½ · [ δ_k / s_k + log s_k ],   δ_k = Σ_d w_kd (x_ibd − y_jbd)² / Σ_d w_kd

    ``log s`` is a log-add-exp, so that log-variances of ±80 give finite values and gradients
    (below about -75 those of ``x``, ``y`` and ``masks`` in the subspace form are bounded, and
    smaller than the formula's). A mask of zeros counts as distance 0 (``L = 0`` in the diagonal
    form).

    Args:
        x: Embeddings ``[Vx, B, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        log_var_x: Log-variances of ``x``, ``[Vx, B, D]`` or ``[Vx, B, K]``, dtype of ``x``.
        y: Embeddings ``[Vy, B, D]``, dtype and device of ``x``. ``None``: ``x`` with itself.
        log_var_y: Log-variances of ``y``; given exactly when ``y`` is.
        masks: Non-negative masks ``[K, D]``, float32 (float64 beside float64 embeddings). ``None``
            is one subspace of all ones.
        variance: ``"diagonal"`` or ``"subspace"``; told by the last dimension of ``log_var_x``
            unless ``D == K``, when it has to be given.

    Returns:
        ``[K, Vx, Vy, B]`` in float32 (float64 for float64 inputs). Differentiable once in all
        tensors.

    Raises:
        ValueError: A shape or device does not fit, a mask is negative (checked on the CPU only), or
            the form of the variance is ambiguous.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    return ops.subspace_nll.op(x, log_var_x, y, log_var_y, masks, variance)[0]


@_repeatable
def contrastive_logsumexp(
    x: Tensor,
    y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    temperature: float | Tensor,
    offset: int | None = 0,
    exclude_self: bool = False,
    exclude_positive: bool = False,
    within_views: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp of every row's scaled cosine similarities, per pair of views and subspace.

    With :math:`cos_k` the cosine of ``m_k∘x`` and ``m_k∘y``::

        s[k,i,b,j,c]      = cos_k(x_ib, y_jc) / temperature
        lse[k,i,j,b]      = log Σ_c exp(s[k,i,b,j,c])
        positive[k,i,j,b] = s[k,i,b,j,b+offset]

    The contrastive primitive: with ``exclude_positive=True``, NT-Xent of views ``i`` and ``j``
    (Chen et al. 2020, eq. 1) is ``softplus(logaddexp(lse_ii, lse_ij) − positive_ij)``, of all pairs
    at once :func:`view_pair_cross_entropy`, and InfoNCE against a queue, CLIP's loss and decoupled
    contrastive learning are as short. (With the positive in the sum, ``lse − positive`` says the
    same, but once a batch is told apart it is the small difference of large numbers.) The ``N×M``
    similarities are computed tile by tile, forward and again backward, and not stored: memory is
    ``O((N + M)·D)`` whatever ``K`` is. Only on a CPU those of small batches are kept for the
    backward: up to 4 MB of float32 (8 of float64) for all views and subspaces, such as two views of
    500 rows.
    On a GPU float32 is multiplied as sums of three bfloat16 numbers each and float16 of two, which
    hold all of its digits (of embeddings in float16 times a mask 16 bits). The gradient of float32
    rows wider than 192 goes through ``torch.mm``, which uses tf32 only where it is told to.

    Args:
        x: Rows, ``[Vx, N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        y: Columns, ``[Vy, M, D]``, dtype and device of ``x``. ``None`` contrasts ``x`` with itself:
            ``y = x``, ``exclude_self`` holds, and one tile of products serves ``(i, j)`` and
            ``(j, i)``.
        masks: Non-negative masks ``[K, D]``, float32 (float64 beside float64 embeddings). ``None``
            is one subspace of all ones; the results keep their leading axis ``K = 1``.
        temperature: A positive number, or a scalar tensor of floating point, which may require
            gradient. A number of at least 0.03 is fastest: a running maximum is not needed then.
        offset: Column of row 0's positive; row ``b``'s is ``b + offset``. ``None``: the columns
            hold no positives (a queue of negatives), and ``positive`` is empty.
        exclude_self: In the blocks ``(i, i)`` of a view with itself, column ``b + offset`` is the
            row itself and left out of the sum. For rows out of a larger gathered batch ``y``.
        exclude_positive: Leaves column ``b + offset`` out of the sum in every block, so that
            ``lse`` is over negatives alone: all of decoupled contrastive learning (Yeh et al.
            2022), and what NT-Xent's and InfoNCE's gradients keep their digits by.
        within_views: ``False`` leaves the blocks ``(i, i)`` out: their ``lse`` is ``-inf``, their
            ``positive`` 0. Both directions of CLIP's loss in one sweep are the blocks ``(0, 1)``
            and ``(1, 0)`` of ``stack([image, text])``.

    Returns:
        ``lse`` and ``positive``, both ``[K, Vx, Vy, N]`` in float32 (float64 for float64 inputs);
        ``positive`` is ``[K, Vx, Vy, N, 0]`` where ``offset`` is ``None``. An empty sum is
        ``-inf``. Differentiable once in ``x``, ``y``, ``masks`` and ``temperature``. A row of norm
        below 1e-8, such as a blank mask leaves, has similarity 0 and a finite gradient.

    Raises:
        ValueError: A shape or device does not fit, a mask is negative or the temperature not
            positive (of tensors checked on the CPU only: a GPU is not waited for), ``offset`` leads
            out of the columns, or views are to be told apart but ``Vx`` differs from ``Vy``.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    return ops.contrastive_logsumexp.op(
        x,
        y,
        masks,
        *_tensor_and_number("temperature", temperature, x),
        None if offset is None else as_integer("offset", offset),
        exclude_self,
        exclude_positive,
        within_views,
        _keeps(),
    )[:2]


def _keeps() -> bool:
    """Whether operators keep what their backward needs.

    Tensors do not tell: those inside of torch.func.vmap never say that they require a gradient.
    """
    return torch.is_grad_enabled()


def _tensor_and_number(
    name: str, number: float | Tensor, like: Tensor
) -> tuple[Tensor | None, float]:
    """The two arguments that the operators take in its place."""
    if isinstance(number, Tensor):
        if number.is_floating_point():
            number = number.to(torch.promote_types(like.dtype, torch.float32))
        return number, 0.0
    number = as_number(name, number)
    if changes_between_calls(number):
        return _as_scalar(name, number, like), 0.0
    return None, number


@_repeatable
def contrastive_loss(
    views: Tensor | Sequence[Tensor],
    *,
    temperature: float | Tensor,
    decoupled: bool = False,
    within_views: bool = True,
    one_sided: bool = False,
) -> Tensor:
    r"""The contrastive loss of two or more views: NT-Xent, decoupled, InfoNCE, or CLIP's.

    The mean over all anchors ``(i, b)`` and their positives ``(j, b)`` in every other view ``j`` of

    ::

        log [Σ_r exp(s(i b, r)) + exp(s(i b, j b))] − s(i b, j b)

    with ``s`` the cosine over ``temperature`` and ``r`` over the rows of other images in the views
    ``i`` and ``j``: SimCLR's loss (Chen et al., ICML 2020, eq. 1) for two views, and the mean of
    that of all pairs for more. :func:`contrastive_logsumexp` and :func:`view_pair_cross_entropy`
    give the same in more launches, and each image's and pair's own loss. Memory is
    ``O(V·N·(D + V))``, but for the products of small batches, or exponentials of them, that a CPU
    keeps for the backward.

    Args:
        views: ``[V, N, D]``, or a list of ``[N, D]``, with ``V ≥ 2`` and ``N ≥ 1``: float32,
            float16, bfloat16 or (CPU) float64. Any strides. The backward pass reads them again, so
            that none may be changed in place before it.
        temperature: See :func:`contrastive_logsumexp`.
        decoupled: Leaves the positive out of the first sum (Yeh et al., ECCV 2022, eq. 6).
        within_views: Whether ``r`` runs over view ``i``, too. Without, the loss of two views is
            CLIP's (Radford et al. 2021, figure 3).
        one_sided: Takes the anchors of view 0 alone. Without ``within_views``, the loss of two
            views is InfoNCE (van den Oord et al. 2018, eq. 4) of queries and keys.

    Returns:
        A scalar in float32 (float64 for float64 inputs), differentiable once in the views and
        ``temperature``. An anchor without negatives, such as that of a single image, has loss 0;
        decoupled, ``-inf``.

    Raises:
        ValueError: A shape or device does not fit, or the temperature is not positive (of tensors
            checked on the CPU only: a GPU is not waited for).
        TypeError: A dtype is not supported, or differs between the views.
    """
    if isinstance(views, Tensor) and views.ndim != 3:
        raise ValueError(f"views must have shape [V, N, D], got {list(views.shape)}")
    several = list(views)
    if len(several) < 2:
        raise ValueError(f"views must be 2 or more, got {len(several)}")
    return ops.contrastive_loss.op(
        several,
        *_tensor_and_number("temperature", temperature, several[0]),
        decoupled,
        within_views,
        one_sided,
        _keeps(),
    )[0]


@_repeatable
def view_pair_cross_entropy(
    lse: Tensor,
    positive: Tensor,
    *,
    decoupled: bool = False,
    reduction: Literal["none", "mean"] = "none",
) -> Tensor:
    r"""The contrastive loss of every pair of views, from sums over the rows of each view.

    Of views ``i`` and ``j`` the loss of training on that pair alone: NT-Xent (SimCLR: Chen et al.,
    ICML 2020, eq. 1) or, ``decoupled``, that of Yeh et al. (ECCV 2022, eq. 6), where the positive
    is not among what it is told from::

        r_ij    = log [exp(lse_ii) + exp(lse_ij)]                     the negatives of both views
        t_ij    = log [exp(r_ij) + exp(positive_ij)] − positive_ij    decoupled: r_ij − positive_ij
        loss_ij = (t_ij + t_ji) / 2

    for every image. A view with itself counts as a pair of two equal views. One launch on a GPU,
    and one for both gradients; of a loss near 0 all digits are kept.

    Args:
        lse: ``[..., V, V, N]`` of ``[..., anchor's view, other view, image]``, float32 or (CPU)
            float64: those of :func:`contrastive_logsumexp` with ``exclude_positive=True``. Any
            strides. Of ``within_views=False``, whose ``lse_ii`` are empty sums, the loss is CLIP's.
        positive: The logits of the positives, like ``lse``.
        decoupled: Leaves the positive out of the denominator.
        reduction: ``"none"``, or ``"mean"`` over the pairs of different views and the images.

    Returns:
        ``[..., V, V, N]``, symmetric in the views, or ``[...]`` of the mean; dtype of ``lse``.
        Differentiable once in ``lse`` and ``positive``. An image whose sums are empty (``-inf``)
        has loss 0 and gradient 0; decoupled, ``-inf``.

    Raises:
        ValueError: A shape or device does not fit, there are no two views or no image to take the
            mean over, or ``reduction`` is unknown.
        TypeError: A dtype is not supported.
    """
    return ops.view_pair_cross_entropy.op(lse, positive, decoupled, reduction)


@_repeatable
def sigmoid_contrast(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    offset: int | None = 0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Sigmoid loss of every row against all columns: each pair is told apart by itself.

    ::

        z[n,m]  = scale · cos(x_n, y_m) + bias
        loss[n] = softplus(−z[n, n+offset]) + Σ_{m ≠ n+offset} softplus(z[n,m])

    SigLIP's loss (Zhai et al. 2023, eq. 1) is the mean over ``n``. The ``N×M`` logits are computed
    tile by tile and never stored: memory is ``O((N + M)·D)``. On a GPU float32 and float16 are
    multiplied in parts, as in :func:`contrastive_logsumexp`; the gradient goes through
    ``torch.mm``, which uses tf32 only where it is told to.

    With ``weights`` the result is their sum with the losses. Their gradient being known then, it is
    computed in the same sweep, where autograd wants it: of four matrix products three remain, and
    the backward only scales. The products are made again under torch.compile, and of float16, which
    could not hold the gradient before a GradScaler has scaled it.

    Args:
        x: Rows, ``[N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        y: Columns, ``[M, D]``, dtype and device of ``x``.
        scale: A number, or a scalar tensor in float32 (float64 beside float64 embeddings): SigLIP's
            inverse temperature, of any sign.
        bias: Like ``scale``.
        offset: Column of row 0's positive; row ``n``'s is ``n + offset``. ``None``: the columns
            hold no positives, such as those of another process.
        weights: A tensor ``[N]``, or one that broadcasts to it. Gets no gradient. A weight of 0
            does not hide a NaN of its row.

    Returns:
        ``[N]``, or a scalar with ``weights``, in float32 (float64 for float64 inputs).
        Differentiable once in ``x``, ``y``, ``scale`` and ``bias``. A row of norm below 1e-8 has
        cosine 0 and a finite gradient. A NaN in a column reaches all rows.

    Raises:
        ValueError: A shape or device does not fit, or ``offset`` leads out of the columns.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    scale, bias = _as_scalar("scale", scale, x), _as_scalar("bias", bias, x)
    offset = None if offset is None else as_integer("offset", offset)
    if weights is None:
        return ops.sigmoid_contrast.op(x, y, scale, bias, offset)
    return ops.sigmoid_contrast.weighted_op(x, y, scale, bias, weights, offset)


def _as_scalar(name: str, number: float | Tensor, like: Tensor) -> Tensor:
    """A tensor of the dtype of sums; made by a product, which compilers keep variable."""
    if isinstance(number, Tensor):
        return number
    number = require_number(name, number)
    return like.new_ones((), dtype=torch.promote_types(like.dtype, torch.float32)) * number


@_repeatable
def variance_covariance(
    z: Tensor, masks: Tensor | None = None, *, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    r"""VICReg's two batch statistics of every view, in every subspace.

    With :math:`w_k = m_k^2`, unbiased variances, and the covariances ``C = zcᵀzc / (N−1)`` of the
    centered embeddings ``zc``::

        variance[k,v]   = mean_d relu(1 − sqrt(w_kd · Var_n(z_vnd) + eps))
        covariance[k,v] = Σ_{d≠e} w_kd w_ke C_de² / D

    Where ``D ≥ 2·K·(N−1)`` the covariances are never formed: ``‖zcᵀzc‖_F = ‖zc zcᵀ‖_F``, so one
    ``N×N`` product per subspace costs less than the ``D×D`` one, which serves all of them (Bardes
    et al. 2022 give the terms; the choice of form changes rounding only: in the first form the
    covariance is a difference, exact to about 1e-7 of ``mean_d (w_kd Var_d)²``).

    Args:
        z: Embeddings ``[V, N, D]`` with ``N ≥ 2``: float32, float16, bfloat16, or float64 on the
            CPU. Any strides.
        masks: Non-negative masks ``[K, D]``, float32 (float64 beside float64 embeddings). ``None``
            is one subspace of all ones; the results keep their leading axis ``K = 1``.
        eps: Added to the variances inside the root.

    Returns:
        ``variance`` and ``covariance``, both ``[K, V]`` in float32 (float64 for float64 inputs).
        Differentiable once in ``z`` and ``masks``.

    Raises:
        ValueError: A shape or device does not fit, ``N < 2``, a mask is negative (checked on the
            CPU only), or ``eps`` is negative.
        TypeError: A dtype is not supported.
    """
    return ops.variance_covariance.op(z, masks, as_number("eps", eps))[:2]


@_repeatable
def cross_correlation_penalty(
    a: Tensor, b: Tensor, *, lambda_: float, variant: Literal["official", "paper"] = "official"
) -> Tensor:
    r"""Distance of the cross-correlation of two views from the identity (Barlow Twins).

    ::

        Σ_d (C_dd − 1)² + lambda_ · Σ_{d≠e} C_de²        C = AᵀB / N
        A = (a − mean a) / sqrt(Var a + 1e-5)            ("official": biased variance)
        A = (a − mean a) / sqrt(Var a)                   ("paper": unbiased variance)

    and ``B`` alike; means and variances over the batch (Zbontar et al. 2021). Where
    ``D ≥ 2·(N−1)`` the correlations are never formed: ``‖AᵀB‖_F² = ⟨AAᵀ, BBᵀ⟩``.

    Args:
        a: Embeddings ``[N, D]`` of one view, ``N ≥ 2``: float32, float16, bfloat16, or float64 on
            the CPU. Any strides.
        b: Embeddings ``[N, D]`` of the other view, dtype and device of ``a``.
        lambda_: Weight of the off-diagonal entries.
        variant: ``"official"`` standardizes as batch norm does (the authors' code, lightly),
            ``"paper"`` as the paper's pseudo-code, where a constant dimension gives NaN.

    Returns:
        A scalar in float32 (float64 for float64 inputs). Differentiable once in ``a`` and ``b``.

    Raises:
        ValueError: A shape or device does not fit, ``N < 2``, or ``variant`` is unknown.
        TypeError: A dtype is not supported or differs from that of ``a``.
    """
    lambda_ = require_number("lambda_", lambda_)
    if changes_between_calls(lambda_):
        return ops.scheduled.cross_correlation_penalty(a, b, _as_input(lambda_), variant)[0]
    return ops.cross_correlation_penalty.op(a, b, lambda_, variant)[0]


@_repeatable
def grouped_squared_difference(
    x: Tensor, y: Tensor, group: Tensor, groups: int, *, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Squared differences of paired rows, added up over each group of pairs in every dimension.

    ::

        sums[g, d] = Σ_{n in g} weight_n (x_nd − y_nd)²        counts[g] = Σ_{n in g} weight_n

    A pair of views is in the group of the augmentations by which it differs; whatever masks its
    dimensions are then weighted with, they meet the small ``[G, D]`` sums alone, so that a masked
    distance of all pairs takes one read of the embeddings (:class:`mast_ext.losses.MASTLoss`).

    Args:
        x: Embeddings ``[N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        y: The other embedding of every pair, ``[N, D]``, dtype and device of ``x``.
        group: Group of every pair, ``[N]`` int64. One below 0 is in no group; so is one that is
            not below ``groups`` on a GPU, which is not waited for.
        groups: Their number ``G``, from 1 to 65535.
        weight: Weight of every pair, ``[N]`` float32 (float64 beside float64 embeddings); 1 by
            default.

    Returns:
        ``sums [G, D]`` and ``counts [G]`` in float32 (float64 for float64 inputs), 0 for a group
        without pairs. Differentiable once in ``x``, ``y`` and ``weight``.

    Raises:
        ValueError: A shape or device does not fit, ``groups`` is out of range, or (checked on the
            CPU) ``group`` is not below it.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    groups = as_integer("groups", groups)
    return ops.grouped_squared_difference.op(x, y, group, groups, weight, None)[:2]


@_repeatable
def grouped_squared_difference_with_residual(
    x: Tensor,
    y: Tensor,
    group: Tensor,
    dimension_weights: Tensor,
    *,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""`grouped_squared_difference`, and every pair's own weighted squared distance.

    ::

        residual[n] = Σ_d dimension_weights[group_n, d] (x_nd − y_nd)²

    On the CPU it costs no further read of the embeddings.

    Args:
        x: As of `grouped_squared_difference`; so are ``y``, ``group`` and ``weight``.
        y: See there.
        group: See there.
        dimension_weights: ``[G, D]`` float32 (float64 beside float64 embeddings).
        weight: See there; it does not weight the residual.

    Returns:
        ``sums [G, D]``, ``counts [G]``, and ``residual [N]``, which has no gradient: 0 for a pair
        without a group.

    Raises:
        ValueError: See `grouped_squared_difference`.
        TypeError: See there.
    """
    if dimension_weights.ndim != 2:
        raise ValueError(
            f"dimension_weights must have shape [G, D], got {list(dimension_weights.shape)}"
        )
    groups = dimension_weights.shape[0]
    op = ops.grouped_squared_difference.op
    return op(x, y, group, groups, weight, dimension_weights)


@_repeatable
def grouped_means(group_weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    r"""Every dimension's weighted mean, of sums over groups of pairs and of their counts.

    ::

        means[d] = Σ_g group_weights[g, d] sums[g, d] / max(1, Σ_g group_weights[g, d] counts[g])

    With what `grouped_squared_difference` returns this is the mean squared difference of the pairs
    that compare a dimension, if ``group_weights`` are the squared masks of the groups; what they
    compare in all counts as one pair at least. One launch on a GPU, and one for the gradients of
    ``group_weights`` and ``sums``.

    Args:
        group_weights: ``[G, D]``, float32, or float64 on the CPU; from 0.
        sums: ``[G, D]``, dtype of ``group_weights``.
        counts: ``[G]``, dtype of ``group_weights``.

    Returns:
        ``[D]``, dtype of ``sums``. Differentiable once in every argument.

    Raises:
        ValueError: A shape or device does not fit.
        TypeError: A dtype is not supported.
    """
    return ops.grouped_means.op(group_weights, sums, counts)[0]


@_repeatable
def weighted_terms(
    first: Tensor,
    second: Tensor | None = None,
    third: Tensor | None = None,
    *,
    scales: Sequence[float],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    r"""The weighted sum of up to three terms of a loss, and the terms.

    ::

        terms[i] = scales[i] · Σ_j x_ij        total = Σ_i weights[i] · terms[i]

    One launch on a GPU, and one for all gradients, where each sum, product and addition is one
    otherwise, and again in the backward pass.

    Args:
        first: The numbers of the first term, of any shape: float32, or float64 on the CPU. (On a
            GPU one thread block adds them up, so they should be no more than some thousands.)
        second: Those of the second term, dtype of ``first``.
        third: Those of the third term, dtype of ``first``.
        scales: A number for each term, such as 1 / numel for a mean.
        weights: A number for each term.

    Returns:
        ``total``, a scalar, which is differentiable once in the terms; and ``terms [1 to 3]``,
        without gradient. In the dtype of ``first``; sums are carried in float64 (on a GPU of eight
        numbers at a time).

    Raises:
        ValueError: A term has no scale or weight, or a device does not fit.
        TypeError: A dtype is not supported.
    """
    scales, weights = require_numbers("scales", scales), require_numbers("weights", weights)
    if any(map(changes_between_calls, (*scales, *weights))):
        given = [t for t in (first, second, third) if t is not None]
        terms = [t.sum() * scale for t, scale in zip(given, scales, strict=True)]
        weighted = (term * weight for term, weight in zip(terms, weights, strict=True))
        return reduce(torch.add, weighted), torch.stack(terms).detach()
    return ops.weighted_terms.op(first, second, third, scales, weights)


@_repeatable
def vicreg_terms(
    x: Tensor,
    y: Tensor,
    invariance: Tensor | None = None,
    *,
    scales: Sequence[float],
    weights: Sequence[float],
    group: Tensor | None = None,
    group_weights: Tensor | None = None,
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    r"""VICReg's terms of two views, and their weighted sum.

    ::

        terms[0] = scales[0] · Σ_nd (x_nd − y_nd)²
        terms[1] = scales[1] · [variance(x) + variance(y)]
        terms[2] = scales[2] · [covariance(x) + covariance(y)]
        total    = Σ_i weights[i] · terms[i]

    with the statistics of `variance_covariance` (Bardes et al. 2022). With groups of pairs the
    first term is that of :class:`mast_ext.losses.MASTLoss` on a VICReg base instead::

        terms[0] = scales[0] · Σ_d grouped_means(group_weights, sums, counts)[d]

    of the sums and counts of `grouped_squared_difference`. The operators by themselves give the
    same by more than twice as many launches on a GPU, and read the views more often.

    Args:
        x: Embeddings ``[N, D]`` of one view, ``N ≥ 2``: float32, float16, bfloat16, or float64 on
            the CPU. Any strides.
        y: Embeddings of the other view, like ``x``.
        invariance: Numbers, of any shape, whose sum takes the place of that of the squared
            differences; float32 (float64 beside float64 embeddings). (On a GPU one thread block
            adds them up, so they should be no more than some thousands.)
        scales: A number for each term, such as ``1 / (N · D)`` for a mean of squared differences.
        weights: A number for each term.
        group: The group of every pair, ``[N]`` int64, from 0 to ``G − 1``; a pair of a negative one
            (on a GPU, of any other) has no part in the first term.
        group_weights: What a squared difference of each group counts in each dimension, ``[G, D]``,
            float32 (float64 beside float64 embeddings). Beside ``group``, and without
            ``invariance``.
        eps: Added to the variances inside the root.

    Returns:
        ``total``, a scalar, which is differentiable once in ``x``, ``y``, ``invariance`` and
        ``group_weights``; and ``terms [3]``, without gradient. In float32 (float64 for float64
        inputs).

    Raises:
        ValueError: A shape or device does not fit, ``N < 2``, ``eps`` is negative, a group is not
            below ``G`` (on the CPU), one of ``group`` and ``group_weights`` is missing or beside
            ``invariance``, or there are not three scales and weights.
        TypeError: A dtype is not supported, or differs from that of ``x``.
    """
    scales, weights = require_numbers("scales", scales), require_numbers("weights", weights)
    eps = as_number("eps", eps)
    alike = x.ndim == 2 and (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
    weighing = invariance if group_weights is None else group_weights
    if weighing is not None:
        alike = alike and weighing.device == x.device
        alike = alike and weighing.dtype == torch.promote_types(x.dtype, torch.float32)
    if group is None or group_weights is None or invariance is not None:
        grouped = group is None and group_weights is None
    else:
        grouped = (
            group_weights.ndim == 2
            and 0 < group_weights.shape[0] <= MOST_GROUPS
            and group_weights.shape[1:] == x.shape[1:]
        )
    apart = x.device.type == "cpu" and x.numel() > MOST_TOGETHER
    # Arguments that do not fit go to the operator, whose error names them.
    fits = alike and grouped and x.shape[0] >= 2
    if fits and (apart or any(map(changes_between_calls, (*scales, *weights)))):
        if group is not None and group_weights is not None:
            found = grouped_squared_difference(x, y, group, len(group_weights))
            invariance = grouped_means(group_weights, *found)
        if invariance is None:
            invariance = subspace_similarity(x[None], y[None], metric="sqeuclidean")
        of_x, of_y = (variance_covariance(z[None], eps=eps) for z in (x, y))
        both = map(torch.add, of_x, of_y)
        return weighted_terms(invariance, *both, scales=scales, weights=weights)
    return ops.vicreg_terms.op(x, y, invariance, group, group_weights, eps, scales, weights)[:2]


@_repeatable
def gram_difference(
    s: Tensor, t: Tensor, *, remove_negative: Literal["teacher", "both"] | None = None
) -> Tensor:
    r"""Mean squared difference of the products of all pairs of an image's tokens, in s and in t.

    ::

        difference[b] = |s_b s_bᵀ − t_b t_bᵀ|²_F / N²

    Of normalized tokens it is what Gram anchoring (DINOv3, Siméoni et al. 2025, section 4.2)
    minimizes (:class:`mast_ext.losses.GramAnchoringLoss`). With ``a = s − t`` and ``b = s + t`` the
    matrix is ``(a bᵀ + b aᵀ) / 2``: products of the small difference and not differences of large
    products, so that the result keeps its digits where ``s`` is close to ``t``. Where ``N > 2 D``
    its norm and gradients follow from the ``[2 D, 2 D]`` products ``(a, b)ᵀ (a, b)`` instead, and
    nothing of size ``N × N`` is made. These cancel where ``t`` is ``s`` with all tokens rotated
    alike: then the error is that of float32 relative to ``|a bᵀ|²_F / N²``. The products of either
    kind are kept for the backward, though not under ``torch.no_grad()``.

    Args:
        s: Tokens ``[B, N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        t: Tokens of the same places, shape, dtype and device of ``s``.
        remove_negative: Negative products that count as 0: of both matrices (``"both"``), or those
            of ``t`` and, at their places alone, those of ``s`` (``"teacher"``). The ``N × N``
            products are then made twice for a gradient, in tiles, whatever ``N`` is, and not kept.

    Returns:
        ``[B]`` float32 (float64 for float64 inputs). Differentiable once in ``s`` and ``t``.

    Raises:
        ValueError: A shape or device does not fit, ``N`` or ``D`` is 0, or ``remove_negative`` is
            unknown.
        TypeError: A dtype is not supported or differs from that of ``s``.
    """
    return ops.gram_difference.op(s, t, remove_negative, _keeps())[0]


@_repeatable
def sliced_characteristic_sums(
    z: Tensor, slices: Tensor, *, knots: int = 17, t_min: float = 0.0, t_max: float = 3.0
) -> Tensor:
    r"""Sums of the cosines and sines of projections: characteristic functions, times ``N``.

    ::

        sums[v, k, 0, m] = Σ_n cos(t_k x_vnm)        x = z · slices
        sums[v, k, 1, m] = Σ_n sin(t_k x_vnm)        t_k = t_min + k (t_max − t_min) / (knots − 1)

    Projections are made a tile at a time. Up to ``M = 2·D`` they are kept for the backward, which
    takes up to twice the memory of a float32 ``z``, though not under ``torch.no_grad()``; of more
    slices the backward makes them again.
    Nothing is stored of a knot but its sums. One cosine and one sine are computed of each
    projection; those at other knots follow by multiplication. The sums of processes may be added
    up, which is all that a statistic of the whole batch needs (:class:`mast_ext.losses.SIGReg`).

    Args:
        z: Embeddings ``[V, N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        slices: Directions ``[D, M]``, float32 (float64 beside float64 embeddings). Of any length;
            get no gradient.
        knots: Number of values of ``t``, at least 2.
        t_min: The first, finite.
        t_max: The last, finite and larger.

    Returns:
        ``[V, knots, 2, M]`` in float32 (float64 for float64 inputs). Differentiable once in ``z``.
        A NaN or infinity makes NaN what it is part of.

    Raises:
        ValueError: A shape or device does not fit, there are fewer than 2 knots, or ``t_min`` and
            ``t_max`` are not finite and in order.
        TypeError: A dtype is not supported.
    """
    knots, t_min = require_integer("knots", knots, high=MOST_KNOTS), as_number("t_min", t_min)
    return ops.sliced_characteristic_sums.op(
        z, slices, knots, t_min, as_number("t_max", t_max), _keeps()
    )[0]


@_repeatable
def sliced_characteristic_distance(
    z: Tensor,
    slices: Tensor,
    *,
    knots: int = 17,
    t_max: float = 3.0,
    interval: Interval = "half",
) -> Tensor:
    r"""Distance of projections from a normal distribution, by their characteristic functions.

    The statistic of Epps and Pulley (1983), as SIGReg averages it over random directions
    (Balestriero & LeCun 2025, "LeJEPA")::

        T[v] = N/M · Σ_m ∫ [(mean_n cos(t x_vnm) − φ)² + (mean_n sin(t x_vnm))²] φ dt
        x    = z · slices        φ = exp(−t²/2)

    over ``[−t_max, t_max]`` by the trapezoidal rule, from `sliced_characteristic_sums`. The
    integrand is even: knots below 0 are left out, and the weights of the others doubled.

    Args:
        z: Embeddings ``[V, N, D]``, ``N ≥ 1``: float32, float16, bfloat16 or (CPU) float64.
        slices: Directions ``[D, M]`` of length 1, float32 (float64 beside float64 embeddings).
        knots: Number of knots, at least 2 (3 of a symmetric interval).
        t_max: The last one, positive.
        interval: What the knots divide evenly: ``"half"`` is ``[0, t_max]`` (the authors' code,
            with ``t_max=3``), ``"symmetric"`` is ``[−t_max, t_max]`` (the paper's algorithm, as
            others copy it, with ``t_max=5``).

    Returns:
        ``[V]`` in float32 (float64 for float64 inputs). Differentiable once in ``z``.

    Raises:
        ValueError: A shape or device does not fit, there is no image, or a knot makes no sense.
        TypeError: A dtype is not supported.
    """
    if z.ndim != 3 or not z.shape[1]:
        raise ValueError(f"z must have shape [V, N, D] with N >= 1, got {list(z.shape)}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    t_min, t, phi, weights = epps_pulley_grid(knots, t_max, interval, dtype=dtype, device=z.device)
    sums = sliced_characteristic_sums(z, slices, knots=len(t), t_min=t_min, t_max=t_max)
    return epps_pulley_distance(sums, z.shape[1], phi, weights)


@_repeatable
def epps_pulley_grid(
    knots: int,
    t_max: float,
    interval: Interval = "half",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """The knots of `sliced_characteristic_distance` that are not negative, and their weights.

    Args:
        knots: See there.
        t_max: See there.
        interval: See there.
        dtype: Of the results.
        device: Of the results.

    Returns:
        The first knot, a number; all that are not negative, ``t [K]``; ``phi = exp(−t²/2) [K]``,
        the characteristic function of a normal distribution; and the weights of the trapezoidal
        rule over ``[−t_max, t_max]``, times ``phi``.

    Raises:
        ValueError: There are fewer than two knots (three of a symmetric interval), ``t_max`` is
            not positive and finite, or ``interval`` is unknown.
    """
    least = 3 if interval == "symmetric" else 2
    knots = require_integer("knots", knots, least, MOST_KNOTS)
    t_max = require_positive("t_max", t_max)
    if interval not in ("half", "symmetric"):
        raise ValueError(f"interval must be 'half' or 'symmetric', got {interval!r}")
    if interval == "half":
        count, step, has_zero = knots, t_max / (knots - 1), True
    else:
        count, step, has_zero = (knots + 1) // 2, 2 * t_max / (knots - 1), knots % 2 == 1
    t_min = 0.0 if has_zero else t_max - (count - 1) * step
    t = torch.linspace(t_min, t_max, count, dtype=dtype, device=device)
    phi = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * step)
    weights[-1] = step
    if has_zero:  # it has no mirror image
        weights[0] = step
    return t_min, t, phi, weights * phi


@_repeatable
def epps_pulley_distance(
    sums: Tensor, images: float | Tensor, phi: Tensor, weights: Tensor
) -> Tensor:
    r"""`sliced_characteristic_distance` of sums, such as those that processes have added up.

    ::

        T[v] = N/M · Σ_{k,m} weights_k [(sums_vk0m / N − phi_k)² + (sums_vk1m / N)²]

    One launch on a GPU, and one for the gradient.

    Args:
        sums: ``[V, K, 2, M]``, float32, or float64 on the CPU: what `sliced_characteristic_sums`
            returns at the knots of `epps_pulley_grid`.
        images: ``N``, over how many they are sums: a number, or a scalar tensor.
        phi: ``[K]``, of `epps_pulley_grid`, dtype of ``sums``.
        weights: ``[K]``, of the same.

    Returns:
        ``[V]``, dtype of ``sums``; NaN of no images. Differentiable once in ``sums``.

    Raises:
        ValueError: A shape or device does not fit, or a number of images is negative
            or not finite (of a tensor it is not looked at).
        TypeError: A dtype is not supported, or differs from that of ``sums``.
    """
    tensor, number = _tensor_and_number("images", images, sums)
    tensor = None if tensor is None else tensor.to(sums.dtype)
    return ops.epps_pulley_distance.op(sums, tensor, number, phi, weights)


@_repeatable
def budgeted_masks(mask_logits: Tensor, mean: Tensor, *, sharpness: float = 1.0) -> Tensor:
    r"""Masks of a given mean, and the products of every subset of them.

    ::

        m_fd = sigmoid(sharpness · mask_logits_fd − c_f)         c_f such that  mean_d m_fd = mean_f
        weights[g, d] = Π_{f in g} m_fd²                    f is in subset g if bit f of g is set

    So ``weights[0]`` is 1, and ``weights[2**f]`` mask ``f`` squared. The budget holds to about 1e-5
    for logits within ±100. Two launches on a GPU, and one for the gradient: the shift ``c`` is
    found by Newton's method within bounds, and its derivative follows from the implicit function
    theorem. :class:`mast_ext.losses.AugmentationMasks` are made of it.

    Args:
        mask_logits: ``[F, D]`` with ``F ≤ 8``, float32, or float64 on the CPU; finite.
        mean: ``[F]`` in ``(0, 1)``, dtype of ``mask_logits``; not checked, and without gradient.
        sharpness: Multiplies the logits.

    Returns:
        ``[2^F, D]``, dtype of ``mask_logits``, in which it is differentiable once.

    Raises:
        ValueError: A shape or device does not fit.
        TypeError: A dtype is not supported.
    """
    sharpness = require_number("sharpness", sharpness)
    if changes_between_calls(sharpness):
        mask_logits, sharpness = mask_logits * sharpness, 1.0
    return ops.budgeted_masks.op(mask_logits, mean, sharpness)[0]


@_repeatable
def prototype_cross_entropy(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    *,
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of every teacher view with every student view of the same image.

    Over ``C`` prototypes, as DINO (Caron et al. 2021, eq. 3) and iBOT compare them::

        CE[t,s,b] = −Σ_c softmax_c((teacher_tbc − center_c) / teacher_temperature)
                        · log_softmax_c(student_sbc / student_temperature)

    One pass reads every logit once for all pairs of views, the backward reads it once more and
    writes the gradient; no probabilities are stored. Logits enter as differences from their row's
    largest, so that ±1e4 cost no digits. For iBOT the masked tokens are the axis ``B``, with one
    view of each; a Sinkhorn-Knopp teacher is a ``center``.

    With ``weights`` the result is their sum with the cross-entropies. Their gradient being known
    then, the CPU takes it in the same pass, where autograd wants it, from exponentials that every
    thread keeps of an image's teachers and of one student: the backward has nothing left to do if
    the result is itself what is differentiated, and scales it otherwise. There are two passes
    under torch.compile, for fewer than 16 images, and for float16, which could not hold the
    gradient before a GradScaler has scaled it.

    Args:
        student: Raw logits ``[S, B, C]``, or a list of ``[B, C]``, which up to 32 views need not be
            stacked for: float32, float16, bfloat16 or (CPU) float64. Any strides.
        teacher: Raw logits ``[T, B, C]`` or a list, dtype and device of ``student``. Gets no
            gradient.
        student_temperature: Positive.
        teacher_temperature: Positive.
        center: ``[C]``, taken off the teacher's logits, float32 (float64 beside float64 logits).
            Gets no gradient. ``None``: nothing is taken off.
        weights: ``[T, S, B]``, or what broadcasts to it. A weight of 0 leaves its pair out, whose
            cross-entropy may be infinite. Gets no gradient.

    Returns:
        ``[T, S, B]``, or a scalar with ``weights``, in float32 (float64 for float64 inputs),
        differentiable once in ``student``.
        A NaN or ``+inf`` makes those results NaN that its row is part of. A logit of ``-inf`` has
        probability 0: fine in a teacher, while a student's gives ``+inf`` where the teacher's
        probability is positive and NaN (``0·∞``) where it is 0.

    Raises:
        ValueError: A shape or device does not fit, there is no view or no prototype, or a
            temperature is not positive and finite.
        TypeError: A dtype is not supported or differs from that of ``student``.
    """
    return _prototype_cross_entropy(
        student,
        teacher,
        student_temperature,
        teacher_temperature,
        center,
        weights,
        with_mean=False,
    )[0]


@_repeatable
def prototype_cross_entropy_with_mean(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    *,
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`prototype_cross_entropy`, and the teacher's mean logits from the same read.

    Args:
        student: As of that function, like all arguments.
        teacher: ``[T, B, C]``, or a list of ``[B, C]``.
        student_temperature: Positive.
        teacher_temperature: Positive.
        center: ``[C]``, or ``None``.
        weights: What broadcasts to ``[T, S, B]``, or ``None``.

    Returns:
        What that function gives, the same bits as without the mean, and ``[C]``: the raw teacher
        logits' mean over views and images (what a center's moving average is of), in float32
        (float64 for float64 inputs), NaN where ``B = 0``. It has no gradient.

    Raises:
        ValueError: As of that function.
        TypeError: As of that function.
    """
    return _prototype_cross_entropy(
        student,
        teacher,
        student_temperature,
        teacher_temperature,
        center,
        weights,
        with_mean=True,
    )


def _prototype_cross_entropy(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None,
    weights: Tensor | None,
    *,
    with_mean: bool,
) -> tuple[Tensor, Tensor]:
    student, teacher = _as_views(student, "student"), _as_views(teacher, "teacher")
    temperatures = (
        as_number("student_temperature", student_temperature),
        as_number("teacher_temperature", teacher_temperature),
    )
    scheduled = any(changes_between_calls(temperature) for temperature in temperatures)
    if weights is not None:
        require_one_device(student=student, weights=weights)
    if weights is not None and not scheduled:
        return ops.prototype_cross_entropy.weighted_op(
            student, teacher, center, weights, *temperatures, with_mean
        )
    # Detached, as they get no gradient: the graph would keep and traverse them in vain.
    teacher = [logits.detach() for logits in teacher]
    center = None if center is None else center.detach()
    if not scheduled:
        results = ops.prototype_cross_entropy.op(student, teacher, center, *temperatures, with_mean)
        return results[:2]
    cross_entropy, mean, *_ = ops.scheduled.prototype_cross_entropy(
        student, teacher, center, *(_as_input(number) for number in temperatures), with_mean
    )
    if weights is not None:  # as csrc/binding/composites.cpp sums
        weights = weights.detach().to(cross_entropy.dtype).expand(cross_entropy.shape)
        cross_entropy = (cross_entropy * weights).masked_fill(weights == 0, 0).sum()
    return cross_entropy, mean


def _as_views(logits: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    """Views as the operators take them: one ``[V, B, C]`` in a list, or several ``[B, C]``."""
    if isinstance(logits, Tensor):
        return [logits]
    views = list(logits) if isinstance(logits, Sequence) else [logits]
    if 1 < len(views) <= ops.prototype_cross_entropy.MOST_LISTED:
        return views
    shapes = [list(view.shape) for view in views]
    dtypes = {view.dtype for view in views}
    if len(dtypes) > 1:  # which torch.stack would make one
        raise TypeError(f"{name} must hold views of one dtype, got {sorted(map(str, dtypes))}")
    if not shapes or any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"{name} must hold views of one shape [B, C], at least one, got {shapes}")
    return [views[0].unsqueeze(0) if len(views) == 1 else torch.stack(views)]


def _as_input(number: float) -> Tensor:
    """A number as `mast_ext.ops.scheduled` takes it: a product, which compilers keep symbolic."""
    return torch.ones((), dtype=torch.float64, device="cpu") * number


@_repeatable
def prototype_column_logsumexp(
    logits: Tensor,
    *,
    temperature: float,
    center: Tensor | None = None,
    normalize_rows: bool = True,
) -> Tensor:
    r"""How much probability every prototype gets, as a logarithm.

    ::

        column[c] = log Σ_n softmax_c((logits[n,c] − center[c]) / temperature)

    in the log domain throughout: finite wherever it is finite in exact arithmetic, also where every
    probability of the column underflows. On the CPU the logits are read once, on a GPU twice;
    nothing of size ``N×C`` is allocated. With it Sinkhorn-Knopp is short:
    :func:`sinkhorn_knopp`.

    Args:
        logits: ``[N, C]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        temperature: Positive.
        center: ``[C]`` in float32 (float64 beside float64 logits). ``None``: zeros.
        normalize_rows: ``False`` sums ``exp`` in place of ``softmax``: Sinkhorn-Knopp's first step
            where prototypes are divided first.

    Returns:
        ``[C]`` in float32 (float64 for float64 logits), ``-inf`` of no rows. It has no gradient.
        A row with a NaN makes every entry NaN.

    Raises:
        ValueError: A shape or device does not fit, or ``temperature`` is not positive.
        TypeError: A dtype is not supported, or that of ``center`` does not fit.
    """
    temperature = as_number("temperature", temperature)
    if changes_between_calls(temperature):
        op = ops.scheduled.prototype_column_logsumexp
        return op(logits.detach(), center, _as_input(temperature), normalize_rows)
    return ops.prototype_column_logsumexp.op(logits, center, temperature, normalize_rows)


@_repeatable
def sinkhorn_knopp(
    logits: Tensor,
    *,
    temperature: float,
    iterations: int = 3,
    merge: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""The center whose softmax is a Sinkhorn-Knopp assignment of samples to prototypes.

    ``softmax((logits − center) / temperature)`` are the assignments of DINOv2 (Oquab et al. 2024;
    SwaV, Caron et al. 2020, alike) after ``iterations`` of: divide every prototype's column by its
    sum, then every sample's row by its. In logarithms a column's division is a shift of its
    prototype, and a row's is what a softmax does anyway, so that the prototypes' shifts are all
    there is to know::

        center_0 = 0;   center_1 = τ · log Σ_n exp(logits[n] / τ)
        center_(i+1) = center_i + τ · log Σ_n softmax((logits[n] − center_i) / τ)

    and :func:`prototype_cross_entropy` takes them as its ``center``. Nothing of size ``N×C`` is
    allocated, and nothing overflows, where ``exp(logits / τ)`` does for ``logits / τ`` above 88.

    Args:
        logits: ``[..., C]`` with all samples in the leading dimensions: float32, float16, bfloat16
            or (CPU) float64. Any strides.
        temperature: ``τ``, positive.
        iterations: From 0, a plain softmax.
        merge: Turns this process's logarithms of column sums ``[C]`` into those over all processes
            (a log-sum-exp); called once per iteration. ``None``: these are all samples.

    Returns:
        ``[C]`` in float32 (float64 for float64 logits), without a gradient. A prototype that gets
        nothing because all of its logits are ``-inf``, and every one where there are no samples,
        keeps its shift. A NaN makes its prototype NaN in the first iteration, and in the second,
        where its sample is part of every sum, all of them.

    Raises:
        ValueError: ``logits`` has fewer than two dimensions, ``temperature`` is not positive, or
            ``iterations`` is negative.
        TypeError: The dtype is not supported.
    """
    if logits.dim() < 2:
        raise ValueError(f"logits must have shape [..., C], got {list(logits.shape)}")
    temperature = require_positive("temperature", temperature)
    iterations = require_integer("iterations", iterations, 0)
    rows = logits.detach().flatten(0, -2)
    center = rows.new_zeros(rows.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32))
    for iteration in range(iterations):
        mass = prototype_column_logsumexp(
            rows, temperature=temperature, center=center, normalize_rows=iteration > 0
        )
        if merge is not None:
            mass = merge(mass)
        shift = mass.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0)  # of -inf none
        center = center + temperature * shift  # alpha= would be a constant to torch.compile
    return center


@_repeatable
def nearest_neighbor_distance(x: Tensor, *, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    r"""Distance of every row to the nearest other one on the unit sphere (KoLeo).

    ::

        u_i        = x_i / max(|x_i|, eps)
        index_i    = argmax_{j≠i} ⟨u_i, u_j⟩             the first on ties
        distance_i = |u_i − u_index_i + eps|             eps is added to every dimension

    whose negative mean logarithm is the Kozachenko-Leonenko regulariser of Sablayrolles et al.
    (2019, eq. 3); ``eps`` is used as by ``torch.nn.functional.normalize`` and
    ``torch.nn.PairwiseDistance``, and hence by DINOv2. The ``N×N`` cosines are computed tile by
    tile and never stored: memory beyond ``x`` is one normalized copy of it. The distance is summed
    from differences, so that near neighbors keep their digits. 16-bit inputs are computed in
    float32 throughout.

    Exact duplicates are ``eps·√D`` apart, and the gradient of that distance is finite: it is along
    the diagonal, away from the neighbor, of length about ``1/|x_i|``. A row of norm below ``eps``
    counts as ``x_i / eps``. A NaN never wins over a number: a row with a NaN is a neighbor only of
    rows that have no other, and takes the first other row as its own.

    Args:
        x: ``[N, D]`` with ``D ≥ 1`` and ``N ≠ 1``: float32, float16, bfloat16 or (CPU) float64. Any
            strides.
        eps: Positive.

    Returns:
        ``distance`` ``[N]`` in float32 (float64 for float64 inputs), differentiable once in ``x``,
        as a distance to a neighbor that moves as well; and ``index`` int64 ``[N]``.

    Raises:
        ValueError: The shape does not fit, there is one row, which has no neighbor, or ``eps`` is
            not positive.
        TypeError: The dtype is not supported.
    """
    eps = as_number("eps", eps)
    if changes_between_calls(eps):
        return ops.scheduled.nearest_neighbor_distance(x, _as_input(eps))
    return ops.nearest_neighbor_distance.op(x, eps)


@_repeatable
def select_hard_pairs(
    pair_losses: Tensor, *, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""The hardest pair of views of every image (hard view selection, Ferreira et al. 2023).

    Of the unordered pairs ``i < j`` the one with the largest score, the first in lexicographic
    order on ties::

        score[i,j,b] = (L[i,j,b] + L[j,i,b]) / 2

    A NaN never wins over a number: an image all of whose scores are NaN gets its first candidate,
    with score NaN.

    Args:
        pair_losses: ``L``, ``[V, V, B]`` with ``V ≥ 2``, as every objective's ``pair_losses``
            returns it: float32, float16, bfloat16 or (CPU) float64. Any strides.
        candidates: The pairs to choose from, bool ``[V, V]`` on the device of ``pair_losses``,
            read above the diagonal, where at least one has to be set. ``None``: all.

    Returns:
        ``index`` int64 ``[2, B]``, views ``i`` and ``j`` of every image, and their ``score``
        ``[B]`` in float32 (float64 for float64 inputs). Neither has a gradient.

    Raises:
        ValueError: A shape or device does not fit, there are fewer than two views, or there is no
            candidate (looked at on the CPU only: a GPU is not waited for, and chooses the pair
            ``(0, 1)`` with score NaN).
        TypeError: A dtype is not supported.
    """
    return ops.select_hard_pairs.op(pair_losses, candidates)


@_repeatable
def select_hard_cosine_pairs(
    x: Tensor,
    y: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    r"""The hardest pair of views of every image by negative cosine similarity (SimSiam, BYOL).

    What :func:`select_hard_pairs` chooses by ``NegativeCosineSimilarity().pair_losses(x, y)``::

        score[i,j,b] = (−cos(x_ib, y_jb) − cos(x_jb, y_ib)) / 2

    in one pass over the embeddings, without the losses of the pairs in memory. On a GPU the scores
    are summed in another order, so that the choice may differ where two agree to rounding.

    Args:
        x: Embeddings ``[V, B, D]`` (predictions) with ``V ≥ 2``: float32, float16, bfloat16 or
            (CPU) float64. Any strides.
        y: Embeddings ``[V, B, D]`` (targets) of the same views, dtype and device of ``x``.
            ``None``: ``x`` itself.
        candidates: As in :func:`select_hard_pairs`.
        eps: Norms below it count as ``eps``.

    Returns:
        ``index`` int64 ``[2, B]`` and ``score`` ``[B]``, as :func:`select_hard_pairs`.

    Raises:
        ValueError: A shape or device does not fit, there are fewer than two views or (looked at on
            the CPU only) no candidate, or ``eps`` is not positive.
        TypeError: A dtype is not supported or differs from that of ``x``.
    """
    return ops.select_hard_cosine_pairs.op(x, y, candidates, as_number("eps", eps))


@_repeatable
def select_hard_crops(
    ce: Tensor,
    *,
    num_locals: int,
    limit: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The hardest crops of every image: two global ones and ``num_locals`` local ones.

    Hard view selection for DINO and iBOT (Ferreira et al. 2023): of all tuples of an even global
    crop ``a``, an odd one ``c`` and a subset ``S`` of the local crops, the one on which training
    would lose most::

        score = CE[a,c] + CE[c,a] + Σ_{l in S} (CE[a,l] + CE[c,l])

    The sum falls apart into local crops, so that the best ``S`` beside ``(a, c)`` holds those of
    the largest terms: the search is exact and looks at pairs, not at tuples (with 4 global and 16
    local crops, of which 8 are kept, at 4 and not at 51,480). Ties go to the first pair in the
    order of ``(a, c)`` and to the local crops of the lowest index. A NaN never wins over a number:
    a local crop whose term is NaN is chosen only where there are not enough others, a pair whose
    score is NaN only where all are.

    Args:
        ce: Cross-entropies ``[G, G+L, B]`` of teacher view ``t`` and student view ``s``, as
            ``DINOLoss.crop_losses`` returns them, ``G ≥ 2``: float32, float16, bfloat16 or (CPU)
            float64. The global crops come first; ``CE[t,t]`` is not read. Any strides.
        num_locals: How many local crops to choose, from 0 to ``L``.
        limit: Choose among this many tuples only, drawn at random without replacement, the same for
            all images, as the published code does to save time. ``None``, or as many as there are:
            the exact search, which is the faster one here. The draw happens on the host: it breaks
            a graph of ``torch.compile``, and a CUDA graph cannot hold it.
        generator: A CPU generator that the draw depends on; ``None`` is torch's default one.

    Returns:
        ``index`` int64 ``[2+num_locals, B]``: the rows are ``a``, ``c`` and the local crops in
        ascending order, all as student views in ``[0, G+L)``, ready for :func:`gather_views`; and
        the ``score`` ``[B]`` in float32 (float64 for float64 inputs). Neither has a gradient.

    Raises:
        ValueError: A shape does not fit, there are fewer than two global crops, ``num_locals`` is
            not in ``[0, L]``, ``limit`` is not positive, or ``generator`` is not on the CPU.
        TypeError: A dtype is not supported.
    """
    num_locals = as_integer("num_locals", num_locals)
    if limit is None:
        return ops.select_hard_crops.op(ce, None, num_locals)
    limit = require_integer("limit", limit, 1)
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, where the tuples are drawn, got {generator.device}"
        )
    tuples = None
    if ce.dim() == 3 and 0 <= num_locals <= ce.shape[1] - ce.shape[0]:  # else an error of the op
        num_globals, crops = ce.shape[:2]
        tuples = ops.select_hard_crops.draw_tuples(
            num_globals, crops - num_globals, num_locals, limit, generator
        )
    return ops.select_hard_crops.op(ce, tuples, num_locals)


@_repeatable
def gather_views(views: Tensor, index: Tensor) -> Tensor:
    r"""The chosen views of every image: ``out[s, b] = views[index[s, b], b]``.

    Args:
        views: ``[V, B, ...]`` of any dtype: images, augmentation parameters, embeddings. Where
            the dimensions behind ``B`` lie in memory without gaps, in whatever order
            (``channels_last`` images, say), they are copied and returned in that order; otherwise
            they are made contiguous first.
        index: int64 ``[S, B]`` with values in ``[0, V)``, on the device of ``views``.

    Returns:
        ``[S, B, ...]``, dtype of ``views``. Differentiable in ``views`` of float32, float16,
        bfloat16 and (CPU) float64, to any order; the gradients of a view that was chosen more than
        once are added in the order of ``s``.

    Raises:
        ValueError: A shape or device does not fit, or ``index`` has a value that is no view. Values
            are looked at on the CPU only: a GPU is not waited for, and fills what has no view with
            set bits: NaN in floating types, -1 or the largest value in integers.
        TypeError: ``index`` is not int64, or a gradient is asked for in another dtype.
    """
    return ops.gather_views.op(views, index)
