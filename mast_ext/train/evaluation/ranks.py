"""How many dimensions a representation uses, told without labels: RankMe and LiDAR.

Both are effective ranks (Roy & Vetterli 2007): the exponential of the entropy of some spectrum
taken as a distribution, between 1 (one direction holds everything: collapse) and the number of
values in it (all directions count alike). They are bounded by the sample, too, so that numbers of
samples of another size, or of another width, do not compare.
"""

import math

import torch
from torch import Tensor

_ROWS = 1024  # that are in float64 at a time


def rankme(embeddings: Tensor) -> float:
    """RankMe: the effective rank of embeddings of images.

    With the singular values ``σ_k`` of the matrix of embeddings, which are not centered,

        RankMe = exp(−Σ_k p_k log p_k),   p_k = σ_k / Σ_j σ_j

    (Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", ICML 2023). The paper adds 1e-7 to every ``p_k`` against the log
    of 0; here ``0 log 0`` is 0. It measures 25,600 images.

    Args:
        embeddings: ``[N, D]``, floating point, of any device; computed in float64 on the CPU, some
            rows at a time.

    Returns:
        Between 1 and ``min(N, D)``; 0 if all embeddings are 0; NaN if any number is not finite.

    Raises:
        ValueError: The shape or dtype is another one, or there are no numbers.
    """
    values = _checked("embeddings", embeddings, "[N, D]", 1)
    return _effective_rank(_squared_singular_values(values).sqrt())


def lidar(embeddings: Tensor, *, delta: float = 1e-4) -> float:
    """LiDAR: how many directions tell images apart from views of the same image.

    With ``e_vn`` the embedding of view ``v`` of image ``n``, ``μ_n`` the mean of an image's views
    and ``μ`` the mean of all, and the eigenvalues ``λ_k`` of the matrix of linear discriminant
    analysis in which every image is a class,

        Σ_b = (1/N) Σ_n (μ_n − μ)(μ_n − μ)ᵀ
        Σ_w = (1/(V N)) Σ_vn (e_vn − μ_n)(e_vn − μ_n)ᵀ + δ I
        LiDAR = exp(−Σ_k p_k log p_k),   p_k = λ_k(Σ_w^−½ Σ_b Σ_w^−½) / Σ_j λ_j

    (Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
    Architectures", ICLR 2024). As in `rankme` nothing is added to ``p_k``. Unlike RankMe it does
    not count directions in which the views of an image differ as much as images do. Where there
    are fewer than ``D`` differences of views, ``N (V − 1) < D``, some directions seem not to differ
    at all and ``δ`` decides how much they count.

    Args:
        embeddings: ``[V, N, D]`` with at least two views, floating point, of any device; computed
            in float64 on the CPU.
        delta: ``δ``, positive.

    Returns:
        Between 1 and ``min(N − 1, D)``; 0 if the images' means are all the same; NaN if any number
        is not finite.

    Raises:
        ValueError: The shape or dtype is another one, there are no numbers, or ``delta`` is not
            positive.
    """
    values = _checked("embeddings", embeddings, "[V, N, D] with at least two views", 2)
    values = values.cpu().double().contiguous()
    if not (delta > 0 and math.isfinite(delta)):
        raise ValueError(f"delta must be positive and finite, got {delta}")
    if not values.isfinite().all():
        return math.nan
    views, images, width = values.shape
    # Both matrices are those of shifted embeddings; so equal ones have differences of exactly 0.
    values = values - values[0, 0]
    if width > views * images:  # in an orthonormal basis of the space that they span
        values = _triangle(values.flatten(0, 1).T).T.unflatten(0, (views, images))
        width = values.shape[-1]
    means = values.mean(0)
    within = (values - means).flatten(0, 1) / math.sqrt(views * images)
    between = (means - means.mean(0)) / math.sqrt(images)
    # RᵀR = Σ_w, without its square's rounding: δ counts however large the embeddings are.
    root = _triangle(torch.cat((within, math.sqrt(delta) * torch.eye(width).to(within))))
    whitened = torch.linalg.solve_triangular(root, between, upper=True, left=False)
    return _effective_rank(_squared_singular_values(whitened))


def _checked(name: str, values: Tensor, shape: str, fewest: int) -> Tensor:
    """Without their graph; the first of several axes has at least ``fewest``."""
    if values.ndim != 1 + fewest or values.numel() == 0 or len(values) < fewest:
        raise ValueError(f"{name} must have shape {shape}, not empty, got {list(values.shape)}")
    if not values.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {values.dtype}")
    return values.detach()


def _triangle(matrix: Tensor) -> Tensor:
    """``R`` of the decomposition of a matrix into an orthonormal and a triangular one."""
    return torch.linalg.qr(matrix, mode="r").R


def _squared_singular_values(matrix: Tensor) -> Tensor:
    """By the smaller Gram matrix, in a fraction of the time that singular values take.

    In float64 this moves a singular value by no more than some 1e-8 of the largest, which is less
    than float32 embeddings are rounded by. All are NaN if any number is not finite.
    """
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    scale = torch.linalg.vector_norm(matrix, math.inf).cpu().double()
    if not scale.isfinite():
        return scale.new_full((matrix.shape[1],), math.nan)
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # squares neither overflow nor vanish
    gram = scale.new_zeros(matrix.shape[1], matrix.shape[1])
    for rows in matrix.split(_ROWS):
        part = rows.cpu().double().contiguous() / scale
        gram.addmm_(part.T, part)
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def _effective_rank(spectrum: Tensor) -> float:
    total = spectrum.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(spectrum / total).sum().exp())
