"""The functions of ``mast_ext.functional`` in plain torch: definition, test oracle, baseline.

Written to be read: formulas as they stand in the docstrings there, materialising what they like.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "contrastive_logsumexp",
    "contrastive_loss",
    "cross_correlation_penalty",
    "epps_pulley_distance",
    "gather_views",
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
    "view_pair_cross_entropy",
]


def _weights(masks: Tensor | None, like: Tensor) -> Tensor:
    """Squared masks ``[K, D]``."""
    return like.new_ones(1, like.shape[-1]) if masks is None else masks.square()


def subspace_similarity(
    x: Tensor,
    y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    metric: Literal["cosine", "sqeuclidean"] = "cosine",
    eps: float = 1e-8,
) -> Tensor:
    """See :func:`mast_ext.functional.subspace_similarity`."""
    weights = _weights(masks, x)[:, None, None, None, :]  # [K, 1, 1, 1, D]
    a, b = (
        x[None, :, None],
        (x if y is None else y)[None, None],
    )  # [1, Vx, 1, B, D], [1, 1, Vy, B, D]
    if metric == "sqeuclidean":
        return (weights * (a - b).square()).sum(-1)
    dot = (weights * a * b).sum(-1)
    norm_a = (weights * a.square()).sum(-1).sqrt().clamp_min(eps)
    norm_b = (weights * b.square()).sum(-1).sqrt().clamp_min(eps)
    return dot / (norm_a * norm_b)


def subspace_nll(
    x: Tensor,
    log_var_x: Tensor,
    y: Tensor | None = None,
    log_var_y: Tensor | None = None,
    masks: Tensor | None = None,
    *,
    variance: Literal["diagonal", "subspace"] | None = None,
) -> Tensor:
    """See :func:`mast_ext.functional.subspace_nll`."""
    weights = _weights(masks, x)
    weights = (weights / weights.sum(-1, keepdim=True))[:, None, None, None, :]
    y, log_var_y = (x, log_var_x) if y is None or log_var_y is None else (y, log_var_y)
    squared = (x[None, :, None] - y[None, None]).square()  # [1, Vx, Vy, B, D]
    log_s = torch.logaddexp(log_var_x[:, None], log_var_y[None])  # [Vx, Vy, B, D or K]
    if variance is None:
        variance = "diagonal" if log_var_x.shape[-1] == x.shape[-1] else "subspace"
    if variance == "diagonal":
        return (weights * (squared / log_s.exp() + log_s)).sum(-1) / 2
    log_s = log_s.movedim(-1, 0)
    return ((weights * squared).sum(-1) / log_s.exp() + log_s) / 2


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
    """See :func:`mast_ext.functional.contrastive_logsumexp`."""
    exclude_self, y = exclude_self or y is None, x if y is None else y
    scale = _weights(masks, x).sqrt()[:, None, None]  # [K, 1, 1, D]
    a, b = (
        scale * z / (scale * z).norm(dim=-1, keepdim=True).clamp_min(1e-8) for z in (x, y)
    )  # [K, V, N, D] each
    logits = torch.einsum("kind,kjmd->kijnm", a, b) / temperature
    views = torch.eye(len(x), len(y), dtype=torch.bool, device=x.device)[:, :, None, None]
    kept = torch.ones(logits.shape[1:], dtype=torch.bool, device=x.device)
    positive = logits.new_empty((*logits.shape[:-1], 0))
    if offset is not None:
        columns = torch.arange(offset, offset + x.shape[1], device=x.device)
        partner = columns[:, None] == torch.arange(y.shape[1], device=x.device)
        positive = logits.diagonal(offset, -2, -1)[..., : x.shape[1]]
        kept = kept & ~(partner & (views & exclude_self | exclude_positive))
    if not within_views:
        kept, positive = kept & ~views, positive.where(~views[..., 0], 0.0)
    return logits.masked_fill(~kept, -torch.inf).logsumexp(-1), positive


def contrastive_loss(
    views: Tensor | Sequence[Tensor],
    *,
    temperature: float | Tensor,
    decoupled: bool = False,
    within_views: bool = True,
    one_sided: bool = False,
) -> Tensor:
    """See :func:`mast_ext.functional.contrastive_loss`."""
    lse, positive = contrastive_logsumexp(
        torch.stack(tuple(views)),
        temperature=temperature,
        exclude_positive=True,
        within_views=within_views,
    )
    if not one_sided:
        return view_pair_cross_entropy(lse[0], positive[0], decoupled=decoupled, reduction="mean")
    excess = torch.logaddexp(lse[0, 0, :1], lse[0, 0, 1:]) - positive[0, 0, 1:]
    return (excess if decoupled else F.softplus(excess, threshold=40)).mean()


def view_pair_cross_entropy(
    lse: Tensor,
    positive: Tensor,
    *,
    decoupled: bool = False,
    reduction: Literal["none", "mean"] = "none",
) -> Tensor:
    """See :func:`mast_ext.functional.view_pair_cross_entropy`."""
    within = lse.diagonal(dim1=-3, dim2=-2).movedim(-1, -2).unsqueeze(-2)
    excess = torch.logaddexp(within, lse) - positive
    terms = excess if decoupled else F.softplus(excess, threshold=40)
    losses = (terms + terms.transpose(-3, -2)) / 2
    if reduction == "none":
        return losses
    different = ~torch.eye(lse.shape[-2], dtype=torch.bool, device=lse.device)
    return losses[..., different, :].mean((-2, -1))


def sigmoid_contrast(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    offset: int | None = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """See :func:`mast_ext.functional.sigmoid_contrast`."""
    a, b = (z / z.norm(dim=-1, keepdim=True).clamp_min(1e-8) for z in (x, y))
    logits = scale * (a @ b.mT) + bias
    columns = torch.arange(len(y), device=x.device)
    partner = -1 if offset is None else torch.arange(len(x), device=x.device)[:, None] + offset
    loss = -F.logsigmoid(torch.where(columns == partner, logits, -logits)).sum(1)
    return loss if weights is None else (loss * weights).sum()


def variance_covariance(
    z: Tensor, masks: Tensor | None = None, *, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.variance_covariance`."""
    dim = z.shape[2]
    weights = _weights(masks, z)[:, None]  # [K, 1, D]
    variance = (1 - (weights * z.var(1) + eps).sqrt()).relu().mean(-1)
    centered = z - z.mean(1, keepdim=True)
    covariances = centered.mT @ centered / (z.shape[1] - 1)  # [V, D, D]
    off_diagonal = covariances.square() * (1 - torch.eye(dim, dtype=z.dtype, device=z.device))
    return variance, torch.einsum("kd,ke,vde->kv", weights[:, 0], weights[:, 0], off_diagonal) / dim


