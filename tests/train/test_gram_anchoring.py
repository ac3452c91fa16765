"""The Gram teacher in training: when it is taken, what it costs, and that a run resumes with it."""

import csv
import os
import signal
from dataclasses import replace

import pytest
import torch

from mast_ext.data import open_source
from mast_ext.methods import EquiModOptions, HardViewOptions
from mast_ext.train.config import ModelConfig
from mast_ext.train.errors import Interrupted, SettingsError
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks
from mast_ext.train.pretrain import plan
from mast_ext.train.state.checkpoint import read_checkpoint
from mast_ext.train.state.restore import restore_checkpoint

VIT = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}
GRAM = {"gram_weight": 1.0, "gram_start": 2, "gram_every": 3}


def anchored(config, method, *, resnet=False, **changes):
    options = replace(getattr(config, method), **{**GRAM, **changes})
    if resnet:  # whose cells are a sixteenth of a side
        augment, data = replace(config.augment, size=32), replace(config.data, size=32)
        return replace(config, augment=augment, data=data, **{method: options})
    model = ModelConfig("vit_small_images", timm_args=VIT)
    return replace(config, model=model, **{method: options})


def weights(module):
    return [value.detach().clone() for value in module.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("resnet", [False, True], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("method", ["dino", "ibot+equimod"])
def test_follows_the_teacher_by_jumps(train_tiny, tiny, tmp_path, monkeypatch, method, resnet):
    """At steps 2 and 5 it is the teacher of before the step; in between it rests."""
    seen = []

    def look(module, batch, batch_idx):
        seen.append((weights(module.teacher.module[0]), weights(module.gram_teacher.module)))

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", look)
    config = anchored(tiny, method.split("+")[0], resnet=resnet)
    module = train_tiny(config=config, method=method)
    assert len(seen) == 8
    taken = [step for step, (teacher, gram) in enumerate(seen) if same(teacher, gram)]
    assert taken == [0, 2, 5]  # all networks are alike at step 0
    for step in range(1, 8):
        assert same(seen[step][1], seen[step - 1][1]) == (step not in taken)
    assert not any(p.requires_grad for p in module.gram_teacher.parameters())
    assert not any(each.training for each in module.gram_teacher.modules())
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        logged = [float(row["gram"]) for row in csv.DictReader(file)]
    assert [value == value for value in logged] == [False] * 2 + [True] * 6
    assert all(value >= 0 for value in logged[2:]) and any(logged[2:])


@pytest.mark.parametrize("method", ["dino+hard", "ibot"])
@pytest.mark.parametrize("kept", [True, False])
def test_same_bits_when_interrupted(train_tiny, tiny, tmp_path, monkeypatch, method, kept):
    """And other ones with another Gram teacher, so that the comparison does see it."""
    config = anchored(tiny, method.split("+")[0])
    whole = train_tiny("whole", config=config, method=method).state_dict()

    def stop(module, batch, batch_idx):
        if module.trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(PretrainModule, "on_train_batch_start", stop)
        with pytest.raises(Interrupted):
            train_tiny(config=config, method=method)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    state = checkpoint["state_dict"]
    own = [name for name in state if name.startswith("gram_teacher.module.")]
    assert own
    if not kept:
        for name in own:
            state[name] = state[name.replace("gram_teacher.module", "backbone")]
        torch.save(checkpoint, last)
    resumed = train_tiny(resume=last, config=config, method=method).state_dict()
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole) == kept


def test_evaluation_does_without_it(train_tiny, tiny, tmp_path):
    config = replace(anchored(tiny, "dino", gram_start=0), method="dino")
    module = train_tiny(config=config, method="dino")
    restored = restore_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", config)
    assert same(weights(restored.backbone), weights(module.backbone))


def test_accumulated_gradients_see_one_gram_teacher(train_tiny, tiny, monkeypatch):
    seen = []
    original = PretrainModule.training_step

    def look(module, batch, batch_idx):
        seen.append((module.trainer.global_step, weights(module.gram_teacher.module)))
        return original(module, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", look)
    config = anchored(tiny, "dino")
    train_tiny(config=replace(config, train=replace(config.train, accumulate=2)), method="dino")
    assert [step for step, _ in seen] == [step for step in range(8) for _ in range(2)]
    assert all(same(seen[i][1], seen[i + 1][1]) for i in range(0, 16, 2))


def test_mixed_precision(train_tiny, tiny):
    config = anchored(tiny, "ibot", gram_start=0)
    config = replace(config, train=replace(config.train, precision="bf16-mixed", epochs=1))
    module = train_tiny(config=config, method="ibot")
    assert all(p.isfinite().all() for p in module.parameters())


def test_before_its_start_it_changes_nothing(train_tiny, tiny, tmp_path):
    short = replace(tiny, train=replace(tiny.train, epochs=1))
    plain = train_tiny("plain", config=anchored(short, "dino", gram_weight=0.0), method="dino")
    late = train_tiny("late", config=anchored(short, "dino", gram_start=2), method="dino")
    assert plain.gram_teacher is None
    losses = []
    for run in ("plain", "late"):
        with (tmp_path / run / "metrics.csv").open(newline="") as file:
            losses.append([row["loss"] for row in csv.DictReader(file)])
    assert losses[0][:2] == losses[1][:2]
    assert not same(weights(plain.backbone), weights(late.backbone))


def test_refuses_to_start_after_the_run(train_tiny, tiny):
    config = anchored(replace(tiny, train=replace(tiny.train, epochs=1)), "dino", gram_start=3)
    with pytest.raises(ValueError, match="dino.gram_start must be less than the run's 3 steps"):
        train_tiny(config=config, method="dino")


@pytest.mark.parametrize("hard", [False, True])
def test_forwards_are_counted(tiny, hard):
    counts = []
    for weight in (0.0, 1.0):
        config = replace(anchored(tiny, "dino", gram_weight=weight), method="dino")
        config = replace(config, hard_views=HardViewOptions(4 if hard else 0))
        networks = build_networks(config)
        source = open_source("shapes", "train", size=16, max_images=24)
        counts.append(networks.forwards(training_loader(config, networks, source), 8))
    assert counts[1] - counts[0] == 2 * (8 - GRAM["gram_start"])


def test_a_baseline_has_as_many_forwards_and_starts_within_its_steps(tiny):
    config = replace(anchored(tiny, "dino"), method="dino", baseline="dino")
    config = replace(config, equimod=EquiModOptions(1.0, (16,), 8))
    source = open_source("shapes", "train", size=16, max_images=24)
    method, baseline = plan(config, source)
    wanted = method.networks.forwards(method.loader, method.steps)
    others = [baseline.networks.forwards(baseline.loader, steps) for steps in range(1, 100)]
    nearest = min(range(99), key=lambda i: abs(others[i] - wanted)) + 1
    assert baseline.steps == nearest
    config = replace(config, method="simclr", dino=replace(config.dino, gram_start=4))
    with pytest.raises(
        SettingsError, match="dino.gram_start must be less than the . steps of dino"
    ):
        plan(replace(config, equimod=EquiModOptions(0.0)), source)
