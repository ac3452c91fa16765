"""The training step of every method, and the teacher of those that want one."""

import copy
from dataclasses import replace

import pytest
import torch

from mast_ext.methods import METHODS as REGISTRY
from mast_ext.methods import MoCo, TeacherMethod, TeacherSpec
from mast_ext.models import cosine_momentum
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.state.checkpoint import read_checkpoint

METHODS = [
    name for name in sorted(REGISTRY) if not REGISTRY[name].multi_crop
]  # see test_multi_crop
METHODS += [f"{name}+equimod" for name in ("mast", "vicreg", "byol", "simclr", "moco")]


@pytest.fixture
def short(tiny):
    return replace(tiny, train=replace(tiny.train, epochs=1))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(train_tiny, short, method):
    module = train_tiny(config=short, method=method)
    assert module.method.name == method
    wanted = issubclass(REGISTRY[method.removesuffix("+equimod")], TeacherMethod)
    assert (module.teacher is not None) == wanted
    grads = [p.grad is None or not p.grad.any() for p in module.method.parameters()]
    assert not any(grads)


def weights(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("end", [0.9, 1.0])
def test_teacher_follows_every_step(train_tiny, tiny, monkeypatch, end):
    """By the formula, from the student's first weights on, after the optimizer's step."""
    own = MoCo.teacher
    monkeypatch.setattr(MoCo, "teacher", lambda self: replace(own(self), final_momentum=end))
    steps, expected = [], []

    def before(module, batch, batch_idx):
        if not expected:
            expected.extend(weights(module.backbone, module.method.projector))

    def after(module, outputs, batch, batch_idx):
        momentum = cosine_momentum(len(steps), total=8, start=0.9, end=end)
        student = weights(module.backbone, module.method.projector)
        for i, (old, new) in enumerate(zip(expected, student, strict=True)):
            expected[i] = old + (1 - momentum) * (new - old)
        for found, value in zip(weights(module.teacher), expected, strict=True):
            torch.testing.assert_close(found, value)
        assert not torch.equal(expected[0], student[0])
        steps.append(momentum)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", before)
    monkeypatch.setattr(PretrainModule, "on_train_batch_end", after)
    config = replace(tiny, moco=replace(tiny.moco, momentum=0.9))
    module = train_tiny(config=config, method="moco")
    assert len(steps) == 8 and steps[0] == pytest.approx(0.9)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    optimized = {id(p) for g in module.optimizers().param_groups for p in g["params"]}
    assert optimized.isdisjoint(id(p) for p in module.teacher.parameters())


@pytest.mark.parametrize("symmetric", [False, True])
def test_networks_see_the_views_the_method_asks_for(train_tiny, short, monkeypatch, symmetric):
    """One view or two for the student; the teacher, as it is before the step, gets the other."""
    seen = []
    original = MoCo.forward

    def look(method, encoded, batch):
        seen.append((encoded.features, batch, encoded.targets))
        return original(method, encoded, batch)

    def check(module, outputs, batch, batch_idx):
        features, shown, targets = seen[-1]
        assert not targets.requires_grad and features.requires_grad
        assert len(features) == len(targets) == 1 + symmetric
        assert shown is batch

    def before(module, batch, batch_idx):
        teacher = copy.deepcopy(module.teacher)
        keys = batch.images if symmetric else batch.images[1:]
        flat = keys.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        expected.append(teacher(flat).unflatten(0, keys.shape[:2]))

    expected = []
    monkeypatch.setattr(MoCo, "forward", look)
    monkeypatch.setattr(PretrainModule, "on_train_batch_start", before)
    monkeypatch.setattr(PretrainModule, "on_train_batch_end", check)
    train_tiny(config=replace(short, moco=replace(short.moco, symmetric=symmetric)), method="moco")
    assert len(seen) == len(expected) == 3
    for (_, _, targets), value in zip(seen, expected, strict=True):
        torch.testing.assert_close(targets, value)


def test_teacher_and_queue_are_in_checkpoints(train_tiny, short, tmp_path):
    module = train_tiny(config=short, method="moco")
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state.keys() == module.state_dict().keys()
    assert torch.equal(state["method.queue.bank"], module.method.queue.bank)
    teacher = {name for name in state if name.startswith("teacher.")}
    assert len(teacher) == len(module.teacher.state_dict()) > 0


@pytest.mark.parametrize("name", ["momentum", "final_momentum"])
def test_teacher_spec_refuses(name):
    head = torch.nn.Identity()
    with pytest.raises(ValueError, match=rf"{name} must be from 0 to 1, got 1.5"):
        TeacherSpec(head, slice(None), **{"momentum": 0.5, name: 1.5})
