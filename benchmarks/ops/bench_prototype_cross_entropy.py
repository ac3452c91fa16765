"""DINOLoss of lists of views and IBOTPatchLoss of tokens, against lightly's and plain torch.

As users call them: each view is a tensor of its own, and each call moves the center, which begins
at zero. Plain torch and lightly compute in float32 for 16-bit logits too, as mixed precision has
it.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import pytest
import torch
from harness import MODES, Workload
from torch import Tensor, nn

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM = 0.1, 0.04, 0.9

Views = list[Tensor]


def make_inputs(teachers, students, batch, prototypes, dtype):
    """Every view; the teacher's, first, as the integers of their bits, which get no gradient."""
    views = [torch.randn(batch, prototypes, dtype=dtype) for _ in range(teachers + students)]
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    return *(view.view(bits) for view in views[:teachers]), *views[teachers:]


def of_views(loss: Callable[[Views, Views], Tensor]) -> Callable[..., Tensor]:
    """A function of what make_inputs() makes, from one of the teacher's and the student's views."""

    def call(*tensors: Tensor) -> Tensor:
        student = [t for t in tensors if t.is_floating_point()]
        teacher = [t.view(student[0].dtype) for t in tensors[: -len(student)]]
        return loss(teacher, student)

    return call


@functools.cache
def module_of(library: str, name: str, prototypes: int, device: torch.device) -> nn.Module:
    return getattr(importlib.import_module(library), name)(output_dim=prototypes).to(device)


@functools.cache
def mask_of(tokens: int, device: torch.device) -> Tensor:
    return torch.ones(tokens, 1, 1, dtype=torch.bool, device=device)


def loss_of(library: str, compiled: bool = False) -> Callable[..., Tensor]:
    """Its DINOLoss; its IBOTPatchLoss, all tokens being masked, of one view each."""
    compiles = functools.cache(lambda module: torch.compile(module, dynamic=False))

    def loss(teacher: Views, student: Views) -> Tensor:
        if library == "lightly.loss":
            teacher, student = ([view.float() for view in views] for views in (teacher, student))
        rows, prototypes = student[0].shape
        name = "IBOTPatchLoss" if len(student) == 1 else "DINOLoss"
        module = module_of(library, name, prototypes, student[0].device)
        for center in module.buffers():
            center.zero_()
        function = compiles(module) if compiled else module
        if name == "DINOLoss":
            return function(teacher, student)
        return function(teacher[0], student[0], mask_of(rows, student[0].device))

    return of_views(loss)


@functools.cache
def pair_weights(teachers: int, students: int, batch: int, device: torch.device) -> Tensor:
    """``[T, S, B]`` of a mean without a view beside itself; tokens have one view, masked."""
    pairs = torch.ones(teachers, students, batch, device=device)
    if students > 1:
        pairs[range(teachers), range(teachers)] = 0
    return pairs / pairs.sum()


def plain(teacher: Views, student: Views) -> Tensor:
    """Without a loop over pairs; with the center's next value, too."""
    y, x = torch.stack(teacher).float(), torch.stack(student).float()
    center = y.new_zeros(y.shape[-1])
    target = ((y - center) / TEACHER_TEMPERATURE).softmax(-1)
    log_probability = (x / STUDENT_TEMPERATURE).log_softmax(-1)
    ce = -torch.einsum("tbc,sbc->tsb", target, log_probability)
    center.lerp_(y.mean((0, 1)), 1 - MOMENTUM)
    return (ce * pair_weights(*ce.shape, ce.device)).sum()


def lightly_rivals() -> dict[str, Callable[..., Tensor]]:
    """Nothing where it is not installed."""
    if importlib.util.find_spec("lightly") is None:
        return {}
    return {
        "lightly": loss_of("lightly.loss"),
        "torch.compile(lightly)": loss_of("lightly.loss", compiled=True),
    }


def least(teachers: int, students: int, batch: int, prototypes: int) -> tuple[int, int]:
    """All logits read twice, the students' gradient written."""
    return batch * prototypes * (2 * teachers + 3 * students), 0


WORKLOAD = Workload(
    file=__file__,
    measured="DINOLoss, IBOTPatchLoss",
    cases=[
        {"teachers": 2, "students": 2, "batch": 256, "prototypes": 4096},
        {"teachers": 2, "students": 10, "batch": 16, "prototypes": 65536},
        {"teachers": 1, "students": 1, "batch": 4096, "prototypes": 8192},
    ],
    gpu_cases=({"teachers": 2, "students": 10, "batch": 64, "prototypes": 65536},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": loss_of("mast_ext.losses"),
        "eager": of_views(plain),
        "torch.compile": of_views(torch.compile(plain, dynamic=False)),
        **lightly_rivals(),
    },
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("device", "case"), WORKLOAD.runs(), ids=str)
def bench_prototype_cross_entropy(compare, device, case, mode):
    compare(WORKLOAD, device, case, mode)
