"""InfoNCE (van den Oord et al. 2018, eq. 4): queries find their keys; CLIP's loss is two-sided."""

import math

import torch
from torch import Tensor, nn

from mast_ext import functional
from mast_ext.checks import explains_types, require_one_device
from mast_ext.distributed import (
    all_gather,
    rank,
    require_distributed,
    require_equal_batches,
    world_size,
)
from mast_ext.losses.common.contrast import contrast_views, positive_cross_entropy
from mast_ext.losses.common.inputs import (
    Reduction,
    in_one_dtype,
    reduce,
    require_alike,
    require_images,
    require_option,
    require_temperature,
    require_tensors,
    require_views,
)
from mast_ext.losses.common.view_pairs import both_ways

LOWEST_LEARNED = 0.01
FASTEST = 0.03  # the lowest temperature that `functional.contrastive_logsumexp` is fastest with


class InfoNCELoss(nn.Module):
    """Cross-entropy of finding every query's key among the keys::

        in the batch       mean_b  log Σ_c exp(s(q_b, k_c)) − s(q_b, k_b)
        with ``negatives`` mean_b  log [ exp(s(q_b, k_b)) + Σ_r exp(s(q_b, r)) ] − s(q_b, k_b)

    with ``s`` the cosine over the temperature. ``two_sided`` takes the mean of this and of keys
    finding their queries, in one sweep (CLIP: Radford et al. 2021, figure 3). The second form is
    MoCo's, with its queue as ``negatives``. A query without negatives, such as one that is alone in
    its batch, has loss 0. No large ``N × N`` matrix is stored.

    Args:
        temperature: Divides the cosines; above 0.
        two_sided: Whether keys look for their queries, too. Not with ``negatives``.
        learn_temperature: Makes ``log_temperature``, which starts at that of ``temperature``, a
            parameter. As in CLIP the temperature never falls below 0.01: `forward` sets the
            parameter back to it.
        gather_distributed: The keys (two-sided: and queries) in the batch are those of all
            processes, whose batches must be of equal size. ``negatives`` are not gathered: every
            process has its own, or all the same queue.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per query.

    Raises:
        ValueError: ``temperature`` is not positive (to be learned: below 0.01), ``reduction`` is
            unknown, or ``gather_distributed`` without torch.distributed.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        two_sided: bool = False,
        learn_temperature: bool = False,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        number = require_temperature(temperature)
        if learn_temperature and isinstance(number, Tensor):
            number = number.item()  # where the parameter starts, which is one of the loss
        self._temperature = number
        if learn_temperature and number < LOWEST_LEARNED:
            raise ValueError(
                f"a learned temperature must start at {LOWEST_LEARNED} or above, got {number}"
            )
        self.log_temperature: nn.Parameter | None = None
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(number)))
        self.two_sided = two_sided
        self.gather_distributed = require_distributed(gather_distributed)
        self.reduction: Reduction = require_option("reduction", reduction, Reduction)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature: a number, or of a learned one a scalar tensor with gradient."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    @explains_types
    def forward(self, queries: Tensor, keys: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            queries: Embeddings ``[N, D]``: float32, float16, bfloat16 or (CPU) float64.
            keys: The key of every query, like ``queries``. Gradient flows here, too: detach the
                keys of a momentum encoder.
            negatives: ``[M, D]``, what a query tells its key from; by default the other queries'
                keys. Those in float32 beside 16-bit queries are not rounded.

        Returns:
            A scalar, or ``[N]`` with ``reduction="none"``; float32 (float64 for float64 inputs).

        Raises:
            ValueError: A shape or device does not fit, there is no query to take the mean over,
                ``negatives`` are given to a two-sided loss, or the processes' batches differ in
                size.
            TypeError: A dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_alike(queries=queries, keys=keys)
        queries, keys = in_one_dtype(queries, keys)
        if negatives is not None:
            require_one_device(queries=queries, negatives=negatives)
            terms = self._against(negatives, queries[None], keys[None])[0, 0]
        elif self.reduction == "mean" and not self._many() and self._in_one(queries, keys):
            require_images(queries.shape[0], "queries")
            return functional.contrastive_loss(
                (queries, keys),
                temperature=self._temperature_for(queries),
                within_views=False,
                one_sided=not self.two_sided,
            )
        elif self.two_sided or (self._many() and keys.requires_grad and torch.is_grad_enabled()):
            # Over many processes the one-sided loss, too: this way no gradient of the keys is sent.
            lse, positive = contrast_views(
                torch.stack((queries, keys)),
                temperature=self._temperature_for(queries),
                gather=self.gather_distributed,
                within_views=False,
            )
            if self.two_sided and self.reduction == "mean":
                require_images(lse.shape[-1], "queries")
                return functional.view_pair_cross_entropy(lse, positive, reduction="mean").squeeze()
            if self.two_sided:
                terms = functional.view_pair_cross_entropy(lse, positive)[0, 0, 1]
            else:
                terms = positive_cross_entropy(lse[0, 0, 1], positive[0, 0, 1])
        else:
            columns = keys
            if self._many():
                require_equal_batches(keys, 0)
                columns = all_gather(keys)
            lse, positive = functional.contrastive_logsumexp(
                queries[None],
                columns[None],
                temperature=self._temperature_for(queries),
                offset=rank() * len(keys) if self._many() else 0,
                exclude_positive=True,
            )
            terms = positive_cross_entropy(lse.flatten(), positive.flatten())
        return reduce(terms, self.reduction, "queries")

    @explains_types
    def pair_losses(self, views: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of every view as queries with every view as keys, per image.

        Args:
            views: Embeddings ``[V, B, D]``.
            negatives: As in `forward`.

        Returns:
            ``[V, V, B]`` of ``[queries, keys, image]``, float32 (float64 for float64 inputs):
            ``pair_losses(views)[i, j].mean() == forward(views[i], views[j])``.

        Raises:
            ValueError: As in `forward`.
            TypeError: The dtype is not supported.
            RuntimeError: Another process died or is late.
        """
        require_views(views)
        if negatives is not None:
            require_one_device(views=views, negatives=negatives)
            return self._against(negatives, views, views)
        lse, positive = contrast_views(
            views,
            temperature=self._temperature_for(views),
            gather=self.gather_distributed,
        )
        terms = positive_cross_entropy(lse[0], positive[0])
        return both_ways(terms) if self.two_sided else terms

    def _against(self, negatives: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Of ``queries [V, N, D]`` and ``keys [W, N, D]`` with given negatives: ``[V, W, N]``."""
        if self.two_sided:
            raise ValueError("negatives cannot be given with two_sided=True")
        require_tensors(negatives=negatives)
        if negatives.ndim != 2 or negatives.shape[1] != queries.shape[2]:
            raise ValueError(
                f"negatives must have shape [M, {queries.shape[2]}], got {list(negatives.shape)}"
            )
        dtype = torch.promote_types(queries.dtype, negatives.dtype)
        wide, negatives = queries.to(dtype), negatives.to(dtype)
        temperature = self._temperature_for(wide)
        positive = functional.subspace_similarity(queries, keys)[0] / temperature
        lse, _ = functional.contrastive_logsumexp(
            wide, negatives[None], temperature=temperature, offset=None
        )
        return positive_cross_entropy(lse[0], positive)

    def _in_one(self, queries: Tensor, keys: Tensor) -> bool:
        """Whether `functional.contrastive_loss` makes nothing that nobody needs.

        It makes both gradients, and where it has to look for the largest similarity of a row, the
        sums over queries as well.
        """
        if self.two_sided:
            return True
        temperature = self._temperature if self.log_temperature is None else None
        fixed = isinstance(temperature, (float, int)) and temperature >= FASTEST
        return fixed and (keys.requires_grad or not queries.requires_grad)

    def _many(self) -> bool:
        return self.gather_distributed and world_size() > 1

    def _temperature_for(self, embeddings: Tensor) -> float | Tensor:
        """The temperature in the dtype that the operators take beside ``embeddings``."""
        if self.log_temperature is None:
            return self._temperature
        with torch.no_grad():
            # Through .data: autograd must not see a change, since a graph may have saved it.
            self.log_temperature.data.clamp_(min=math.log(LOWEST_LEARNED))
        return self.log_temperature.to(torch.promote_types(embeddings.dtype, torch.float32)).exp()

    def extra_repr(self) -> str:
        learned = ", learn_temperature=True" if self.log_temperature is not None else ""
        return f"temperature={self._temperature}, two_sided={self.two_sided}{learned}"
