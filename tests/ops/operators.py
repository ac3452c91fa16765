"""One table of calls: every operator in small, in every form that has kernels of its own.

What holds for all operators is tested on it, once; the files named after operators test what is
special to one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mast_ext import functional

# Arguments that have no gradient, and functions that have none.
CONSTANT = {
    *("teacher", "center", "weights", "index", "candidates", "group", "dimension_weights"),
    *("mean", "slices", "teacher_0", "teacher_1", "phi"),
}
# In the dtype of sums.
WIDE = {
    *("center", "mask_logits", "slices", "weight", "weights", "scale", "bias"),
    *(
        "lse",
        "positive",
        "group_weights",
        "sums",
        "counts",
        "first",
        "second",
        "third",
        "invariance",
        "phi",
    ),
}
WITHOUT_GRADIENT = {
    "prototype_column_logsumexp",
    "sinkhorn_knopp",
    "select_hard_pairs",
    "select_hard_cosine_pairs",
    "select_hard_crops",
}


class Recorder(TorchDispatchMode):
    """Keeps the calls of native ops: op, positional arguments, others."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mast_ext":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Call:
    """A call of a function of `mast_ext.functional`.

    Attributes:
        function: Takes tensors by name.
        form: What is special to the call.
        shapes: The tensors' shapes for `n` images and `d` dimensions of an embedding.
        options: The other arguments.
        many: `(n, d)` that are enough work for several threads, or for several tiles.
    """

    function: Callable[..., Any]
    form: str
    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
    options: dict[str, Any] = field(default_factory=dict)
    many: tuple[tuple[int, int], ...] = ((300, 70),)

    def __str__(self) -> str:
        return self.function.__name__ + f", {self.form}" * bool(self.form)

    @property
    def differentiable(self) -> bool:
        return self.function.__name__ not in WITHOUT_GRADIENT

    @property
    def leaves(self) -> list[str]:
        """Names of the tensors that get a gradient."""
        names = self.shapes(9, 40).keys()
        return [name for name in names if self.differentiable and name not in CONSTANT]

    def tensors(self, n=9, d=40, *, device="cpu", dtype=torch.float32) -> dict[str, Tensor]:
        """Random ones, the same every time. (Made on the CPU: no kernel but ours runs on a GPU.)"""
        generator = torch.Generator().manual_seed(0)
        shapes = self.shapes(n, d)
        made = {name: random(name, shape, dtype, generator) for name, shape in shapes.items()}
        return {name: tensor.to(device) for name, tensor in made.items()}

    def __call__(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        results = self.function(**tensors, **self.options)
        return results if isinstance(results, tuple) else (results,)

    def with_gradients(
        self,
        tensors: dict[str, Tensor],
        wanted: list[str] | None = None,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Results, and the gradients of all leaves, or of those `wanted`, by name.

        `between` is called after the forward.
        """
        wanted = self.leaves if wanted is None else wanted
        tensors = {
            name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()
        }
        torch.manual_seed(0)  # a search among some tuples draws them
        results = self(**tensors)
        between()
        outputs = [result for result in results if result.requires_grad]
        if not outputs:
            return results, {}
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(o.shape, generator=generator, dtype=o.dtype).to(o) for o in outputs]
        found = torch.autograd.grad(outputs, [tensors[name] for name in wanted], grads)
        return tuple(r.detach() for r in results), dict(zip(wanted, found, strict=True))


def random(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator) -> Tensor:
    """A tensor as the argument `name` has it."""
    sums = torch.promote_types(dtype, torch.float32)
    if name in ("index", "group"):
        return torch.randint(3, shape, generator=generator)
    if name == "candidates":
        return torch.ones(shape, dtype=torch.bool)
    if name == "mean":
        return (torch.rand(shape, generator=generator) * 0.4 + 0.05).to(sums)
    if name == "temperature":
        return torch.full(shape, 0.5, dtype=sums)
    if name == "counts":
        return (4 * torch.rand(shape, generator=generator)).to(sums)
    if name in ("masks", "dimension_weights", "group_weights"):
        return torch.rand(shape, generator=generator).to(sums)
    return torch.randn(shape, generator=generator).to(sums if name in WIDE else dtype)


TEMPERATURES = {"student_temperature": 0.5, "teacher_temperature": 0.25}


def of_lists(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of lists of views that is given them as `student_0`, `teacher_0`, `views_0`..."""

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        lists: dict[str, list[Tensor]] = {}
        for name in sorted(arguments):
            kind, _, number = name.partition("_")
            if kind in ("student", "teacher", "views") and number.isdigit():
                lists.setdefault(kind, []).append(arguments.pop(name))
        return function(**lists, **arguments)

    return call


def cosine_pairs(views: int) -> Call:
    return Call(
        functional.select_hard_cosine_pairs,
        f"{views} views",
        lambda n, d: {"x": (views, n, d), "y": (views, n, d)},
        many=((500, 64),),
    )


CALLS = [
    Call(functional.subspace_similarity, "", lambda n, d: {"x": (2, n, d)}),
    Call(
        functional.subspace_similarity,
        "masks",
        lambda n, d: {"x": (2, n, d), "y": (3, n, d), "masks": (3, d)},
    ),
    Call(
        functional.subspace_similarity,
        "distance",
        lambda n, d: {"x": (2, n, d), "y": (3, n, d), "masks": (3, d)},
        {"metric": "sqeuclidean"},
    ),
    Call(
        functional.subspace_nll,
        "",
        lambda n, d: {"x": (2, n, d), "log_var_x": (2, n, 1)},
    ),
    Call(
        functional.subspace_nll,
        "diagonal",
        lambda n, d: {
            **{"x": (2, n, d), "log_var_x": (2, n, d), "y": (3, n, d), "log_var_y": (3, n, d)},
            "masks": (3, d),
        },
        {"variance": "diagonal"},
    ),
    Call(
        functional.subspace_nll,
        "subspace",
        lambda n, d: {
            **{"x": (2, n, d), "log_var_x": (2, n, 3), "y": (3, n, d), "log_var_y": (3, n, 3)},
            "masks": (3, d),
        },
        {"variance": "subspace"},
    ),
    Call(  # from Gram matrices, where dimensions are many for the rows
        functional.variance_covariance,
        "Gram",
        lambda n, d: {"z": (2, n, 2 * d)},
        many=((40, 450),),
    ),
    Call(
        functional.variance_covariance,
        "Gram, masks",
        lambda n, d: {"z": (2, n, 4 * d), "masks": (2, 4 * d)},
        many=((40, 225),),
    ),
    Call(
        functional.variance_covariance,
        "direct",
        lambda n, d: {"z": (2, n + d, d)},
        many=((100, 500),),
    ),
    Call(
        functional.variance_covariance,
        "direct, masks",
        lambda n, d: {"z": (2, n + d, d), "masks": (3, d)},
    ),
    Call(
        functional.cross_correlation_penalty,
        "Gram",
        lambda n, d: {"a": (n, 2 * d), "b": (n, 2 * d)},
        {"lambda_": 0.1},
        many=((40, 450),),
    ),
    Call(
        functional.cross_correlation_penalty,
        "direct",
        lambda n, d: {"a": (n + d, d), "b": (n + d, d)},
        {"lambda_": 0.1},
        many=((300, 70), (700, 600)),
    ),
    Call(
        functional.cross_correlation_penalty,
        "paper",
        lambda n, d: {"a": (n, d), "b": (n, d)},
        {"lambda_": 0.1, "variant": "paper"},
    ),
    Call(
        functional.grouped_squared_difference,
        "",
        lambda n, d: {"x": (n, d), "y": (n, d), "group": (n,)},
        {"groups": 3},
    ),
    Call(
        functional.grouped_squared_difference_with_residual,
        "weight",
        lambda n, d: {
            **{"x": (n, d), "y": (n, d), "group": (n,), "weight": (n,)},
            "dimension_weights": (3, d),
        },
        many=((300, 70), (1100, 8)),
    ),
    Call(  # of n tokens, in no image where n is 0: an image has at least one
        functional.gram_difference,
        "Gram",
        lambda n, d: dict.fromkeys("st", (min(n, 2), max(n, 1), d)),
        many=((100, 300), (600, 310)),
    ),
    Call(
        functional.gram_difference,
        "moments",
        lambda n, d: dict.fromkeys("st", (min(n, 2), n + 2 * d, d)),
        many=((300, 70), (1200, 300)),
    ),
    Call(
        functional.gram_difference,
        "remove both",
        lambda n, d: dict.fromkeys("st", (min(n, 2), max(n, 1), d)),
        {"remove_negative": "both"},
        many=((600, 70),),
    ),
    Call(
        functional.gram_difference,
        "remove the teacher's",
        lambda n, d: dict.fromkeys("st", (min(n, 2), max(n, 1), d)),
        {"remove_negative": "teacher"},
        many=((600, 70),),
    ),
    Call(
        functional.sliced_characteristic_sums,
        "",
        lambda n, d: {"z": (2, n, d), "slices": (d, 2 * d)},
    ),
    Call(  # more knots than follow from one cosine and sine
        functional.sliced_characteristic_sums,
        "knots",
        lambda n, d: {"z": (2, n, d), "slices": (d, 8 * d)},
        {"knots": 20, "t_min": 0.1},
        many=((600, 70),),
    ),
    Call(
        functional.epps_pulley_distance,
        "",
        lambda n, d: {"sums": (n, 3, 2, d), "phi": (3,), "weights": (3,)},
        {"images": 7.0},
        many=((600, 70),),
    ),
    Call(
        functional.contrastive_logsumexp,
        "",
        lambda n, d: {"x": (2, 8 * n, d), "temperature": ()},
        many=((20, 40),),
    ),
    Call(
        functional.contrastive_logsumexp,
        "masks",
        lambda n, d: {"x": (2, 8 * n, d), "masks": (3, d)},
        {"temperature": 0.05},
        many=((20, 40),),
    ),
    Call(  # few rows against columns that are split among blocks
        functional.contrastive_logsumexp,
        "columns",
        lambda n, d: {"x": (1, n, d), "y": (1, 60 * n, d), "masks": (2, d), "temperature": ()},
        {"offset": None},
        many=((20, 40),),
    ),
    Call(  # of at least one image
        of_lists(functional.contrastive_loss),
        "lists",
        lambda n, d: {"views_0": (max(n, 1), d), "views_1": (max(n, 1), d)},
        {"temperature": 0.5},
    ),
    Call(
        of_lists(functional.contrastive_loss),
        "decoupled, lists",
        lambda n, d: {**{f"views_{i}": (max(n, 2), d) for i in range(3)}, "temperature": ()},
        {"decoupled": True},
        many=((600, 40),),
    ),
    Call(
        functional.contrastive_loss,
        "across",
        lambda n, d: {"views": (2, max(n, 1), d)},
        {"temperature": 0.02, "within_views": False},
    ),
    Call(
        functional.contrastive_loss,
        "one-sided",
        lambda n, d: {"views": (2, max(n, 1), d)},
        {"temperature": 0.2, "within_views": False, "one_sided": True},
    ),
    Call(
        functional.view_pair_cross_entropy,
        "",
        lambda n, d: dict.fromkeys(("lse", "positive"), (2, 3, 3, n * d)),
    ),
    Call(
        functional.view_pair_cross_entropy,
        "decoupled",
        lambda n, d: dict.fromkeys(("lse", "positive"), (3, 3, n * d)),
        {"decoupled": True},
    ),
    Call(  # of at least one image
        functional.view_pair_cross_entropy,
        "mean",
        lambda n, d: dict.fromkeys(("lse", "positive"), (2, 3, 3, max(n, 1) * d)),
        {"reduction": "mean"},
    ),
    Call(
        functional.sigmoid_contrast,
        "",
        lambda n, d: {"x": (8 * n, d), "y": (9 * n, d), "scale": (), "bias": ()},
        many=((40, 40),),
    ),
    Call(  # few rows against columns that are split among blocks
        functional.sigmoid_contrast,
        "columns",
        lambda n, d: {"x": (n, d), "y": (60 * n, d)},
        {"scale": 10.0, "bias": -10.0, "offset": None},
        many=((20, 40),),
    ),
    Call(  # losses and gradients in one sweep
        functional.sigmoid_contrast,
        "weights",
        lambda n, d: {
            "x": (8 * n, d),
            "y": (8 * n, d),
            "scale": (),
            "bias": (),
            "weights": (8 * n,),
        },
        many=((40, 40),),
    ),
    Call(
        functional.prototype_cross_entropy_with_mean,
        "",
        lambda n, d: {"student": (3, n, 8 * d), "teacher": (2, n, 8 * d), "center": (8 * d,)},
        TEMPERATURES,
        many=((70, 12), (5, 1125)),
    ),
    Call(  # more teachers than registers are kept for
        functional.prototype_cross_entropy,
        "teachers",
        lambda n, d: {"student": (6, n, 8 * d), "teacher": (5, n, 8 * d)},
        TEMPERATURES,
        many=((1, 3750),),
    ),
    Call(  # in one pass over the logits, of 16 images and more
        functional.prototype_cross_entropy_with_mean,
        "weights",
        lambda n, d: {
            **{"student": (3, 2 * n, d), "teacher": (2, 2 * n, d), "center": (d,)},
            "weights": (2, 3, 2 * n),
        },
        TEMPERATURES,
        many=((35, 3000),),
    ),
    Call(
        of_lists(functional.prototype_cross_entropy_with_mean),
        "lists",
        lambda n, d: {
            **{f"student_{i}": (n, 8 * d) for i in range(3)},
            **{"teacher_0": (n, 8 * d), "teacher_1": (n, 8 * d), "center": (8 * d,)},
        },
        TEMPERATURES,
        many=((70, 12),),
    ),
    Call(
        of_lists(functional.prototype_cross_entropy),
        "weights of lists",
        lambda n, d: {
            **{f"student_{i}": (2 * n, d) for i in range(3)},
            **{"teacher_0": (2 * n, d), "teacher_1": (2 * n, d), "weights": (2, 3, 2 * n)},
        },
        TEMPERATURES,
        many=((35, 3000),),
    ),
    Call(
        functional.prototype_column_logsumexp,
        "",
        lambda n, d: {"logits": (8 * n, 8 * d), "center": (8 * d,)},
        {"temperature": 0.5},
        many=((38, 88), (5, 625)),
    ),
    Call(
        functional.sinkhorn_knopp,
        "",
        lambda n, d: {"logits": (2, 4 * n, 8 * d)},
        {"temperature": 0.5},
        many=((38, 88), (5, 625)),
    ),
    Call(
        functional.grouped_means,
        "",
        lambda n, d: {"group_weights": (n, d), "sums": (n, d), "counts": (n,)},
        many=((64, 600),),
    ),
    Call(
        functional.vicreg_terms,
        "direct",
        lambda n, d: {"x": (max(n, d), d), "y": (max(n, d), d)},
        {"scales": (0.01, 0.5, 1.0), "weights": (2.0, 25.0, 1.0)},
        many=((600, 80),),
    ),
    Call(
        functional.vicreg_terms,
        "Gram",
        lambda n, d: {"x": (n, max(d, 2 * n)), "y": (n, max(d, 2 * n)), "invariance": (d,)},
        {"scales": (0.1, 1.0, 1.0), "weights": (25.0, 25.0, 1.0)},
        many=((64, 2100),),
    ),
    Call(
        functional.vicreg_terms,
        "groups",
        lambda n, d: {
            **{"x": (max(n, d), d), "y": (max(n, d), d)},
            **{"group": (max(n, d),), "group_weights": (3, d)},
        },
        {"scales": (0.1, 1.0, 1.0), "weights": (25.0, 25.0, 1.0)},
        many=((600, 80),),
    ),
    Call(
        functional.vicreg_terms,
        "Gram, groups",
        lambda n, d: {
            **{"x": (n, max(d, 2 * n)), "y": (n, max(d, 2 * n))},
            **{"group": (n,), "group_weights": (3, max(d, 2 * n))},
        },
        {"scales": (0.1, 1.0, 1.0), "weights": (25.0, 25.0, 1.0)},
        many=((64, 2100),),
    ),
    Call(
        functional.weighted_terms,
        "",
        lambda n, d: {"first": (n, d), "second": (2, d), "third": (1,)},
        {"scales": (0.5, -2.0, 1.0), "weights": (1.5, 0.25, 1.0)},
    ),
    Call(
        functional.weighted_terms,
        "one",
        lambda n, d: {"first": (d,)},
        {"scales": (0.1,), "weights": (3.0,)},
    ),
    Call(
        functional.budgeted_masks,
        "",
        lambda n, d: {"mask_logits": (3, d), "mean": (3,)},
        {"sharpness": 2.0},
        many=((1, 4000),),
    ),
    Call(
        functional.nearest_neighbor_distance,
        "",
        lambda n, d: {"x": (n, d)},
    ),
    Call(
        functional.nearest_neighbor_distance,
        "tiles",
        lambda n, d: {"x": (16 * n, d)},
        many=((44, 48),),
    ),
    Call(
        functional.select_hard_pairs,
        "",
        lambda n, d: {"pair_losses": (3, 3, n * d)},
        many=((300, 70),),
    ),
    Call(
        functional.select_hard_pairs,
        "candidates",
        lambda n, d: {"pair_losses": (4, 4, n * d), "candidates": (4, 4)},
        many=((300, 70),),
    ),
    *(cosine_pairs(views) for views in (2, 3, 4, 5)),  # up to four views have a kernel each
    Call(
        functional.select_hard_cosine_pairs,
        "themselves",
        lambda n, d: {"x": (4, n, d), "candidates": (4, 4)},
        many=((500, 64),),
    ),
    Call(
        functional.select_hard_crops,
        "",
        lambda n, d: {"ce": (3, 9, n * d)},
        {"num_locals": 3},
    ),
    Call(
        functional.select_hard_crops,
        "limit",
        lambda n, d: {"ce": (3, 9, n * d)},
        {"num_locals": 3, "limit": 5},
    ),
    Call(  # rows in whole packets of 16 bytes
        functional.gather_views,
        "",
        lambda n, d: {"views": (3, n, d), "index": (2, n)},
    ),
    Call(
        functional.gather_views,
        "odd rows",
        lambda n, d: {"views": (3, n, d + 1), "index": (2, n)},
    ),
    Call(
        functional.gather_views,
        "numbers",
        lambda n, d: {"views": (3, n), "index": (2, n)},
    ),
]
