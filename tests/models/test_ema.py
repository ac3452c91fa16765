import math

import pytest
import torch
from torch import nn

from mast_ext.models import EMATeacher, cosine_momentum

# step, total, start, end -> momentum
MOMENTA = [
    (0, 10, 0.996, 1.0, 0.996),
    (5, 10, 0.996, 1.0, 0.998),
    (10, 10, 0.996, 1.0, 1.0),
    (99, 10, 0.996, 1.0, 1.0),
    (3, 10, 0.9, 1.0, 1 - 0.1 * (1 + math.cos(0.3 * math.pi)) / 2),
    (7, 10, 0.99, 0.99, 0.99),
]


@pytest.fixture
def student():
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    return nn.Sequential(*layers)


def train(student, teacher, momentum, steps=3):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        student(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        teacher.update(student, momentum)


@pytest.mark.parametrize(("step", "total", "start", "end", "expected"), MOMENTA)
def test_cosine_momentum(step, total, start, end, expected):
    assert cosine_momentum(step, total=total, start=start, end=end) == pytest.approx(expected)


@pytest.mark.parametrize("batch_norm", ["own", "ema"])
@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_parameters_move_by_the_formula(student, momentum, batch_norm):
    teacher = EMATeacher(student, batch_norm=batch_norm)
    expected = [p.detach().clone() for p in student.parameters()]
    for _ in range(3):
        train(student, teacher, momentum, steps=1)
        expected = [
            momentum * old + (1 - momentum) * new
            for old, new in zip(expected, student.parameters(), strict=True)
        ]
    for found, value in zip(teacher.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_it_is_apart_from_the_student(student):
    teacher = EMATeacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(5, 4, requires_grad=True)).requires_grad
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))


def test_own_batch_norm(student):
    """Normalizes by its batch, and averages its own batches, not the student's."""
    teacher = EMATeacher(student, batch_norm="own").train()
    x = torch.randn(16, 4)
    hidden = student[0](x)
    expected = student[4](student[1](hidden).relu())
    torch.testing.assert_close(teacher(x), expected.detach())
    assert teacher.module[1].num_batches_tracked == 1
    torch.testing.assert_close(teacher.module[1].running_mean, 0.1 * hidden.mean(0).detach())
    teacher.update(student, 0.0)
    student(torch.randn(16, 4) + 5)
    teacher.update(student, 0.0)
    torch.testing.assert_close(teacher.module[1].running_mean, 0.1 * hidden.mean(0).detach())
    assert not teacher.module[3].training  # no dropout


def test_ema_batch_norm(student):
    """Normalizes by averages of the student's, whatever else is in the batch."""
    teacher = EMATeacher(student, batch_norm="ema").train()
    student(torch.randn(16, 4) + 5)
    teacher.update(student, 0.75)
    norm, followed = teacher.module[1], student[1]
    torch.testing.assert_close(norm.running_mean, 0.25 * followed.running_mean)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * followed.running_var)
    assert norm.num_batches_tracked == 1
    x = torch.randn(16, 4)
    torch.testing.assert_close(teacher(x)[:2], teacher(x[:2]))


@pytest.mark.parametrize("batch_norm", ["own", "ema"])
def test_state_restores_it(student, batch_norm):
    teacher = EMATeacher(student, batch_norm=batch_norm)
    train(student, teacher, 0.9)
    restored = EMATeacher(student, batch_norm=batch_norm)
    restored.load_state_dict(teacher.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(restored.eval()(x), teacher.eval()(x))


def test_refuses():
    with pytest.raises(ValueError, match="batch_norm must be 'own' or 'ema', got 'none'"):
        EMATeacher(nn.Linear(2, 2), batch_norm="none")
