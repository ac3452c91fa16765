"""Stateless entry points; the canonical public API."""

from typing import Literal

from torch import Tensor

from mast_ext import ops

__all__ = [
    "contrastive_logsumexp",
    "cross_correlation_penalty",
    "gather_views",
    "select_hard_cosine_pairs",
    "select_hard_pairs",
    "subspace_nll",
    "subspace_similarity",
    "variance_covariance",
]


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
    return ops.subspace_similarity.op(x, y, masks, metric, eps)[0]


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

    ``log s`` is a log-add-exp, so that log-variances of ±80 give finite values and gradients. A
    mask of zeros counts as distance 0 (``L = 0`` in the diagonal form).

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

    The contrastive primitive: NT-Xent of views ``i`` and ``j`` (Chen et al. 2020, eq. 1) is
    ``logaddexp(lse_ii, lse_ij) − positive_ij``, and InfoNCE against a queue, CLIP's loss and
    decoupled contrastive learning are as short. The ``N×M`` similarities are computed tile by tile,
    forward and again backward, and never stored: memory is ``O((N + M)·D)`` whatever ``K`` is.
    On a GPU float32 and float16 are multiplied as sums of two bfloat16 numbers each, which leaves
    cosines within 1e-5; tf32 is not used.

    Args:
        x: Rows, ``[Vx, N, D]``: float32, float16, bfloat16 or (CPU) float64. Any strides.
        y: Columns, ``[Vy, M, D]``, dtype and device of ``x``. ``None`` contrasts ``x`` with itself:
            ``y = x``, ``exclude_self`` holds, and one tile of products serves ``(i, j)`` and
            ``(j, i)``.
        masks: Non-negative masks ``[K, D]``, float32 (float64 beside float64 embeddings). ``None``
            is one subspace of all ones; the results keep their leading axis ``K = 1``.
        temperature: A positive number, or a scalar tensor in float32 (float64 beside float64
            embeddings), which may require gradient. A number of at least 0.03 is fastest: a
            running maximum is not needed then.
        offset: Column of row 0's positive; row ``b``'s is ``b + offset``. ``None``: the columns
            hold no positives (a queue of negatives), and ``positive`` is empty.
        exclude_self: In the blocks ``(i, i)`` of a view with itself, column ``b + offset`` is the
            row itself and left out of the sum. For rows out of a larger gathered batch ``y``.
        exclude_positive: Leaves column ``b + offset`` out of the sum in every block, so that
            ``lse`` is over negatives alone (decoupled contrastive learning, Yeh et al. 2022).
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
    tensor = isinstance(temperature, Tensor)
    return ops.contrastive_logsumexp.op(
        x,
        y,
        masks,
        temperature if tensor else None,
        0.0 if tensor else temperature,
        offset,
        exclude_self,
        exclude_positive,
        within_views,
    )[:2]


def variance_covariance(
    z: Tensor, masks: Tensor | None = None, *, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    r"""VICReg's two batch statistics of every view, in every subspace.

    With :math:`w_k = m_k^2`, unbiased variances, and the covariances ``C = zcᵀzc / (N−1)`` of the
    centred embeddings ``zc``::

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
    return ops.variance_covariance.op(z, masks, eps)[:2]


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
        variant: ``"official"`` standardises as batch norm does (the authors' code, lightly),
            ``"paper"`` as the paper's pseudo-code, where a constant dimension gives NaN.

    Returns:
        A scalar in float32 (float64 for float64 inputs). Differentiable once in ``a`` and ``b``.

    Raises:
        ValueError: A shape or device does not fit, ``N < 2``, or ``variant`` is unknown.
        TypeError: A dtype is not supported or differs from that of ``a``.
    """
    return ops.cross_correlation_penalty.op(a, b, lambda_, variant)[0]


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
    return ops.select_hard_cosine_pairs.op(x, y, candidates, eps)


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
