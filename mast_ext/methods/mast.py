"""MAST: one embedding, a mask for every subspace of it, and invariance inside every mask.

After Huang et al., "MAST: Masked Augmentation Subspace Training" (ICLR 2023); the
definition is ours (see `mast_ext.losses.MASTLoss`). Subspace 0, the joint one,
compares pairs whose views were drawn independently. With the policy ``shared`` subspace k compares
pairs that have the k-th entry of ``shared`` in common, and so learns to keep it; with ``sampled``
and ``factorized`` pairs that differ by the recipe's k-th augmentation alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mast_ext.augment import (
    AugmentationRecipe,
    FactorizedPolicy,
    SampledPolicy,
    SharedPolicy,
    ViewBatch,
    ViewPolicy,
)
from mast_ext.augment.policies import JOINT, AlignedPairs
from mast_ext.losses import MASTLoss, SubspaceMasks
from mast_ext.methods.method import GATHER, Encoded, Method, Subspaces, register
from mast_ext.methods.vicreg import VICRegOptions
from mast_ext.models import LogVarianceHead, Projector


@dataclass(frozen=True)
class MASTOptions:
    """Settings of MAST.

    Attributes:
        projector: Widths of the projector's layers; the last one is the embedding's dimension.
        policy: ``shared``: two independent views, which with probability ``share`` have one entry
            of ``shared`` in common.
            ``sampled``: an anchor and ``partners`` views, each drawn per image: a composed
            one with probability ``joint``, else one that differs by a single augmentation.
            ``factorized``: an anchor, one view per augmentation that differs by it alone, and one
            composed view if ``joint`` is above 0.
        shared: What views have in common (``shared``), each of which gets a subspace: ``crop``,
            ``flip``, ``geometry`` (both), ``brightness``, ``contrast``, ``saturation``, ``hue``,
            ``blur``.
        share: Probability that the views of an image have something in common (``shared``).
        aligned: Probability that two views are crops of one place, flipped alike (``shared``).
        aligned_pairs: Which may be: those with something of ``shared`` in common (``shared``), or
            those without (``joint``).
        aligned_from: The epoch from which any are (``shared``): what is shared has to be learned
            before. By default a third of the program's epochs.
        partners: How many views are compared with the anchor (``sampled``).
        joint: Probability of a composed pair (``sampled``); any number above 0 adds one
            (``factorized``).
        masks: ``blocks`` of dimensions, as many for each subspace; ``ones``, as without masks; or
            how masks are learned: ``balanced`` ones cannot collapse onto few dimensions, the
            others can.
        base: What keeps the embedding from collapsing: variance and covariance (``vicreg``), or
            the other images of the batch, told apart in every subspace (``nt_xent``).
        uncertainty: Learned variance that discounts ambiguous samples: none, one per subspace,
            or one per dimension (``vicreg``).
        invariance: Weight of the pair terms' mean over subspaces; by default 5 on ``vicreg`` (see
            `VICRegOptions`) and 1 on ``nt_xent``.
        variance: Weight of the hinge on every dimension's standard deviation (``vicreg``).
        covariance: Weight of the squared off-diagonal covariances (``vicreg``).
        temperature: Temperature of the cosine similarities (``nt_xent``).
        sparsity: Weight of the masks' mean (L1).
    """

    projector: tuple[int, ...] = (256, 256, 256)
    policy: Literal["shared", "sampled", "factorized"] = "shared"
    shared: tuple[str, ...] = ("hue",)
    share: float = 0.5
    aligned: float = 1.0
    aligned_pairs: AlignedPairs = "shared"
    aligned_from: int | None = None
    partners: int = 1
    joint: float = 0.5
    masks: Literal["blocks", "ones", "balanced", "softmax", "sigmoid", "relu"] = "blocks"
    base: Literal["vicreg", "nt_xent"] = "vicreg"
    uncertainty: Literal["none", "subspace", "diagonal"] = "none"
    invariance: float | None = None
    variance: float = 25.0
    covariance: float = 1.0
    temperature: float = 0.2
    sparsity: float = 0.0


@register
class MAST(Method):
    """Masked augmentation subspaces.

    Args:
        num_features: Width of the backbone's features.
        recipe: The augmentations; it must vary what is shared.
        options: See `MASTOptions`.

    Raises:
        ValueError: The recipe switches no augmentation on, or an option lies out of range.
    """

    name = "mast"
    Options: ClassVar[type[MASTOptions]] = MASTOptions

    def __init__(self, num_features: int, recipe: AugmentationRecipe, options: MASTOptions) -> None:
        super().__init__()
        if not recipe.augmentations:
            raise ValueError("mast needs a recipe with at least one augmentation switched on")
        self.options = options
        self.subspace_names = self.policy(recipe).subspaces
        self.projector = Projector(num_features, options.projector)
        dim = self.projector.dim
        invariance = options.invariance
        if invariance is None and options.base == "vicreg":
            invariance = VICRegOptions().invariance
        self.loss = MASTLoss(
            SubspaceMasks(len(self.subspace_names), dim, options.masks),
            base=options.base,
            invariance=invariance,
            variance=options.variance,
            covariance=options.covariance,
            sparsity=options.sparsity,
            uncertainty=options.uncertainty,
            temperature=options.temperature,
            gather_distributed=GATHER,
        )
        self.log_variance: LogVarianceHead | None = None
        if options.uncertainty != "none":
            outputs = dim if options.uncertainty == "diagonal" else len(self.subspace_names)
            self.log_variance = LogVarianceHead(num_features, outputs)

    @classmethod
    def complete(cls, options: MASTOptions, epochs: float) -> MASTOptions:
        if options.aligned_from is not None:
            return options
        return replace(options, aligned_from=round(epochs / 3))

    def policy(self, recipe: AugmentationRecipe) -> ViewPolicy:
        options = self.options
        if options.policy == "shared":
            return SharedPolicy(
                recipe,
                shared=options.shared,
                share=options.share,
                aligned=options.aligned,
                aligned_pairs=options.aligned_pairs,
                aligned_from=options.aligned_from or 0,
            )
        if options.policy == "factorized":
            return FactorizedPolicy(recipe, joint=options.joint > 0)
        return SampledPolicy(recipe, n=options.partners, joint=options.joint)

    def forward(self, encoded: Encoded, batch: ViewBatch) -> dict[str, Tensor]:
        features = encoded.features
        terms = self.loss(self.embed(features), batch.pair_subspace, self._log_var(features))
        logs = dict(terms.logs)
        for k, name in enumerate(self.subspace_names):
            logs[f"invariance/{name}"] = logs.pop(f"invariance/{k}")
        return {"loss": terms.loss, **logs}

    def pair_losses(self, encoded: Encoded) -> Tensor:
        # Views to choose from are drawn independently: their pairs belong to the joint subspace.
        features = encoded.features
        return self.loss.pair_losses(self.embed(features), self._log_var(features), subspace=JOINT)

    def _log_var(self, features: Tensor) -> Tensor | None:
        return None if self.log_variance is None else self.log_variance(features)

    @torch.no_grad()
    def subspaces(self) -> Subspaces:
        masks = self.loss.masks
        return Subspaces(
            self.subspace_names,
            masks().float().cpu(),
            masks.effective_dimensions().float().cpu(),
            masks.overlap().float().cpu(),
        )

    def uncertainty(self, features: Tensor) -> Tensor | None:
        log_var = self._log_var(features)
        if log_var is None or self.options.uncertainty == "subspace":
            return log_var
        weights = self.loss.masks().square()  # of every dimension in the subspace's pair terms
        return log_var @ (weights / weights.sum(1, keepdim=True)).mT.to(log_var)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("loss.")}
