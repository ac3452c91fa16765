"""Masked Siamese networks, drop-ins for lightly's classes.

MSN: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022. PMSN: Assran
et al., "The Hidden Uniform Cluster Prior in Self-Supervised Learning", ICLR 2023.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext import functional
from mast_ext.checks import explains_types, require_integer, require_number, require_positive
from mast_ext.distributed import all_reduce, require_distributed, sum_over_processes, world_size
from mast_ext.losses.common.assignments import sinkhorn_centers
from mast_ext.losses.common.inputs import (
    in_one_dtype,
    require_images,
    require_tensors,
)
from mast_ext.losses.common.linear_algebra import product, widen


class MSNLoss(nn.Module):
    r"""Predicts from masked views which prototypes an image is assigned to, and uses all of them::

        p_n  = softmax_k(cos(anchor_n, prototype_k) / temperature)
        q_b  ∝ p(target_b)^(1 / target_sharpen_temperature),    then Sinkhorn-Knopp over the batch
        loss = mean over anchors n, of image b, of −Σ_k q_bk · log p_nk
                 + regularization_weight · (log K + Σ_k m_k log m_k)            m = mean_n p_n

    (Assran et al. 2022, eq. 1, and its Sinkhorn targets.) The last term is the Kullback-Leibler
    divergence of the mean prediction from even use. The targets get no gradient. The cross entropy
    keeps the cosines alone of its ``anchors × K`` matrices; the last term, the predictions, too.

    Values equal those of lightly 1.6.0 to float32 accuracy, with these differences: the loss of
    16-bit inputs is float32, a prediction that underflows costs a finite number (theirs infinity),
    and with ``gather_distributed`` the mean prediction ``m`` is that of all processes, as in one
    process (theirs is each process's own).

    Args:
        temperature: Divides the cosines; above 0.
        sinkhorn_iterations: Iterations on the targets; 0 leaves them as they are.
        regularization_weight: Weight of the term on the mean prediction, which counts if above 0.
        gather_distributed: Shares the prototypes out over the targets of all processes, and takes
            the mean prediction over all processes' anchors, whose numbers may differ.

    Raises:
        ValueError: ``temperature`` is not positive, ``sinkhorn_iterations`` negative, or
            ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = require_positive("temperature", temperature)
        self.sinkhorn_iterations = require_integer("sinkhorn_iterations", sinkhorn_iterations, 0)
        self.regularization_weight = require_number("regularization_weight", regularization_weight)
        self.gather_distributed = require_distributed(gather_distributed)

    @explains_types
    def forward(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        target_sharpen_temperature: float = 0.25,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            anchors: Embeddings ``[V·B, D]`` of ``V`` masked views, one view after the other:
                float32, float16, bfloat16 or (CPU) float64.
            targets: Embeddings ``[B, D]`` of the images; get no gradient.
            prototypes: ``[K, D]``, at least one.
            target_sharpen_temperature: Below 1 makes the targets' probabilities less even.

        Returns:
            A scalar, float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape does not fit, there is no image to take the mean over, or
                ``target_sharpen_temperature`` is not positive.
            TypeError: The inputs are not of floating point.
            RuntimeError: Another process died or is late.
        """
        require_positive("target_sharpen_temperature", target_sharpen_temperature)
        embeddings = {"anchors": anchors, "targets": targets, "prototypes": prototypes}
        for name, x in embeddings.items():
            if x.ndim != 2 or x.shape[1:] != anchors.shape[1:]:
                raise ValueError(
                    f"{name} must have shape [N, D] with the D of anchors, got {list(x.shape)}"
                )
        if not len(prototypes):
            raise ValueError(
                f"prototypes must have shape [K, D] with K >= 1, got {list(prototypes.shape)}"
            )
        require_tensors(**embeddings)
        anchors, targets, prototypes = in_one_dtype(anchors, targets, prototypes)
        images = len(targets)
        if (len(anchors) % images if images else len(anchors)) or len(anchors) < images:
            raise ValueError(
                f"anchors must hold a whole number of views of {images} images, "
                f"got {len(anchors)} rows"
            )
        unit = F.normalize(widen(prototypes), dim=1)
        cosines = product(F.normalize(widen(anchors), dim=1), unit.mT)
        with torch.no_grad():
            of_targets = product(F.normalize(widen(targets), dim=1), unit.mT)
        cross_entropy = self._cross_entropy(cosines, of_targets, target_sharpen_temperature)
        if not self.regularization_weight > 0:
            require_images(images, "targets")
            return cross_entropy
        mean = self._mean_probabilities(cosines)
        require_images(images, "targets")
        return cross_entropy + self.regularization_weight * self.regularization_loss(mean)

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        """The divergence of the mean prediction ``[K]``, all above 0, from its prior: a scalar."""
        entropy = torch.special.entr(mean_anchor_probs).sum()
        return math.log(len(mean_anchor_probs)) - entropy

    def _cross_entropy(self, cosines: Tensor, of_targets: Tensor, sharpen: float) -> Tensor:
        """The mean over anchors: of cosines ``[V·B, K]`` and the targets' ``[B, K]``."""
        temperature = self.temperature * sharpen
        centers = sinkhorn_centers(
            of_targets[None],
            temperature=temperature,
            iterations=self.sinkhorn_iterations,
            gather=self.gather_distributed,
            rows_first=True,
        )
        rows, prototypes = cosines.shape
        images = max(len(of_targets), 1)
        return functional.prototype_cross_entropy(
            cosines.view(max(rows // images, 1), -1, prototypes),
            of_targets[None],
            student_temperature=self.temperature,
            teacher_temperature=temperature,
            center=centers[0],
            weights=cosines.new_full((1,), 1 / max(rows, 1)),
        )

    def _mean_probabilities(self, cosines: Tensor) -> Tensor:
        """The mean over anchors, of all processes: ``[K]``, above 0, as its logarithm is taken."""
        total = (cosines / self.temperature).softmax(1).sum(0)
        rows: float | Tensor = max(len(cosines), 1)
        if self.gather_distributed and world_size() > 1:
            rows = all_reduce(total.new_tensor(len(cosines))).clamp_min(1)
            total = sum_over_processes(total)
        return (total / rows).clamp_min(torch.finfo(total.dtype).tiny)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"regularization_weight={self.regularization_weight}"
        )


class PMSNLoss(MSNLoss):
    r"""`MSNLoss` whose mean prediction is drawn to a power law in place of even use::

        regularization = KL(t ‖ m) = Σ_k t_k (log t_k − log m_k)      t_k ∝ k^(−power_law_exponent)

    with ``k`` from 1 to ``K`` (Assran et al. 2023). Differences to lightly 1.6.0 are
    those of `MSNLoss`.

    Args:
        temperature: See `MSNLoss`.
        sinkhorn_iterations: See `MSNLoss`.
        regularization_weight: See `MSNLoss`.
        power_law_exponent: 0 is even use.
        gather_distributed: See `MSNLoss`.

    Raises:
        ValueError: As `MSNLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1,
        power_law_exponent: float = 0.25,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(
            temperature, sinkhorn_iterations, regularization_weight, gather_distributed
        )
        self.power_law_exponent = require_number("power_law_exponent", power_law_exponent)

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        rank = torch.arange(
            1,
            len(mean_anchor_probs) + 1,
            dtype=mean_anchor_probs.dtype,
            device=mean_anchor_probs.device,
        )
        prior = (-self.power_law_exponent * rank.log()).softmax(0)
        return _divergence(prior, mean_anchor_probs)


class PMSNCustomLoss(MSNLoss):
    r"""`MSNLoss` whose mean prediction is drawn to any prior: ``regularization = KL(t ‖ m)``.

    (Assran et al. 2023.) Differences to lightly 1.6.0 are those of `MSNLoss`.

    Args:
        target_distribution: Gives the prior ``t [K]``, which adds up to 1, from the mean prediction
            ``m [K]``.
        temperature: See `MSNLoss`.
        sinkhorn_iterations: See `MSNLoss`.
        regularization_weight: See `MSNLoss`.
        gather_distributed: See `MSNLoss`.

    Raises:
        ValueError: As `MSNLoss`.
    """

    def __init__(
        self,
        target_distribution: Callable[[Tensor], Tensor],
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(
            temperature, sinkhorn_iterations, regularization_weight, gather_distributed
        )
        self.target_distribution = target_distribution

    def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
        prior = self.target_distribution(mean_anchor_probs).to(mean_anchor_probs.device)
        return _divergence(prior, mean_anchor_probs)


def _divergence(prior: Tensor, probabilities: Tensor) -> Tensor:
    return F.kl_div(probabilities.log(), prior, reduction="sum")