def cross_correlation_penalty(
    a: Tensor, b: Tensor, *, lambda_: float, variant: Literal["official", "paper"] = "official"
) -> Tensor:
    """See :func:`mast_ext.functional.cross_correlation_penalty`."""
    biased, eps = (True, 1e-5) if variant == "official" else (False, 0.0)
    normal = [
        (t - t.mean(0)) / (t.var(0, unbiased=not biased) + eps).sqrt() for t in (a, b)
    ]  # [N, D] each
    c = normal[0].mT @ normal[1] / len(a)
    diagonal = torch.diagonal(c)
    return (diagonal - 1).square().sum() + lambda_ * (c.square().sum() - diagonal.square().sum())


def gram_difference(s: Tensor, t: Tensor, *, remove_negative: str | None = None) -> Tensor:
    """See :func:`mast_ext.functional.gram_difference`."""
    x, y = s @ s.mT, t @ t.mT  # [B, N, N] each
    if remove_negative is not None:
        removed = x < 0 if remove_negative == "both" else (x < 0) & (y < 0)
        x, y = x.masked_fill(removed, 0), y.masked_fill(y < 0, 0)
    return (x - y).square().mean((1, 2))


def grouped_squared_difference(
    x: Tensor, y: Tensor, group: Tensor, groups: int, *, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.grouped_squared_difference`."""
    belongs = (group == torch.arange(groups, device=group.device)[:, None]).to(x)  # [G, N]
    if weight is not None:
        belongs = belongs * weight
    return belongs @ (x - y).square(), belongs.sum(1)


def grouped_squared_difference_with_residual(
    x: Tensor,
    y: Tensor,
    group: Tensor,
    dimension_weights: Tensor,
    *,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mast_ext.functional.grouped_squared_difference_with_residual`."""
    found = grouped_squared_difference(x, y, group, len(dimension_weights), weight=weight)
    weights = dimension_weights[group.clamp_min(0)] * (group >= 0)[:, None]
    return *found, (weights * (x - y).square()).sum(1).detach()


def grouped_means(group_weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """See :func:`mast_ext.functional.grouped_means`."""
    compared = (group_weights * counts[:, None]).sum(0)
    return (group_weights * sums).sum(0) / compared.clamp_min(1)


def weighted_terms(
    first: Tensor,
    second: Tensor | None = None,
    third: Tensor | None = None,
    *,
    scales: tuple[float, ...],
    weights: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.weighted_terms`."""
    given = [t for t in (first, second, third) if t is not None]
    terms = torch.stack([s * t.sum() for s, t in zip(scales, given, strict=True)])
    factors = torch.as_tensor(weights, dtype=terms.dtype, device=terms.device)
    return (factors * terms).sum(), terms.detach()


def vicreg_terms(
    x: Tensor,
    y: Tensor,
    invariance: Tensor | None = None,
    *,
    scales: tuple[float, float, float],
    weights: tuple[float, float, float],
    group: Tensor | None = None,
    group_weights: Tensor | None = None,
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.vicreg_terms`."""
    numbers = (x - y).square() if invariance is None else invariance
    if group is not None and group_weights is not None:
        found = grouped_squared_difference(x, y, group, len(group_weights))
        numbers = grouped_means(group_weights, *found)
    both = variance_covariance(torch.stack((x, y)), eps=eps)
    return weighted_terms(numbers, *both, scales=scales, weights=weights)


def sliced_characteristic_sums(
    z: Tensor, slices: Tensor, *, knots: int = 17, t_min: float = 0.0, t_max: float = 3.0
) -> Tensor:
    """See :func:`mast_ext.functional.sliced_characteristic_sums`."""
    t = torch.linspace(t_min, t_max, knots, dtype=z.dtype, device=z.device)
    angles = t[:, None, None] * (z @ slices)[:, None]  # [V, knots, N, M]
    return torch.stack((angles.cos().sum(2), angles.sin().sum(2)), 2)


def sliced_characteristic_distance(
    z: Tensor,
    slices: Tensor,
    *,
    knots: int = 17,
    t_max: float = 3.0,
    interval: Literal["half", "symmetric"] = "half",
) -> Tensor:
    """See :func:`mast_ext.functional.sliced_characteristic_distance`."""
    t_min = 0.0 if interval == "half" else -t_max
    t = torch.linspace(t_min, t_max, knots, dtype=z.dtype, device=z.device)
    angles = t * (z @ slices)[..., None]  # [V, N, M, knots]
    of_normal = torch.exp(-t.square() / 2)
    squares = (angles.cos().mean(1) - of_normal).square() + angles.sin().mean(1).square()
    integral = torch.trapezoid(squares * of_normal, t)  # [V, M]
    return z.shape[1] * (2 if interval == "half" else 1) * integral.mean(1)


def epps_pulley_distance(
    sums: Tensor, images: float | Tensor, phi: Tensor, weights: Tensor
) -> Tensor:
    """See :func:`mast_ext.functional.epps_pulley_distance`."""
    cosines, sines = (sums / images).unbind(2)  # [V, K, M]
    squares = (cosines - phi[:, None]).square() + sines.square()
    return images * (weights[:, None] * squares).sum(1).mean(1)


def budgeted_masks(mask_logits: Tensor, mean: Tensor, *, sharpness: float = 1.0) -> Tensor:
    """See :func:`mast_ext.functional.budgeted_masks`."""
    scaled = sharpness * mask_logits
    fixed, logit = scaled.detach(), mean.logit()
    low, high = fixed.amin(1) - logit, fixed.amax(1) - logit
    for _ in range(60):
        middle = (low + high) / 2
        too_much = torch.sigmoid(fixed - middle[:, None]).mean(1) > mean
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    slope = torch.sigmoid(fixed - low[:, None])
    slope = slope * (1 - slope)
    moves = (slope * scaled).sum(1) / slope.sum(1)  # with the shift's derivative
    masks = torch.sigmoid(scaled - (low + moves - moves.detach())[:, None])
    weights = masks.new_ones(1, masks.shape[1])
    for mask in masks:
        weights = torch.cat((weights, weights * mask.square()))
    return weights


def prototype_cross_entropy(
    student: Tensor | list[Tensor],
    teacher: Tensor | list[Tensor],
    *,
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """See :func:`mast_ext.functional.prototype_cross_entropy`."""
    student, teacher = _stacked(student), _stacked(teacher)
    centered = teacher if center is None else teacher - center.to(teacher)
    target = (centered / teacher_temperature).softmax(-1).detach()
    log_probability = (student / student_temperature).log_softmax(-1)
    cross_entropy = -(target[:, None] * log_probability[None]).sum(-1)
    if weights is None:
        return cross_entropy
    return (cross_entropy * weights).where(weights != 0, 0.0).sum()


def prototype_cross_entropy_with_mean(
    student: Tensor | list[Tensor],
    teacher: Tensor | list[Tensor],
    *,
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.prototype_cross_entropy_with_mean`."""
    cross_entropy = prototype_cross_entropy(
        student,
        teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        center=center,
        weights=weights,
    )
    teacher = _stacked(teacher).detach()
    return cross_entropy, teacher.to(torch.promote_types(teacher.dtype, torch.float32)).mean((0, 1))


def _stacked(views: Tensor | list[Tensor]) -> Tensor:
    return views if isinstance(views, Tensor) else torch.stack(views)


def prototype_column_logsumexp(
    logits: Tensor,
    *,
    temperature: float,
    center: Tensor | None = None,
    normalize_rows: bool = True,
) -> Tensor:
    """See :func:`mast_ext.functional.prototype_column_logsumexp`."""
    scaled = (logits if center is None else logits - center) / temperature
    return (scaled.log_softmax(-1) if normalize_rows else scaled).logsumexp(0)


def sinkhorn_knopp(logits: Tensor, *, temperature: float, iterations: int = 3) -> Tensor:
    """The assignments ``[..., C]`` that :func:`mast_ext.functional.sinkhorn_knopp` gives."""
    log_assignments = logits.flatten(0, -2) / temperature
    for _ in range(iterations):
        log_assignments = log_assignments - log_assignments.logsumexp(0)
        log_assignments = log_assignments - log_assignments.logsumexp(-1, keepdim=True)
    return log_assignments.softmax(-1).view(logits.shape)


def nearest_neighbor_distance(x: Tensor, *, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.nearest_neighbor_distance`."""
    unit = F.normalize(x, dim=-1, eps=eps)
    cosines = (unit @ unit.mT).detach()
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    index = cosines.masked_fill(cosines.isnan(), -2).masked_fill(own, -3).argmax(1)
    return F.pairwise_distance(unit, unit[index], eps=eps), index


def select_hard_pairs(
    pair_losses: Tensor, *, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.select_hard_pairs`."""
    views = pair_losses.shape[0]
    pairs = torch.triu_indices(views, views, 1, device=pair_losses.device)  # lexicographic
    if candidates is not None:
        pairs = pairs[:, candidates[pairs[0], pairs[1]]]
    i, j = pairs
    scores = (pair_losses[i, j] + pair_losses[j, i]) / 2  # [pairs, B]
    chosen = _first_of_largest(scores)
    return pairs[:, chosen], scores.gather(0, chosen[None])[0]


def _first_of_largest(scores: Tensor) -> Tensor:
    """Row ``[B]`` of the largest of ``scores [N, B]``; NaN only where there is nothing else."""
    best = scores.masked_fill(scores.isnan(), -torch.inf).amax(0)
    wins = (scores == best) | scores.isnan().all(0)
    return wins.to(torch.uint8).argmax(0)


def select_hard_cosine_pairs(
    x: Tensor,
    y: Tensor | None = None,
    *,
    candidates: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.select_hard_cosine_pairs`."""
    return select_hard_pairs(-subspace_similarity(x, y, eps=eps)[0], candidates=candidates)


def select_hard_crops(ce: Tensor, *, num_locals: int) -> tuple[Tensor, Tensor]:
    """See :func:`mast_ext.functional.select_hard_crops`: every tuple's score, and the largest."""
    (num_globals, crops), device = ce.shape[:2], ce.device
    even = torch.arange(0, num_globals, 2, device=device)
    pairs = torch.cartesian_prod(even, torch.arange(1, num_globals, 2, device=device))
    # Every subset of the local crops is a number of as many bits; the first crop is the highest.
    bits = torch.arange(crops - num_globals, device=device).flip(0)
    taken = torch.arange(2 ** len(bits), device=device).flip(0)[:, None] >> bits & 1
    taken = taken[taken.sum(1) == num_locals]
    subsets = taken.nonzero()[:, 1].view(len(taken), num_locals) + num_globals
    tuples = torch.cat(
        [pairs.repeat_interleave(len(subsets), 0), subsets.repeat(len(pairs), 1)], 1
    )  # [tuples, 2 + num_locals], in lexicographic order
    a, c, *chosen = tuples.unbind(1)
    scores = ce[a, c] + ce[c, a]  # [tuples, B]
    for local in chosen:
        scores = scores + (ce[a, local] + ce[c, local])
    best = _first_of_largest(scores)
    return tuples[best].T, scores.gather(0, best[None])[0]


def gather_views(views: Tensor, index: Tensor) -> Tensor:
    """See :func:`mast_ext.functional.gather_views`."""
    return views[index, torch.arange(views.shape[1], device=views.device)]
