"""Every operator, forward and backward, in small and in all its kernels: what sanitizers run.

That results are right is for the other files. Here they have to be finite, of inputs that are.
"""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mast_ext import functional

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of embeddings: a tile that is filled in part, one, several, and more than fit the fused backward.
DIMS = [40, 64, 128, 192, 320]


class Inputs:
    """Random tensors, made on the CPU: on a GPU nothing but the operators runs a kernel then.

    Attributes:
        dim: Of embeddings.
        leaves: The tensors so far that take a gradient.
    """

    def __init__(self, device, dtype, dim, masked):
        self.device, self.dtype, self.dim, self.masked = device, dtype, dim, masked
        self.generator = torch.Generator().manual_seed(0)
        self.leaves = []

    def random(self, *shape, dtype=None):
        values = torch.randn(shape, generator=self.generator)
        return values.to(dtype or self.dtype).to(self.device)

    def leaf(self, *shape):
        self.leaves.append(self.random(*shape).requires_grad_())
        return self.leaves[-1]

    def masks(self):
        if not self.masked:
            return None
        masks = torch.rand(3, self.dim, generator=self.generator).to(self.device)
        self.leaves.append(masks.requires_grad_())
        return masks


def subspace_similarity(new):
    x, y, masks = new.leaf(2, 9, new.dim), new.leaf(3, 9, new.dim), new.masks()
    return (
        functional.subspace_similarity(x, masks=masks),
        functional.subspace_similarity(x, y, masks),
        functional.subspace_similarity(x, y, masks, metric="sqeuclidean"),
    )


def subspace_nll(new):
    x, y, masks = new.leaf(2, 9, new.dim), new.leaf(3, 9, new.dim), new.masks()
    wide = new.leaf(2, 9, new.dim), new.leaf(3, 9, new.dim)
    narrow = [new.leaf(views, 9, 3 if new.masked else 1) for views in (2, 3)]
    return (
        functional.subspace_nll(x, wide[0], masks=masks, variance="diagonal"),
        functional.subspace_nll(x, wide[0], y, wide[1], masks, variance="diagonal"),
        functional.subspace_nll(x, narrow[0], y, narrow[1], masks, variance="subspace"),
    )


def variance_covariance(new):
    """Gram matrices where dims are many for the rows, covariances otherwise."""
    masks = new.masks()
    few, many = new.leaf(2, 5, new.dim), new.leaf(2, new.dim, new.dim)
    return *functional.variance_covariance(few, masks), *functional.variance_covariance(many, masks)


def cross_correlation_penalty(new):
    return [
        functional.cross_correlation_penalty(
            new.leaf(rows, new.dim), new.leaf(rows, new.dim), lambda_=0.1, variant=variant
        )
        for rows, variant in ((5, "official"), (new.dim, "official"), (7, "paper"))
    ]


def contrastive_logsumexp(new):
    """One batch with itself; and few rows against columns that are split among blocks."""
    x, masks, temperature = new.leaf(2, 70, new.dim), new.masks(), torch.tensor(0.5).to(new.device)
    rows, columns = new.leaf(1, 3, new.dim), new.leaf(1, 520, new.dim)
    new.leaves.append(temperature.requires_grad_())
    return (
        *functional.contrastive_logsumexp(x, masks=masks, temperature=temperature),
        *functional.contrastive_logsumexp(rows, columns, masks, temperature=0.5, offset=2),
    )


def prototype_cross_entropy(new):
    """Few teachers, and more than registers are kept for; more prototypes than a block takes."""
    center = new.random(8 * new.dim, dtype=torch.float32)
    return [
        functional.prototype_cross_entropy_with_mean(
            new.leaf(teachers + 1, 3, 8 * new.dim),
            new.random(teachers, 3, 8 * new.dim),
            student_temperature=0.5,
            teacher_temperature=0.25,
            center=center,
        )[0]
        for teachers in (2, 5)
    ]


def weighted_prototype_cross_entropy(new):
    ce = functional.prototype_cross_entropy(
        new.leaf(3, 17, new.dim),
        new.random(2, 17, new.dim),
        student_temperature=0.5,
        teacher_temperature=0.25,
        weights=new.random(2, 3, 17, dtype=torch.float32),
    )
    return [ce]


def prototype_column_logsumexp(new):
    logits, center = new.random(70, 8 * new.dim), new.random(8 * new.dim, dtype=torch.float32)
    return (
        functional.prototype_column_logsumexp(logits, temperature=0.5),
        functional.prototype_column_logsumexp(logits, temperature=0.5, center=center),
        functional.sinkhorn_knopp(logits, temperature=0.5),
    )


def nearest_neighbor_distance(new):
    return [functional.nearest_neighbor_distance(new.leaf(rows, new.dim))[0] for rows in (3, 150)]


def select_hard_pairs(new):
    candidates = torch.ones(4, 4, dtype=torch.bool).to(new.device)
    return (
        *functional.select_hard_pairs(new.random(3, 3, new.dim)),
        *functional.select_hard_pairs(new.random(4, 4, new.dim), candidates=candidates),
    )


def select_hard_cosine_pairs(new):
    """Up to four views have a kernel each."""
    chosen = []
    for views in (2, 3, 4, 5):
        x, y = new.random(views, 5, new.dim), new.random(views, 5, new.dim)
        chosen += functional.select_hard_cosine_pairs(x, y)
    return *chosen, *functional.select_hard_cosine_pairs(x)


def select_hard_crops(new):
    ce = new.random(3, 9, new.dim)
    return (
        *functional.select_hard_crops(ce, num_locals=3),
        *functional.select_hard_crops(ce, num_locals=3, limit=5),
    )


def gather_views(new):
    """Rows in whole packets, and rows that are not."""
    index = torch.randint(3, (2, 5), generator=new.generator).to(new.device)
    return [
        functional.gather_views(new.leaf(3, 5, length), index)
        for length in (new.dim, new.dim + 1, 1)
    ]


OPERATORS = [
    subspace_similarity,
    subspace_nll,
    variance_covariance,
    cross_correlation_penalty,
    contrastive_logsumexp,
    prototype_cross_entropy,
    weighted_prototype_cross_entropy,
    prototype_column_logsumexp,
    nearest_neighbor_distance,
    select_hard_pairs,
    select_hard_cosine_pairs,
    select_hard_crops,
    gather_views,
]
WITH_MASKS = [subspace_similarity, subspace_nll, variance_covariance, contrastive_logsumexp]
CASES = [(op, False) for op in OPERATORS] + [(op, True) for op in WITH_MASKS]


def run(op, new):
    """Results and gradients of all leaves, on the CPU."""
    results = op(new)
    outputs = [result for result in results if result.requires_grad]
    grads = [new.random(*output.shape, dtype=output.dtype) for output in outputs]
    gradients = torch.autograd.grad(outputs, new.leaves, grads) if outputs else ()
    return [tensor.detach().cpu() for tensor in (*results, *gradients)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "masked"), CASES, ids=[op.__name__ + ", masks" * masked for op, masked in CASES]
)
def test_is_finite(op, masked, dtype, dim, device):
    for tensor in run(op, Inputs(device, dtype, dim, masked)):
        assert tensor.isfinite().all()


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func.name())
        return func(*args, **(kwargs or {}))


def test_all_are_here():
    with Recorder() as recorder:
        for op in OPERATORS:
            run(op, Inputs("cpu", torch.float32, DIMS[0], False))
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "mast_ext::" in name}
    assert registered and registered <= recorder.called
    folders = {path.name for path in KERNELS.iterdir()} - {"common"}
    assert {f"mast_ext::{name}" for name in folders} <= registered
