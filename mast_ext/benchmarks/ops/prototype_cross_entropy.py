"""DINO's and iBOT's loss, with the batch's center statistics, against lightly's and plain torch.

Every call begins with a center of zeros and also computes the next one, as in training. Plain torch
and lightly compute in float32 for 16-bit logits too, as mixed precision has it.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mast_ext import functional
from mast_ext.benchmarks.harness import Workload

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM = 0.1, 0.04, 0.9

Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def make_inputs(teachers, students, batch, prototypes, dtype):
    """Student and teacher; the latter as the integers of its bits, which get no gradient."""
    student = torch.randn(students, batch, prototypes, dtype=dtype)
    teacher = torch.randn(teachers, batch, prototypes, dtype=dtype)
    return student, teacher.view(torch.int32 if dtype == torch.float32 else torch.int16)


@functools.cache
def pair_weights(teachers: int, students: int, batch: int, device: torch.device) -> Tensor:
    """``[T, S, B]`` of a mean without a view beside itself; tokens have one view, masked."""
    pairs = torch.ones(teachers, students, batch, device=device)
    if students > 1:
        pairs[range(teachers), range(teachers)] = 0
    return pairs / pairs.sum()


def fused(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    loss, mean = functional.prototype_cross_entropy_with_mean(
        student,
        teacher,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=TEACHER_TEMPERATURE,
        center=center,
        weights=pair_weights(len(teacher), *student.shape[:2], student.device),
    )
    return loss, torch.lerp(center, mean, 1 - MOMENTUM)


def plain(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    target = ((teacher.float() - center) / TEACHER_TEMPERATURE).softmax(-1)
    log_probability = (student.float() / STUDENT_TEMPERATURE).log_softmax(-1)
    ce = -torch.einsum("tbc,sbc->tsb", target, log_probability)
    loss = (ce * pair_weights(*ce.shape, ce.device)).sum()
    return loss, torch.lerp(center, teacher.float().mean((0, 1)), 1 - MOMENTUM)


@functools.cache
def zeros(prototypes: int, device: torch.device) -> Tensor:
    return torch.zeros(prototypes, device=device)


def from_zeros(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    def call(student: Tensor, bits: Tensor) -> Tensor:
        center = zeros(student.shape[2], student.device)
        return loss(student, bits.view(student.dtype), center)[0]

    return call


def lightly_rivals() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The DINOLoss of lightly, or its IBOTPatchLoss for tokens; nothing without lightly."""
    if importlib.util.find_spec("lightly") is None:
        return {}
    from lightly.loss import DINOLoss, IBOTPatchLoss

    @functools.cache
    def module_of(
        tokens: bool, prototypes: int, device: torch.device, compiled: bool
    ) -> tuple[Any, Any]:
        module = (IBOTPatchLoss if tokens else DINOLoss)(output_dim=prototypes).to(device)
        return module, torch.compile(module, dynamic=False) if compiled else module

    def call(student: Tensor, bits: Tensor, compiled: bool) -> Tensor:
        tokens = len(student) == 1
        module, function = module_of(tokens, student.shape[2], student.device, compiled)
        for center in module.buffers():
            center.zero_()
        teacher, student = bits.view(student.dtype).float(), student.float()
        if tokens:
            mask = torch.ones(student.shape[1], 1, 1, dtype=torch.bool, device=student.device)
            return function(teacher[0], student[0], mask)
        return function(list(teacher), list(student))

    return {
        "lightly": functools.partial(call, compiled=False),
        "torch.compile(lightly)": functools.partial(call, compiled=True),
    }


def least(teachers: int, students: int, batch: int, prototypes: int) -> tuple[int, int]:
    """All logits read twice, the students' gradient written."""
    return batch * prototypes * (2 * teachers + 3 * students), 0


WORKLOAD = Workload(
    name="prototype_cross_entropy",
    cases=[
        {"teachers": 2, "students": 2, "batch": 256, "prototypes": 4096},
        {"teachers": 2, "students": 10, "batch": 16, "prototypes": 65536},
        {"teachers": 1, "students": 1, "batch": 4096, "prototypes": 8192},
    ],
    gpu_cases=({"teachers": 2, "students": 10, "batch": 64, "prototypes": 65536},),
    inputs=make_inputs,
    least=least,
    contestants={
        "mast_ext": from_zeros(fused),
        "eager": from_zeros(plain),
        "torch.compile": from_zeros(torch.compile(plain, dynamic=False)),
        **lightly_rivals(),
    },
)
